import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score, log_loss, recall_score
from test_bootstrap import cohort

from idc_lightning.results.calibration import (
    BIASES,
    TEMPERATURES,
    brier_score,
    choose_threshold,
    expected_calibration_error,
    fit_calibration,
    reliability,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def logits_of(margin: Floats) -> npt.NDArray[np.float32]:
    """Logits that differ by a margin; softmax doesn't see what they have in common."""
    common = np.linspace(-3, 3, len(margin))
    return np.stack([common, common + margin], axis=1).astype(np.float32)


def sigmoid(margin: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-margin)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("bias", [0.0, -1.5])
def test_temperature_and_bias_of_the_labels_are_found(temperature: float, bias: float) -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(-1, 2, 40_000)
    labels = (rng.random(len(margin)) < sigmoid(margin)).astype(np.int64)
    found = fit_calibration(logits_of(temperature * (margin - bias)), labels)
    assert found == pytest.approx((temperature, bias), rel=0.03, abs=0.03)


def test_what_class_weights_shift_is_undone() -> None:
    # A net that learns with balanced classes says too often that it is IDC where IDC is rare.
    rng = np.random.default_rng(3)
    margin = rng.normal(-3, 2, 20_000)
    labels = (rng.random(len(margin)) < sigmoid(margin)).astype(np.int64)
    shifted = margin + 2.0
    temperature, bias = fit_calibration(logits_of(shifted), labels)
    before, after = sigmoid(shifted), sigmoid(shifted / temperature + bias)
    assert expected_calibration_error(labels, before) > 0.1
    assert expected_calibration_error(labels, after) < 0.01
    assert brier_score(labels, after) < brier_score(labels, before)
    assert after.mean() == pytest.approx(labels.mean(), abs=1e-3)


def test_no_other_calibration_makes_the_labels_more_likely() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(300) < 0.2).astype(np.int64)
    margin = 5 * (labels - 0.5) + rng.normal(0, 6, 300)
    temperature, bias = fit_calibration(logits_of(margin), labels)
    least = log_loss(labels, sigmoid(margin / temperature + bias))
    for other in (*np.geomspace(*TEMPERATURES, 50), temperature * 1.02, temperature / 1.02):
        for shift in (bias - 0.05, bias, bias + 0.05, 0.0):
            assert least <= log_loss(labels, sigmoid(margin / other + shift)) + 1e-7


def test_nothing_is_changed_where_labels_can_not_tell() -> None:
    margin = np.array([-2.0, 1.0, 3.0])
    assert fit_calibration(logits_of(margin), np.zeros(3, np.int64)) == (1.0, 0.0)
    assert fit_calibration(logits_of(margin), np.ones(3, np.int64)) == (1.0, 0.0)
    assert fit_calibration(logits_of(np.zeros(3)), np.array([0, 1, 1])) == (1.0, 0.0)


def test_calibrations_without_a_minimum_stay_inside_their_bounds() -> None:
    margin, labels = np.array([-500.0, -2.0, 1.0, 300.0]), np.array([0, 0, 1, 1])
    for sign in (1, -1):
        temperature, bias = fit_calibration(logits_of(sign * margin), labels)
        assert TEMPERATURES[0] <= temperature * 1.000001
        assert temperature <= TEMPERATURES[1] * 1.000001
        assert BIASES[0] <= bias <= BIASES[1]


probabilities = st.one_of(
    st.floats(0, 1, width=32),
    st.floats(0, 1),
    st.sampled_from([0.0, 5e-324, 0.5, np.nextafter(0.5, 1), np.nextafter(1.0, 0), 1.0]),
)


@st.composite
def split(draw: st.DrawFn) -> tuple[Ints, Floats]:
    proba = draw(arrays(np.float64, st.integers(1, 12), elements=probabilities))
    labels = arrays(np.int64, len(proba), elements=st.integers(0, 1))
    return draw(labels), proba


@given(split())
def test_no_threshold_has_a_higher_f1(data: tuple[Ints, Floats]) -> None:
    true, proba = data
    chosen = choose_threshold(true, proba, "max_f1", 0.9)
    assert 0 < chosen < 1
    if not true.any():
        assert chosen == 0.5
        return
    reached = f1_score(true, proba >= chosen, zero_division=0)
    for other in proba[(proba > 0) & (proba < 1)]:
        assert reached >= f1_score(true, proba >= other, zero_division=0)


@given(split(), st.sampled_from([0.1, 0.5, 0.7, 0.9, 0.999]))
def test_the_highest_threshold_of_a_recall_is_taken(
    data: tuple[Ints, Floats], sensitivity: float
) -> None:
    true, proba = data
    chosen = choose_threshold(true, proba, "sensitivity", sensitivity)
    assert 0 < chosen < 1
    if not true.any():
        assert chosen == 0.5
        return
    possible = [p for p in proba if 0 < p < 1 and recall_score(true, proba >= p) >= sensitivity]
    if possible:
        assert recall_score(true, proba >= chosen) >= sensitivity
        higher = proba[(proba >= chosen) & (proba < 1)]
        above = [p for p in higher if p > min(higher)]
        assert all(recall_score(true, proba >= p) < sensitivity for p in above)


def test_thresholds_lie_midway_between_probabilities() -> None:
    true, proba = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.3, 0.5, 0.6, 0.9])
    assert choose_threshold(true, proba, "sensitivity", 0.6) == pytest.approx(0.55)
    assert choose_threshold(true, proba, "sensitivity", 0.9) == pytest.approx(0.2)
    assert choose_threshold(true, proba, "max_f1", 0.9) == pytest.approx(0.2)  # F1 6/7
    assert choose_threshold(true[3:], proba[3:], "max_f1", 0.9) == pytest.approx(0.3)


def test_of_equally_good_thresholds_the_one_nearest_to_a_half_is_taken() -> None:
    # F1 is 2/3 with one, and with all four patches.
    true, proba = np.array([1, 0, 0, 1]), np.array([0.95, 0.85, 0.15, 0.05])
    assert choose_threshold(true, proba, "max_f1", 0.9) == pytest.approx(0.9)
    assert choose_threshold(true, proba - 0.05, "max_f1", 0.9) == pytest.approx(0.85)
    true, proba = np.array([1, 0, 0, 1]), np.array([0.99, 0.98, 0.97, 0.6])
    assert choose_threshold(true, proba, "max_f1", 0.9) == pytest.approx(0.3)


def test_a_number_is_taken_as_it_is() -> None:
    assert choose_threshold(np.array([0, 1]), np.array([0.1, 0.9]), 0.37, 0.9) == 0.37
    assert choose_threshold(np.array([0, 0]), np.array([0.1, 0.9]), 0.37, 0.9) == 0.37


def test_probabilities_of_0_leave_a_half() -> None:
    assert choose_threshold(np.array([0, 1]), np.zeros(2), "max_f1", 0.9) == 0.5


@pytest.mark.parametrize("steps", [None, 20, 15])
def test_reliability_is_scikit_learns(steps: int | None) -> None:
    true, proba, _ = cohort(0, patients=30, steps=steps)
    proba[:2] = 0, 1
    table = reliability(true, proba, 15)
    observed, mean = calibration_curve(true, proba, n_bins=15)
    assert table["observed"].to_numpy() == pytest.approx(observed)
    assert table["proba"].to_numpy() == pytest.approx(mean)
    assert table["patches"].sum() == len(true)


def test_bins_without_patches_are_left_out() -> None:
    table = reliability(np.array([0, 1, 1]), np.array([0.05, 0.95, 0.97]), 10)
    assert table.to_dict("list") == {
        "proba": [0.05, pytest.approx(0.96)],
        "observed": [0.0, 1.0],
        "patches": [1, 2],
    }


def test_the_calibration_error_weighs_bins_by_their_patches() -> None:
    true, proba = np.array([0, 0, 0, 1, 0]), np.array([0.1, 0.1, 0.1, 0.8, 0.8])
    wanted = 3 / 5 * 0.1 + 2 / 5 * 0.3
    assert expected_calibration_error(true, proba) == pytest.approx(wanted)
    # In one bin both sides make up for each other.
    assert expected_calibration_error(true, proba, bins=1) == pytest.approx(abs(0.2 - 1.9 / 5))


def test_the_brier_score_is_scikit_learns() -> None:
    true, proba, _ = cohort(0)
    assert brier_score(true, proba) == pytest.approx(brier_score_loss(true, proba), abs=1e-15)
