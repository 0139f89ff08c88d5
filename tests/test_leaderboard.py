from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_command import Command
from helpers_model import told
from helpers_sweep import JUDGED, PATIENTS, predictions, write_run
from scipy.stats import t
from sklearn.metrics import f1_score, roc_auc_score

from idc_lightning.compare import main as compare
from idc_lightning.figures.leaderboard import draw_ranking, draw_varied
from idc_lightning.results.leaderboard import Leaderboard, rank_runs, varied_keys
from idc_lightning.results.run_folders import find_runs
from idc_lightning.results.sealed import read_results, write_results

FOLDS = [["a", "b"], ["c", "d"], ["e", "f"]]


def board(folder: Path, metric: str = "f1", reference: Path | None = None) -> Leaderboard:
    return rank_runs(folder, metric, JUDGED, seed=0, reference=reference)


def write_folds(
    folder: Path, *typed: str, folds: tuple[int, ...] = (0, 1, 2), **how: float
) -> None:
    for fold in folds:
        write_run(
            folder / str(fold),
            *typed,
            "split=kfold",
            "split.folds=3",
            f"split.fold={fold}",
            patients={"dev": FOLDS[(fold + 1) % 3], "test": FOLDS[fold]},
            **how,
        )


# What is found


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("grid/10", "grid/2", "alone"):
        write_run(tmp_path / name)
    write_run(tmp_path / "grid" / "2" / "inside")  # what lies in a run is none
    write_run(tmp_path / ".trash" / "old")
    assert [run.name for run in find_runs(tmp_path)] == ["alone", "grid/2", "grid/10"]
    (run,) = find_runs(tmp_path / "alone")
    assert run.name == "alone"


def test_what_another_command_left_is_no_run(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    hydra = tmp_path / "0" / ".hydra" / "hydra.yaml"
    hydra.write_text(hydra.read_text().replace("train", "evaluate"))
    with told("holds no run of idc-train"):
        board(tmp_path)


def test_a_failure_counts_until_the_job_ends_well(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1.failed", "seed=1", error="first")
    write_run(tmp_path / "1.failed1", "seed=1", error="second")
    write_run(tmp_path / "2", "seed=2")
    (tmp_path / "2" / "results.json").unlink()
    assert [(run.name, run.problem) for run in board(tmp_path).failed] == [
        ("1.failed1", "second"),
        ("2", "not finished: it runs still, or was killed"),
    ]
    write_run(tmp_path / "1", "seed=1")
    assert [run.name for run in board(tmp_path).failed] == ["2"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("results.json", "{", "results.json is damaged"),
        ("results.json", "[]", "results.json was changed after its run had ended"),
        ("predictions/dev.csv", "a,b\n1,2\n", "dev.csv was changed after its run had ended"),
        ("predictions/test.csv", "", "test.csv was changed"),
        (".hydra/config.yaml", "a: [", "config.yaml was changed"),
        (".hydra/overrides.yaml", "[seed=1]", "overrides.yaml was changed"),
        (".hydra/hydra.yaml", None, "can't read"),
        ("predictions/dev.csv", None, "can't read"),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, content: str | None, said: str) -> None:
    write_run(tmp_path / "0")
    if content is None:
        (tmp_path / "0" / name).unlink()
    else:
        (tmp_path / "0" / name).write_text(content)
    with told(said, str(tmp_path / "0" / name)):
        board(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("0.", "1."), ('"seconds"', '"minutes"'), ("60", "61")])
def test_a_changed_number_is_told(tmp_path: Path, old: str, new: str) -> None:
    write_run(tmp_path / "0")
    path = tmp_path / "0" / "results.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with told(f"{path} was changed after its run had ended: train again"):
        board(tmp_path)


def test_any_name_of_a_patient_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "0", patients={"dev": ["NA", "null"], "test": ["007", "nan"]})
    (run,) = find_runs(tmp_path)
    assert set(run.predictions("dev")["patient_id"]) == {"NA", "null"}
    assert set(run.predictions("test")["patient_id"]) == {"007", "nan"}


# How it is ranked


def test_configurations_are_ranked_by_dev_whatever_test_says(tmp_path: Path) -> None:
    for number, (dev, test) in enumerate([(0.3, 3.0), (2.0, 0.1), (1.0, 1.0)]):
        run = tmp_path / str(number)
        write_run(run, f"model.head.dropout=0.{number}", quality=dev)
        worse = predictions(PATIENTS["test"], test)
        worse.to_csv(run / "predictions" / "test.csv", index=False)
        write_results(run / "results.json", read_results(run / "results.json"))
    ranked = board(tmp_path)
    assert [each.name for each in ranked.ranked] == ["1", "2", "0"]
    assert [each.varied for each in ranked.ranked] == [
        {"model.head.dropout": value} for value in (0.1, 0.2, 0.0)
    ]
    table = ranked.table()
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["dev_f1"].is_monotonic_decreasing


def test_a_lower_brier_score_is_better(tmp_path: Path) -> None:
    for number, quality in enumerate([0.2, 2.0]):
        write_run(tmp_path / str(number), f"seed={number}", quality=quality)
    assert [each.name for each in board(tmp_path, "brier").ranked] == ["1", "0"]


def test_only_what_differs_is_shown(tmp_path: Path) -> None:
    shared = ("data.batch_size=32", "model.head.hidden=[16]")
    write_run(tmp_path / "0", *shared, "scheduler=cosine", "optimizer.lr=0.1")
    write_run(tmp_path / "1", *shared, "seed=3")
    found = board(tmp_path)
    assert found.varied == ["scheduler", "optimizer.lr", "seed"]
    values = {each.name: each.varied for each in found.ranked}
    assert values["0"] == {"scheduler": "cosine", "optimizer.lr": 0.1, "seed": 0}
    assert values["1"]["scheduler"] == "onecycle"
    assert values["1"]["seed"] == 3


def test_keys_are_shortened_unless_two_would_be_called_alike(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "model.head.dropout=0.1", "data.batch_size=8")
    write_run(tmp_path / "1")
    assert list(board(tmp_path).short.values()) == ["dropout", "batch_size"]
    write_run(tmp_path / "2", "data.seed=4", "split.seed=4")
    assert "data.seed" in board(tmp_path).short.values()


# Whether it is more than chance


def test_a_difference_is_that_of_the_metrics_with_the_interval_of_paired_draws(
    tmp_path: Path,
) -> None:
    best = write_run(tmp_path / "0", "seed=0", quality=1.5)["dev"]
    other = write_run(tmp_path / "1", "seed=1", quality=0.8)["dev"]
    first, second = board(tmp_path, "auroc").ranked
    assert (first.name, second.name) == ("0", "1")
    difference = second.differences["dev"]
    for name, score, column in (("f1", f1_score, "predicted"), ("auroc", roc_auc_score, "proba")):
        wanted = score(other["true"], other[column]) - score(best["true"], best[column])
        assert difference[name].value == pytest.approx(wanted, abs=1e-12)
    # The same patients are drawn for both.
    rng = np.random.default_rng(0)
    names = np.array(PATIENTS["dev"])
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=JUDGED.draws)
    found = []
    for counts in drawn:
        one, two = (
            pd.concat(
                [
                    table[table["patient_id"] == n]
                    for n, c in zip(names, counts, strict=True)
                    for _ in range(c)
                ]
            )
            for table in (best, other)
        )
        found.append(
            roc_auc_score(two["true"], two["proba"]) - roc_auc_score(one["true"], one["proba"])
        )
    auroc, reach = difference["auroc"], t.ppf(0.975, 3) * np.sqrt(4 / 3) * np.std(found, ddof=1)
    assert auroc.value is not None
    expected = (max(auroc.value - reach, -1), auroc.value + reach)
    assert (auroc.low, auroc.high) == pytest.approx(expected, abs=1e-12)
    assert first.differences["dev"]["auroc"].high == 0


def test_all_are_compared_to_the_run_that_is_named(tmp_path: Path) -> None:
    write_folds(tmp_path / "low", "model.head.dropout=0.1", quality=0.5)
    write_folds(tmp_path / "high", "model.head.dropout=0.6", quality=2)
    write_run(tmp_path / "elsewhere", "seed=3", quality=1)
    found = board(tmp_path, "auroc", Path("low/1/"))  # any of its folds stands for all
    assert found.ranked[0].name == "high/0, high/1, high/2"
    high, low = (each for each in found.ranked if each.folds)
    assert found.base is low
    assert found.reference == "low/1"
    assert board(tmp_path, "auroc", tmp_path / "low" / "2").reference == "low/2"
    for name, interval in high.differences["test"].items():
        assert interval.value == pytest.approx(
            high.metrics["test"][name].value - low.metrics["test"][name].value
        )
    assert found.notes == [
        f"1 configurations were judged on other patients of {split} than low/1, so part of a "
        "difference to them is that between patients"
        for split in ("dev", "test")
    ]
    table = found.table().set_index("runs")
    assert set(table["compared_to"]) == {"low/0, low/1, low/2"}
    assert table["test_f1_difference"].to_dict() == {
        high.name: pytest.approx(high.differences["test"]["f1"].value),
        low.name: 0,
        "elsewhere": pytest.approx(np.nan, nan_ok=True),
    }


def test_a_reference_is_a_whole_run(tmp_path: Path) -> None:
    write_folds(tmp_path / "part", "seed=1", folds=(0, 2))
    write_run(tmp_path / "bad", error="no room")
    with told("reference=bad is no run below", "those are part/0, part/2"):
        board(tmp_path, reference=Path("bad"))
    with told("part/2 has results of 2 of 3 folds"):
        board(tmp_path, reference=tmp_path / "part" / "2")


def test_runs_of_other_patients_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "0", quality=2)
    write_run(tmp_path / "1", "split.seed=1", patients={**PATIENTS, "dev": ["x", "y"]}, quality=1)
    found = board(tmp_path)
    assert set(found.ranked[1].differences) == {"test"}
    assert found.notes == [
        "1 configurations were judged on other patients of dev than the best on dev, so part of a "
        "difference to them is that between patients"
    ]


# Folds


def test_folds_of_a_configuration_are_pooled(tmp_path: Path) -> None:
    write_folds(tmp_path / "low", "model.head.dropout=0.1", quality=0.5)
    write_folds(tmp_path / "high", "model.head.dropout=0.6", quality=2)
    found = board(tmp_path)
    assert found.varied == ["model.head.dropout"]
    first, second = found.ranked
    assert first.varied == {"model.head.dropout": 0.6}
    assert first.name == "high/0, high/1, high/2"
    assert (first.folds, first.missing, first.seconds) == (3, [], 180)
    pooled = pd.concat([predictions(names, 2) for names in FOLDS])
    for split in ("dev", "test"):  # each patient is in each once
        metrics = first.metrics[split]
        assert metrics["f1"].value == pytest.approx(f1_score(pooled["true"], pooled["predicted"]))
        by_fold = [
            f1_score(table["true"], table["predicted"])
            for table in (predictions(names, 2) for names in FOLDS)
        ]
        spread = first.spread[split]["f1"]
        assert (spread.mean, spread.sd) == pytest.approx(
            (np.mean(by_fold), np.std(by_fold, ddof=1))
        )
    assert second.differences["test"]["f1"].value == pytest.approx(
        second.metrics["test"]["f1"].value - first.metrics["test"]["f1"].value
    )
    table = found.table()
    assert table["folds"].tolist() == [3, 3]
    assert table["test_f1_sd"].iloc[0] == pytest.approx(first.spread["test"]["f1"].sd)


def test_folds_of_other_data_are_not_pooled(tmp_path: Path) -> None:
    for root in ("raw", "normalised"):
        write_folds(tmp_path / root, "data=idc", f"data.root={root}", quality=1)
    ranked = board(tmp_path).ranked
    assert sorted(str(each.varied["data.root"]) for each in ranked) == ["normalised", "raw"]
    assert [each.missing for each in ranked] == [[], []]
    assert ranked[0].name in ("normalised/0, normalised/1, normalised/2", "raw/0, raw/1, raw/2")


def test_a_configuration_that_lacks_folds_is_ranked_last(tmp_path: Path) -> None:
    write_folds(tmp_path / "whole", "seed=0", quality=0.5)
    write_folds(tmp_path / "part", "seed=1", folds=(0, 2), quality=3)
    found = board(tmp_path)
    assert [each.varied["seed"] for each in found.ranked] == [0, 1]
    assert found.ranked[1].missing == [1]
    assert found.ranked[1].differences == {}
    assert found.notes == ["part/0, part/2: no result of fold 1 of 3, so it isn't compared"]
    assert found.table()["problem"].tolist() == ["", "no result of fold 1 of 3"]


def test_a_fold_that_was_run_again_is_another_configuration(tmp_path: Path) -> None:
    write_folds(tmp_path / "one")
    write_folds(tmp_path / "two", folds=(1,))
    assert [each.name for each in board(tmp_path).ranked] == ["one/0, one/1, one/2", "two/1"]


def test_folds_that_share_patients_are_refused(tmp_path: Path) -> None:
    write_folds(tmp_path)
    shared = predictions(["a", "b"], 1)
    shared.to_csv(tmp_path / "1" / "predictions" / "test.csv", index=False)
    sealed = tmp_path / "1" / "results.json"
    write_results(sealed, read_results(sealed))
    with told("test of the runs 0, 1, 2 has patches of patient a twice"):
        board(tmp_path)


# What is written


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "a sweep (1)"
    for number, (dropout, rate) in enumerate([(0.1, 0.001), (0.1, 0.1), (0.6, 0.001), (0.6, 0.1)]):
        typed = (f"model.head.dropout={dropout}", f"scheduler.max_lr={rate}")
        write_run(folder / str(number), *typed, quality=number / 2 + 0.2)
    write_run(folder / "4.failed", "model.head.dropout=2", error="it <failed>")
    return folder


def test_the_command_writes_table_and_page(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(sweep.parent, capsys, monkeypatch, compare)
    ended = command(sweep.name, "metric=auroc", "results.draws=100")
    assert (ended.code, ended.err) == (0, "")
    assert "4.failed: it <failed>" in ended.out
    assert ended.left == []  # no run folder of its own
    table = pd.read_csv(sweep / "leaderboard.csv")
    assert table["runs"].astype(str).tolist() == ["3", "2", "1", "0", "4.failed"]
    assert table["problem"].tolist()[-1] == "it <failed>"
    assert table["rank"].tolist()[:4] == [1, 2, 3, 4]
    page = (sweep / "leaderboard.html").read_text()
    for part in (
        "AUROC of dev",
        "it &lt;failed&gt;",
        "model.head.dropout=2",
        "Leaderboard of a sw",
    ):
        assert part in page
    assert {path.name for path in (sweep / "leaderboard").iterdir()} == {
        "ranking.png",
        "varied.png",
    }
    # The leaderboard is no run, and a second one replaces the first.
    ended = command(sweep.name, "metric=f1", "reference=1")
    assert ended.code == 0
    assert "dev, minus" in ended.out
    table = pd.read_csv(sweep / "leaderboard.csv")
    assert table["rank"].notna().sum() == 4
    assert table["dev_f1_difference"].notna().sum() == 4
    assert table.set_index("runs").loc["1", "dev_f1_difference"] == 0
    assert "Differences to 1" in (sweep / "leaderboard.html").read_text()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("none",), "there is no folder none"),
        ((), "folder"),
        ((".", "metric=recal"), "metric"),
        ((".", "reference=1"), "reference=1 is no run below"),
        ((".", "metrik=f1"), "metrik"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(
    typed: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "0")
    before = sorted(tmp_path.rglob("*"))
    ended = Command(tmp_path, capsys, monkeypatch, compare)(*typed)
    assert ended.code == 1
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_metrics_that_are_undefined_can_be_drawn(tmp_path: Path) -> None:
    for number in range(2):
        write_run(tmp_path / str(number), f"seed={number}", quality=1)
        path = tmp_path / str(number) / "results.json"
        results = read_results(path)
        for split in ("dev", "test"):
            results[split]["auroc"] = {"value": None, "low": None, "high": None}
        write_results(path, results)
    found = board(tmp_path, "auroc")
    for draw in (draw_ranking, draw_varied):
        assert draw(tmp_path / "figure.png", found).path.stat().st_size > 5_000


def test_values_of_any_kind_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "0", "model.head.hidden=[8]", "data.augment.turns=true")
    write_run(tmp_path / "1", "model.head.hidden=[8,4]", "data.augment.turns=false")
    runs = find_runs(tmp_path)
    assert varied_keys(runs) == ["model.head.hidden", "data.augment.turns"]
    found = board(tmp_path)
    assert {each.varied["model.head.hidden"] for each in found.ranked} == {"[8]", "[8, 4]"}
    assert draw_varied(tmp_path / "figure.png", found).path.stat().st_size > 5_000
