"""``idc-evaluate``: a finished run judged again, on its own data and on other tissue."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_command import Command
from helpers_data import make_patches, place_of
from helpers_model import told
from helpers_runs import evaluation, trained
from PIL import Image

from idc_lightning.evaluate import evaluate, main
from idc_lightning.results.calibration import choose_threshold

JUDGED = ("dev", "test")
NUMBERS = (*JUDGED, "at_0.5", "patient_mean", "threshold", "temperature", "bias")

HOSTILE = "<script>alert(1)<script> $x^2$ [red] " + "long " * 20 + "end"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to which nothing is done."""
    return trained(tmp_path_factory.mktemp("evaluated"))


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def table(folder: Path, split: str) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions" / f"{split}.csv", dtype={"patient_id": str})


def check_same(run: Path, out: Path) -> None:
    """The same predictions, byte by byte, and the same numbers."""
    for name in ("dev", "test", "patients"):
        file = Path("predictions", f"{name}.csv")
        assert (out / file).read_bytes() == (run / file).read_bytes()
    own, again = results(run), results(out)
    assert {key: again[key] for key in NUMBERS} == {key: own[key] for key in NUMBERS}


def with_edges(root: Path) -> None:
    """Cut some patches of each patient as they are at the right edge of the tissue."""
    for path in sorted(root.rglob("*_x151_*.png")):
        with Image.open(path) as image:
            image.crop((0, 0, 20, 50)).save(path)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.sample=40", "data.on_broken=skip"),
        ("callbacks.ema_decay=0.5", "results.threshold=sensitivity"),
        ("trainer.precision=auto", "data.eval_batch_size=7"),
        ("results.threshold=0.31", "data.augment.stain_jitter=0.1", "seed=5"),
    ],
    ids=["tiny", "sample", "averaged", "precision", "threshold"],
)
def test_a_run_on_its_own_data_says_what_it_said(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    run = trained(tmp_path, *overrides)
    evaluate(evaluation(run), tmp_path / "again")
    check_same(run, tmp_path / "again")
    assert results(tmp_path / "again")["patients"] == {"dev": 2, "test": 1}
    assert results(tmp_path / "again")["notes"] == []


def test_edge_patches_are_dropped_again(tmp_path: Path) -> None:
    trained(tmp_path / "first")  # makes the tissue
    with_edges(tmp_path / "first" / "tissue")
    run = trained(tmp_path, f"data.root={tmp_path}/first/tissue", "data.edge_patches=drop")
    evaluate(evaluation(run), tmp_path / "again")
    check_same(run, tmp_path / "again")
    found = results(tmp_path / "again")
    assert found["patches"] == {"dev": 14, "test": 7}
    assert found["notes"] == ["left out 6 edge patches"]


def test_a_root_given_relative_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        run = trained(tmp_path, "data.root=tissue")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluate(evaluation(Path("../run")), tmp_path / "again")
    check_same(run, tmp_path / "again")


def test_patients_that_were_added_to_the_runs_own_data_stay_out(tmp_path: Path) -> None:
    run = trained(tmp_path)
    make_patches(tmp_path / "tissue", [("added", 1, 1, 0), ("added", 51, 1, 1)])
    evaluate(evaluation(run), tmp_path / "again")
    check_same(run, tmp_path / "again")


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_alone_is_enough(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(run / "checkpoints" / name, tmp_path / "copy.ckpt")
    evaluate(evaluation(tmp_path / "copy.ckpt"), tmp_path / "again")
    if name == "best.ckpt":
        check_same(run, tmp_path / "again")
        return
    again = results(tmp_path / "again")
    assert (again["temperature"], again["bias"], again["threshold"]) == (1.0, 0.0, 0.5)
    # The only epoch is the best and the last, and only the calibration differs.
    assert again["dev"]["auroc"] == results(run)["dev"]["auroc"]
    assert again["dev"]["brier"] != results(run)["dev"]["brier"]
    assert "copy.ckpt holds no temperature, bias and threshold" in again["notes"][0]


def test_a_threshold_is_taken_or_chosen_anew_on_dev(run: Path, tmp_path: Path) -> None:
    evaluate(evaluation(run, "results.threshold=0.123"), tmp_path / "number")
    dev, own = table(tmp_path / "number", "dev"), table(run, "dev")
    assert results(tmp_path / "number")["threshold"] == 0.123
    assert (dev["predicted"] == (dev["proba"] >= 0.123)).all()
    assert dev["proba"].equals(own["proba"])
    evaluate(
        evaluation(run, "results.threshold=sensitivity", "results.sensitivity=0.5"),
        tmp_path / "rule",
    )
    chosen = choose_threshold(own["true"].to_numpy(), own["proba"].to_numpy(), "sensitivity", 0.5)
    assert results(tmp_path / "rule")["threshold"] == pytest.approx(chosen, abs=1e-6)
    assert results(tmp_path / "rule")["dev"]["recall"]["value"] >= 0.5
    evaluate(evaluation(run, "results.threshold=max_f1"), tmp_path / "f1")
    assert results(tmp_path / "f1")["threshold"] == results(run)["threshold"]


def test_other_data_is_judged_by_what_the_run_knows_of_it(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "hospital"
    shutil.copytree(run.parent / "tissue", root)
    shutil.rmtree(root / "104")
    new = [(f"n{i}", 1 + 50 * x, 1, int(x > 2)) for i in range(2) for x in range(5)]
    make_patches(root, new)
    found = evaluate(evaluation(run, f"data.root={root}"), tmp_path / "again")
    assert found["patients"] == {"dev": 1, "test": 1, "new": 2}
    assert found["patches"] == {"dev": 9, "test": 9, "new": 10}
    assert found["notes"] == ["left out train patients of the run: 3"]
    known = table(run, "dev").query("patient_id == '105'").reset_index(drop=True)
    pd.testing.assert_frame_equal(table(tmp_path / "again", "dev"), known, rtol=1e-5)
    assert set(table(tmp_path / "again", "new")["patient_id"]) == {"n0", "n1"}
    assert found["threshold"] == results(run)["threshold"]


def test_other_data_is_read_whole_though_the_run_took_a_sample(tmp_path: Path) -> None:
    run = trained(tmp_path, "data.sample=40")
    root = f"data.root={tmp_path}/tissue"
    assert evaluate(evaluation(run, root), tmp_path / "again")["patches"] == {"dev": 18, "test": 9}


def test_a_rule_needs_dev_patients(run: Path, tmp_path: Path) -> None:
    make_patches(tmp_path / "new", [("n", 1, 1, 0), ("n", 51, 1, 1)])
    with told("results.threshold=max_f1 is chosen on the run's dev patients", "give a number"):
        evaluate(evaluation(run, f"data.root={tmp_path}/new", "results.threshold=max_f1"), tmp_path)


def test_train_patients_alone_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "tissue" / "101", tmp_path / "new" / "101")
    with told(f"{tmp_path}/new holds no patients on whom the run can be judged"):
        evaluate(evaluation(run, f"data.root={tmp_path}/new"), tmp_path)


def test_data_of_another_patch_size_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    for number in range(3):
        patch = ("n", 1 + 50 * number, 1, 0)
        Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(place_of(tmp_path / "new", patch))
    with told("have 100x100 px, but the run was trained on 50x50 px"):
        evaluate(evaluation(run, f"data.root={tmp_path}/new"), tmp_path)


def test_patients_that_are_gone_are_told(tmp_path: Path) -> None:
    run = trained(tmp_path)
    shutil.rmtree(tmp_path / "tissue" / "104")
    shutil.rmtree(tmp_path / "tissue" / "101")
    found = evaluate(evaluation(run), tmp_path / "again")
    (note,) = found["notes"]
    assert note.startswith("dev and test patients of the run are gone from its data: 104; ")
    shutil.rmtree(tmp_path / "tissue")
    with told(f"data.root={tmp_path}/tissue doesn't exist", "give a folder or .zip"):
        evaluate(evaluation(run), tmp_path / "third")


def test_patches_that_are_gone_are_told(tmp_path: Path) -> None:
    run = trained(tmp_path)
    next((tmp_path / "tissue" / "104").rglob("*.png")).unlink()
    (note,) = evaluate(evaluation(run), tmp_path / "again")["notes"]
    assert note == "dev had 18 patches and has 17; so the numbers aren't those of the run"


def test_an_odd_log_leaves_out_its_curves_and_nothing_else(tmp_path: Path) -> None:
    run = trained(tmp_path)
    (run / "metrics.csv").write_text("epoch,step\n")
    evaluate(evaluation(run, "report.enabled=true", "report.patients=[]"), tmp_path / "again")
    check_same(run, tmp_path / "again")
    page = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    assert "metrics.csv is no log of a run" in page
    assert ">Training</h2>" not in page


def test_a_failed_run_can_be_judged_but_says_so(run: Path, tmp_path: Path) -> None:
    failed = tmp_path / "run.failed"
    (failed / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "last.ckpt", failed / "checkpoints" / "best.ckpt")
    (failed / "error.txt").write_text("interrupted\n")
    notes = evaluate(evaluation(failed), tmp_path / "again")["notes"]
    assert notes[0] == "the run run.failed failed, its error.txt says why"
    assert len(notes) == 2


@pytest.mark.parametrize("labels", [(0, 0), (1, 1)])
def test_tissue_of_one_class_gets_a_report(
    run: Path, tmp_path: Path, labels: tuple[int, int]
) -> None:
    make_patches(tmp_path / "new", [("n", 1 + 50 * i, 1, labels[i]) for i in range(2)])
    found = evaluate(
        evaluation(run, f"data.root={tmp_path}/new", "report.enabled=true"), tmp_path / "out"
    )
    assert found["new"]["auroc"] == {"value": None, "low": None, "high": None}
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_command_writes_all_and_escapes_names(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "new [blue]"
    patches = [(HOSTILE, 1 + 50 * x, 1 + 50 * y, int(x > 1)) for x in range(4) for y in range(2)]
    make_patches(root, [*patches, *[("9", 1, 1 + 50 * y, y % 2) for y in range(4)]])
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").symlink_to(run)
    command = Command(tmp_path, capsys, monkeypatch, main)
    ended = command(
        "run=~/mine",
        f'data.root="{root}"',
        "report=default",
        "results.draws=50",
        'hydra.run.dir="out [i]"',
    )
    assert (ended.code, ended.err) == (0, "")
    out = tmp_path / "out [i]"
    assert f"written to: {out}" in ended.out
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    landscapes = {name for name in files if name.startswith("figures/landscapes/")}
    assert {
        ".hydra/config.yaml",
        "predictions/new.csv",
        "predictions/patients.csv",
        "predictions/test.csv",
        "report.html",
        "results.json",
        "figures/confusion.png",
    } <= files
    assert len(landscapes) == 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;script&gt; $x^2$ [red]" in page
    assert len(re.findall("<script>", page)) == 1
    assert "Landscapes of new" in page
    assert "Evaluation of run" in page


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ((), "run is missing: idc-evaluate run=<run folder or checkpoint>"),
        (("run=nowhere",), "run=nowhere doesn't exist: give a run folder or a checkpoint"),
        (("run=10253",), "run=10253 doesn't exist"),
        (("run=.",), "run=. holds no checkpoints/best.ckpt"),
        (
            ("run={run}", "results.sensitivity=0.8"),
            "results.sensitivity has no effect, since results.threshold=null: add "
            "results.threshold=sensitivity",
        ),
        (("run={run}", "data.on_broken=skip"), "data.on_broken has no effect"),
        (("run={run}", "results.threshold=2"), "results.threshold=2 should be"),
        (("run={run}", "report.patients=[9,no]"), "report.patients: the data has no patient no"),
        (("run={run}", "data.root=nowhere"), "data.root=nowhere doesn't exist"),
        (("run={run}", "trainer.precision=16-mixed", "trainer.accelerator=cpu"), "needs a GPU"),
        (("run={run}", "data.sample=3"), "unknown key data.sample"),
        (
            ("run={run}", "trainer=cpu"),
            "idc-evaluate has no choices of trainer: set trainer.accelerator or trainer.precision",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    part: str,
) -> None:
    command = Command(tmp_path, capsys, monkeypatch, main)
    ended = command(*[override.format(run=run) for override in overrides])
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert part in ended.err
    assert ended.left == []
