"""``idc-predict``: what a finished run says of new tissue, labelled or not."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_command import Command, Ended
from helpers_model import told
from helpers_runs import prediction, trained
from PIL import Image

from idc_lightning.classifier import load_classifier
from idc_lightning.data.decode import read_patch
from idc_lightning.data.grid import NO_LABEL, file_name
from idc_lightning.predict import called, main, predict

HOSTILE = "<script>alert(1)<script> $x^2$ [red]"
LONG = "long name " * 12 + "end"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to which nothing is done."""
    return trained(tmp_path_factory.mktemp("predicting"), "data.edge_patches=pad")


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", dtype={"patient_id": str})


def copied(
    run: Path, patient: str, new: Path, *, name: str | None = None, plain: bool = True
) -> Path:
    """Copy a patient of the run into one folder, under another name, without labels if plain."""
    new.mkdir(parents=True, exist_ok=True)
    for path in sorted((run.parent / "tissue" / patient).rglob("*.png")):
        target = path.name.replace(f"{patient}_idx5", f"{name or patient}_idx5")
        shutil.copy(path, new / (re.sub(r"_class\d", "", target) if plain else target))
    return new


def test_patches_without_labels_get_the_probabilities_of_the_run(run: Path, tmp_path: Path) -> None:
    found = predict(prediction(run, copied(run, "9", tmp_path / "new")), tmp_path / "out")
    own = pd.read_csv(run / "predictions" / "test.csv", dtype={"patient_id": str})
    written = table(tmp_path / "out")
    assert list(written.columns) == ["patient_id", "x", "y", "true", "predicted", "proba"]
    assert (written["true"] == NO_LABEL).all()
    columns = ["patient_id", "x", "y", "predicted", "proba"]
    pd.testing.assert_frame_equal(written[columns], own[columns], rtol=1e-6)
    assert found["patient_id"].tolist() == written["patient_id"].tolist()
    said = results(tmp_path / "out")
    assert (said["patients"], said["patches"], said["labelled"]) == (1, 9, 0)
    assert said["threshold"] == results(run)["threshold"]
    assert said["temperature"] == results(run)["temperature"]
    assert said["bias"] == results(run)["bias"]
    assert said["notes"] == []
    assert "new" not in said


def test_normalisation_and_calibration_are_those_of_the_checkpoint(
    run: Path, tmp_path: Path
) -> None:
    new = copied(run, "9", tmp_path / "new")
    found = predict(prediction(run, new), tmp_path / "out")
    model = load_classifier(run / "checkpoints" / "best.ckpt")
    row = found.iloc[3]
    pixels = read_patch(new / f"9_idx5_x{row.x}_y{row.y}.png")
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        logits = model(image).flatten(0, -2)
    proba = float(model.decision.probability(logits)[0])
    assert row.proba == pytest.approx(proba, rel=1e-4)
    assert row.predicted == int(proba >= model.decision.threshold)


def test_labelled_patches_among_others_are_judged(run: Path, tmp_path: Path) -> None:
    new = copied(run, "9", tmp_path / "new", name="b", plain=False)
    copied(run, "9", new / "deep", name="a")
    predict(prediction(run, new), tmp_path / "out")
    said = results(tmp_path / "out")
    own = results(run)["test"]
    assert said["labelled"] == 9
    # The labelled ones are the run's only test patient under another name.
    for name in ("f1", "auroc", "brier"):
        assert said["new"][name]["value"] == pytest.approx(own[name]["value"], rel=1e-6)
    written = table(tmp_path / "out").set_index("patient_id")
    assert (written.loc["a", "true"] == NO_LABEL).all()
    assert written.loc["b", "true"].sum() == 3
    assert np.allclose(written.loc["a", "proba"], written.loc["b", "proba"], rtol=1e-6)


def test_patients_whom_the_run_knows_are_told(run: Path, tmp_path: Path) -> None:
    for patient in ("101", "103", "104", "9"):
        copied(run, patient, tmp_path / "new")
    predict(prediction(run, tmp_path / "new"), tmp_path / "out")
    trained_on, tuned_on = results(tmp_path / "out")["notes"]
    assert not {"dev", "test", "new"} & set(results(tmp_path / "out"))
    assert trained_on.startswith("the run was trained on 2 of these patients (101, 103): ")
    assert tuned_on.startswith("the run was tuned on 1 of these patients (104): ")


def test_labelled_patients_are_judged_in_their_split_and_train_ones_not_at_all(
    run: Path, tmp_path: Path
) -> None:
    for patient in ("101", "103", "104", "9"):
        copied(run, patient, tmp_path / "new", plain=False)
    copied(run, "105", tmp_path / "new", name="stranger", plain=False)
    found = predict(prediction(run, tmp_path / "new"), tmp_path / "out")
    assert set(found["patient_id"]) == {"101", "103", "104", "9", "stranger"}
    said = results(tmp_path / "out")
    assert {"dev", "test", "new"} <= set(said)
    assert said["patient_mean"]["dev"]["correct"]["patients"] == 1
    assert said["patient_mean"]["new"]["correct"]["patients"] == 1
    patients = pd.read_csv(tmp_path / "out" / "patients.csv", dtype={"patient_id": str})
    assert set(patients["patient_id"]) == set(found["patient_id"])
    for name in ("f1", "auroc", "brier"):
        assert said["test"][name]["value"] == pytest.approx(results(run)["test"][name]["value"])


def test_a_threshold_can_be_given_but_no_rule(run: Path, tmp_path: Path) -> None:
    new = copied(run, "9", tmp_path / "new")
    found = predict(prediction(run, new, "results.threshold=0.0001"), tmp_path / "out")
    assert (found["predicted"] == 1).all()
    with told("configuration: results.threshold=max_f1 should be a valid number"):
        prediction(run, new, "results.threshold=max_f1")


def test_the_last_checkpoint_predicts_without_a_decision(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "alone.ckpt")
    new = copied(run, "9", tmp_path / "new")
    predict(prediction(tmp_path / "alone.ckpt", new, "report.enabled=true"), tmp_path / "out")
    said = results(tmp_path / "out")
    assert (said["temperature"], said["bias"], said["threshold"]) == (1.0, 0.0, 0.5)
    assert said["notes"][0].startswith("alone.ckpt holds no temperature, bias and threshold")
    assert "from the probability 0.500 on" in (tmp_path / "out" / "report.html").read_text()


def test_edge_patches_are_treated_as_in_training(tmp_path: Path) -> None:
    run = trained(tmp_path, "data.edge_patches=drop")
    new = copied(run, "9", tmp_path / "new")
    with Image.open(new / "9_idx5_x1_y1.png") as image:
        image.crop((0, 0, 50, 20)).save(new / "9_idx5_x1_y1.png")
    predict(prediction(run, new), tmp_path / "out")
    assert results(tmp_path / "out")["notes"] == ["left out 1 edge patches"]
    assert len(table(tmp_path / "out")) == 8


def test_broken_and_double_patches_can_be_left_out(run: Path, tmp_path: Path) -> None:
    new = copied(run, "9", tmp_path / "new")
    (new / "9_idx5_x1_y1.png").write_bytes(b"broken")
    (new / "more").mkdir()
    shutil.copy(new / "9_idx5_x51_y1.png", new / "more" / "9_x101_y1.png")
    shutil.copy(new / "9_idx5_x51_y51.png", new / "more" / "9_x51_y51.png")
    leave = ("data.on_broken=skip", "data.on_conflict=drop")
    predict(prediction(run, new, *leave), tmp_path / "out")
    assert results(tmp_path / "out")["notes"] == [
        "left out 1 copies of patches",
        "left out 2 patches that share their position with another one",
        "left out 1 patches that can't be read",
    ]
    assert len(table(tmp_path / "out")) == 7


def test_patients_are_listed_with_the_most_idc_first() -> None:
    rows = [("a", NO_LABEL, 0, 0.1), ("b", 1, 1, 0.9), ("b", NO_LABEL, 0, 0.3), ("c", 0, 0, 0.2)]
    predictions = pd.DataFrame(rows, columns=["patient_id", "true", "predicted", "proba"])
    found = called(predictions)
    assert found["patient_id"].tolist() == ["b", "c", "a"]
    assert found["called_idc"].tolist() == [0.5, 0, 0]
    assert found["probability"].tolist() == pytest.approx([0.6, 0.2, 0.1])
    assert found["idc"].tolist()[:2] == [1, 0]
    assert np.isnan(found["idc"].iloc[2])
    assert "idc" not in called(predictions[predictions["true"] == NO_LABEL])


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    return Command(tmp_path, capsys, monkeypatch, main)


def test_the_command_writes_all_and_escapes_names(
    run: Path, tmp_path: Path, command: Command
) -> None:
    new = copied(run, "9", tmp_path / "10253" / "x [b]", name=HOSTILE, plain=False)
    copied(run, "9", new / "deep", name=LONG)
    ended = command(
        f"run={run}",
        "input=10253",
        "report=default",
        'hydra.run.dir="out [i]"',
        "results.draws=50",
    )
    assert (ended.code, ended.err) == (0, "")
    assert HOSTILE in ended.out
    out = tmp_path / "out [i]"
    assert f"written to: {out}" in ended.out
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {"predictions.csv", "results.json", "report.html", ".hydra/config.yaml"} <= files
    landscapes = [name for name in files if name.startswith("figures/landscapes/patient_")]
    assert len(landscapes) == 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;script&gt; $x^2$ [red]" in page
    assert page.count("<script>") == 1
    for heading in ("Patients", "Landscapes", "Results", "By patient", "Model card"):
        assert f">{heading}</h2>" in page


def test_unlabelled_tissue_has_no_results_in_its_report(
    run: Path, tmp_path: Path, command: Command
) -> None:
    copied(run, "9", tmp_path / "new")
    ended = command(f"run={run}", "input=new", "report.patients=[9]", "hydra.run.dir=out")
    assert (ended.code, ended.err) == (0, "")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", page)[:3] == ["Patients", "Landscapes", "Model card"]


def mistaken(command: Command, *overrides: str) -> Ended:
    """Run a command that must end with one line and leave no folder."""
    ended = command("report=none", *overrides)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert ended.left == []
    return ended


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("run={run}",), "input is missing: idc-predict run=<run folder or checkpoint> input="),
        (("input=new",), "run is missing: idc-predict run="),
        (("run={run}", "input=gone"), "input=gone doesn't exist: give a folder of patches"),
        (("run={run}", "input=new/9_idx5_x1_y1.png"), "9_idx5_x1_y1.png is no folder"),
        (("run={run}", "input=empty"), "no patches in input=empty"),
        (("run={run}", "input=large"), "100x100 px, but the run was trained on 50x50 px"),
        (("run={run}", "input=off"), "don't lie on the grid of 50 px"),
        (("run={run}", "input=double"), "2 patches of double share their position"),
        (
            ("run={run}", "input=new", "report.patients=[7]"),
            "report.patients: the data has no patient 7",
        ),
        (("run={run}", "input=new", "results.sensitivity=0.8"), "unknown key results.sensitivity"),
        (("run={run}", "input=new", "data.root=x"), "unknown key data.root"),
        (("run=new", "input=new"), "run=new holds no checkpoints/best.ckpt"),
        (("run={run}/results.json", "input=new"), "damaged, incomplete or no checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Path, tmp_path: Path, command: Command, overrides: tuple[str, ...], part: str
) -> None:
    new = copied(run, "9", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    for folder, name, size in (
        ("large", "9_x1_y1.png", 100),
        ("off", "9_x26_y1.png", 50),
        ("double", "9_x1_y1.png", 50),
    ):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (size, size)).save(tmp_path / folder / name)
    shutil.copy(new / "9_idx5_x51_y1.png", tmp_path / "double" / file_name("9", 1, 1, 0))
    ended = mistaken(command, *[override.format(run=run) for override in overrides])
    assert ended.err.count("\n") == 1
    assert part in ended.err


def test_broken_files_are_listed(run: Path, tmp_path: Path, command: Command) -> None:
    new = copied(run, "9", tmp_path / "new")
    (new / "9_idx5_x1_y1.png").write_bytes(b"")
    ended = mistaken(command, f"run={run}", "input=new")
    assert "1 patches of new can't be read" in ended.err
    assert "data.on_broken=skip" in ended.err
    assert "9_idx5_x1_y1.png: empty file" in ended.err


def test_a_position_far_off_costs_a_picture_only(run: Path, tmp_path: Path) -> None:
    new = copied(run, "9", tmp_path / "new", name="far")
    copied(run, "9", new)
    shutil.copy(new / "far_idx5_x1_y1.png", new / "far_x9999951_y9999951.png")
    predict(prediction(run, new, "report.enabled=true"), tmp_path / "out")
    drawn = [path.name for path in (tmp_path / "out" / "figures" / "landscapes").iterdir()]
    assert drawn == ["patient_9.png"]
    assert len(table(tmp_path / "out")) == 19
    assert results(tmp_path / "out")["notes"] == [
        "not drawn, since their patches lie too far apart: patients far"
    ]


def test_weights_that_give_no_numbers_are_told(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    name = next(name for name in content["state_dict"] if name.startswith("network.head"))
    content["state_dict"][name].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    new = copied(run, "9", tmp_path / "new")
    with told("logits are not finite: the weights in", "nan.ckpt can't be used"):
        predict(prediction(tmp_path / "nan.ckpt", new), tmp_path / "out")
