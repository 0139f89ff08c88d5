import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

import idc_lightning.results.bootstrap as bootstrap
from idc_lightning.metrics import patch_metrics
from idc_lightning.results.bootstrap import (
    Drawn,
    Interval,
    bootstrap_metrics,
    drawn_metrics,
    pooled_metrics,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

NAMES = (
    "f1",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "auroc",
    "average_precision",
    "brier",
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Strings = npt.NDArray[np.str_]
Cohort = tuple[Ints, Floats, Strings]


def cohort(seed: int, patients: int = 12, *, steps: int | None = 20) -> Cohort:
    """Labels, probabilities (tied, if in steps) and patients of patches that are clustered."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 40, patients)
    names = np.repeat([f"p{number}" for number in range(patients)], sizes)
    share, ease = np.repeat(rng.random((2, patients)), sizes, axis=1)
    true = (rng.random(len(names)) < 0.1 + 0.6 * share).astype(np.int64)
    score = (2 * true - 1) * (0.2 + ease) + rng.normal(0, 1, len(names))
    proba = 1 / (1 + np.exp(-score))
    order = rng.permutation(len(names))
    return (
        true[order],
        proba[order] if steps is None else np.round(proba * steps)[order] / steps,
        names[order],
    )


def run(
    data: Cohort,
    *,
    threshold: float = 0.5,
    draws: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    true, proba, patients = data
    return bootstrap_metrics(
        true,
        proba,
        patients,
        threshold=threshold,
        draws=draws,
        confidence=confidence,
        seed=seed,
    )


def scikit_learns(true: Ints, proba: Floats, threshold: float) -> dict[str, float]:
    predicted = proba >= threshold
    return {
        "f1": f1_score(true, predicted),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        "precision": precision_score(true, predicted),
        "recall": recall_score(true, predicted),
        "specificity": recall_score(true, predicted, pos_label=0),
        "auroc": roc_auc_score(true, proba),
        "average_precision": average_precision_score(true, proba),
        "brier": brier_score_loss(true, proba),
    }


@pytest.mark.parametrize("steps", [None, 20, 4])
@pytest.mark.parametrize("threshold", [0.5, 0.25])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_scikit_learns(seed: int, threshold: float, steps: int | None) -> None:
    true, proba, patients = cohort(seed, steps=steps)
    found = run((true, proba, patients), threshold=threshold, draws=1)
    values = {name: interval.value for name, interval in found.items()}
    assert values == pytest.approx(scikit_learns(true, proba, threshold), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 700, bootstrap.CHUNK])
def test_draws_are_resamples_of_whole_patients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(bootstrap, "CHUNK", chunk)
    true, proba, patients = cohort(5, steps=10)
    names = np.unique(patients)
    drawn = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=40)
    naive: dict[str, list[float]] = {name: [] for name in NAMES}
    for counts in drawn:
        rows = [
            np.tile(np.flatnonzero(patients == name), n)
            for name, n in zip(names, counts, strict=True)
        ]
        picked = np.concatenate(rows).astype(int)
        for name, value in scikit_learns(true[picked], proba[picked], 0.5).items():
            naive[name].append(value)
    found = drawn_metrics(true, proba, proba >= 0.5, patients, draws=40, seed=3)
    for name in NAMES:
        assert found.values[name][1:] == pytest.approx(naive[name], abs=1e-12), name


def test_intervals_are_students_on_the_scale_of_the_logit() -> None:
    drawn = Drawn({"f1": np.array([0.7, 0.5, 0.8, np.nan, 0.6])}, {"f1": 3}, patients=3, patches=99)
    spread = np.std(np.log([0.5 / 0.5, 0.8 / 0.2, 0.6 / 0.4]), ddof=1)
    reach = stats.t.ppf(0.9, 2) * np.sqrt(3 / 2) * spread
    centre = np.log(0.7 / 0.3)
    (found,) = drawn.intervals(0.8).values()
    assert found.value == 0.7
    assert found.low == pytest.approx(1 / (1 + np.exp(reach - centre)))
    assert found.high == pytest.approx(1 / (1 + np.exp(-reach - centre)))


def test_the_end_of_the_scale_is_within_half_a_patch() -> None:
    bearing = {"f1": 3, "recall": 3}
    drawn = Drawn(
        {"f1": np.ones(9), "recall": np.array([1, 1, 0, 1.0])}, bearing, patients=3, patches=50
    )
    found = drawn.intervals(0.95)
    assert (found["f1"].low, found["f1"].high) == (pytest.approx(0.99), 1)
    assert found["recall"].low is not None
    assert 0 < found["recall"].low < 0.01
    assert found["recall"].high == 1


def test_differences_are_students_of_paired_draws() -> None:
    one = Drawn({"f1": np.array([0.7, 0.5, 0.8, 0.6])}, {"f1": 4}, patients=4, patches=99)
    two = Drawn({"f1": np.array([0.6, 0.45, 0.6, np.nan])}, {"f1": 4}, patients=4, patches=99)
    reach = stats.t.ppf(0.975, 3) * np.sqrt(4 / 3) * np.std([0.05, 0.2], ddof=1)
    (found,) = one.differences(two, 0.95).values()
    assert found.value == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - reach, 0.1 + reach))
    (same,) = one.differences(one, 0.95).values()
    assert same == Interval(0, 0, 0)
    worst = Drawn({"f1": np.array([0.1, 1, 0, 0])}, {"f1": 4}, patients=4, patches=99)
    (bounded,) = worst.differences(one, 0.95).values()
    assert (bounded.low, bounded.high) == (-1, pytest.approx(1))


def test_names_are_those_of_results_json_and_of_the_metrics_in_training() -> None:
    assert set(run(cohort(0), draws=1)) == set(NAMES) == {*patch_metrics(0.5), "brier"}


def test_the_seed_alone_decides_on_the_intervals() -> None:
    data = cohort(0)
    assert run(data) == run(data)
    other = run(data, seed=1)
    assert all(run(data)[name].value == other[name].value for name in NAMES)
    assert all(run(data)[name] != other[name] for name in NAMES)


def test_the_order_of_the_patches_does_not_matter() -> None:
    true, proba, patients = cohort(0)
    order = np.random.default_rng(1).permutation(len(true))
    shuffled = run((true[order], proba[order], patients[order]))
    for name, interval in run((true, proba, patients)).items():
        for part in ("value", "low", "high"):
            wanted = getattr(interval, part)
            assert getattr(shuffled[name], part) == pytest.approx(wanted, abs=1e-12)


def test_intervals_hold_the_value_and_widen_with_confidence() -> None:
    data = cohort(0, patients=30)
    wide, narrow = run(data, confidence=0.95), run(data, confidence=0.5)
    for name in NAMES:
        low, value, high = wide[name].low, wide[name].value, wide[name].high
        assert low is not None
        assert high is not None
        assert value is not None
        assert 0 <= low < value < high <= 1
        assert narrow[name].low is not None
        assert low < narrow[name].low
        assert narrow[name].high is not None
        assert narrow[name].high < high


def test_undefined_metrics_are_none() -> None:
    patients = np.array(["a", "a", "b"])
    nothing = Interval(None, None, None)
    healthy = run((np.zeros(3, np.int64), np.array([0.2, 0.4, 0.1]), patients))
    assert {name for name in NAMES if healthy[name] == nothing} == set(NAMES) - {
        "specificity",
        "brier",
    }
    assert (healthy["specificity"].value, healthy["specificity"].high) == (1, 1)
    assert healthy["specificity"].low == pytest.approx(1 - 0.5 / 3)
    idc = run((np.ones(3, np.int64), np.array([0.2, 0.8, 0.9]), patients))
    undefined = {"specificity", "balanced_accuracy", "auroc"}
    assert {name for name in NAMES if idc[name] == nothing} == undefined
    assert idc["recall"].value == pytest.approx(2 / 3)


def test_pooled_metrics_are_the_values_without_intervals() -> None:
    true, proba, patients = cohort(2)
    found = run((true, proba, patients), threshold=0.3, draws=1)
    values = {name: interval.value for name, interval in found.items()}
    assert pooled_metrics(true, proba, threshold=0.3) == pytest.approx(values, abs=1e-14)
    healthy = pooled_metrics(np.zeros(3, np.int64), np.array([0.2, 0.4, 0.1]), threshold=0.5)
    assert {name for name in NAMES if np.isnan(healthy[name])} == set(NAMES) - {
        "specificity",
        "brier",
    }


def test_draws_without_a_class_are_left_out() -> None:
    # Draws of patients of one kind have one class only.
    data = (np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.array(["a", "b", "c", "d"]))
    for name in ("auroc", "recall"):
        found = run(data)[name]
        assert (found.value, found.low, found.high) == (1, pytest.approx(1 - 0.5 / 4), 1)


def test_a_metric_that_hangs_on_one_of_several_patients_has_no_interval() -> None:
    # In b and c nothing is called IDC; IDC is in a and b, healthy tissue in all of them.
    true = np.array([1, 0, 0, 1, 0, 0])
    patients = np.array(["a", "a", "a", "b", "b", "c"])
    proba = np.array([0.9, 0.8, 0.7, 0.2, 0.1, 0.3])
    found = run((true, proba, patients))
    assert found["precision"] == Interval(pytest.approx(1 / 3), None, None)
    assert {name for name in NAMES if found[name].low is None} == {"precision"}
    # Equal models differ by nothing, also where that is known of one patient only.
    calls = [np.array([True, True, third, False, False, False]) for third in (True, False)]
    one, two = (drawn_metrics(true, proba, each, patients, draws=99, seed=0) for each in calls)
    assert one.differences(one, 0.95)["recall"] == Interval(0, 0, 0)
    assert one.differences(two, 0.95)["precision"] == Interval(pytest.approx(-1 / 6), None, None)


@pytest.mark.parametrize("found", [True, False])
def test_all_or_nothing_in_a_single_patient_is_not_sure(found: bool) -> None:
    # Only a has IDC, all of it found or all of it missed; c has a false alarm.
    true, patients = np.repeat([1, 0, 0], 500), np.repeat(["a", "b", "c"], 500)
    proba = np.where(true == 1, 0.9 if found else 0.1, 0.2)
    proba[-1] = 0.8
    metrics = run((true, proba, patients))
    assert metrics["recall"] == Interval(float(found), None, None)
    for name in ("auroc", "average_precision", "balanced_accuracy"):
        assert metrics[name].value is not None
        assert metrics[name].low is metrics[name].high is None
    for name in ("specificity", "f1", "brier"):
        assert metrics[name].low is not None


def test_a_single_patient_has_no_interval() -> None:
    true, proba, _ = cohort(0)
    for interval in run((true, proba, np.full(len(true), "only"))).values():
        assert interval.value is not None
        assert interval.low is interval.high is None
    drawn = drawn_metrics(true, proba, proba >= 0.5, np.full(len(true), "only"), draws=9, seed=0)
    assert all(values.shape == (1,) for values in drawn.values.values())


def test_no_defined_draw_leaves_the_value_alone() -> None:
    data = (np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9]), np.array(["a", "b", "c", "d"]))
    seed = next(s for s in range(99) if np.random.default_rng(s).multinomial(2, [0.5, 0.5])[0] != 1)
    assert run(data, draws=1, seed=seed)["auroc"] == Interval(1.0, None, None)


def test_95_percent_intervals_cover_and_those_of_patches_do_not() -> None:
    """Repeat a study of five patients, and count how often the population's values are inside.

    Percentiles of the draws hold them in fewer.
    """
    everybody = cohort(0, patients=4000, steps=None)
    truth = {name: run(everybody, draws=1)[name].value for name in NAMES}
    inside: dict[str, list[bool]] = {"patients": [], "patches": []}
    for study in range(200):
        true, proba, patients = cohort(1000 + study, patients=5, steps=None)
        each = np.arange(len(true)).astype(np.str_)
        for kind, units in (("patients", patients), ("patches", each)):
            for name, interval in run((true, proba, units), draws=150, seed=study).items():
                value = truth[name]
                assert value is not None
                assert interval.low is not None
                assert interval.high is not None
                inside[kind].append(interval.low <= value <= interval.high)
    assert 0.92 <= np.mean(inside["patients"]) <= 0.99
    assert np.mean(inside["patches"]) < 0.85
