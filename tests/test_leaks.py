"""No run is judged on patients or images that it has seen, whatever they are called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_data import place_of
from helpers_model import PATIENTS, TINY, config_of, told
from helpers_runs import QUICK, evaluation, prediction, trained
from PIL import Image, ImageOps

from idc_lightning.config import Config
from idc_lightning.data.decode import image_keys
from idc_lightning.data.grid import file_name
from idc_lightning.evaluate import evaluate
from idc_lightning.leaks import check_start
from idc_lightning.predict import predict
from idc_lightning.runs import read_run
from idc_lightning.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to which nothing is done."""
    return trained(tmp_path_factory.mktemp("seen"))


def rename(tissue: Path, patient: str, new: str, root: Path, *, whole: bool = True) -> Path:
    """Copy a patient's patches to another data set, under another name and written anew."""
    for path in sorted((tissue / patient).rglob("*.png")):
        _, _, x, y, target = path.stem.replace("class", "").split("_")
        place = place_of(root, (new, int(x[1:]), int(y[1:]), int(target)))
        with Image.open(path) as image:
            image.save(place, compress_level=1)
        if not whole:
            break
    return root


def test_train_images_under_other_names_are_refused(run: Path, tmp_path: Path) -> None:
    tissue = run.parent / "tissue"
    other = rename(tissue, "102", "zz", tmp_path / "other", whole=False)
    rename(tissue, "104", "yy", other)
    name = file_name("zz", 101, 1, 0)
    with told("leak: 1 patches of", "was trained on", f"zz/0/{name}", "delete them"):
        evaluate(evaluation(run, f"data.root={other}"), tmp_path / "judged")
    shutil.rmtree(other / "zz")
    evaluate(evaluation(run, f"data.root={other}"), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text())["patients"] == {"new": 1}


def test_a_prediction_tells_of_train_images_and_does_not_judge_them(
    run: Path, tmp_path: Path
) -> None:
    tissue = run.parent / "tissue"
    other = rename(tissue, "102", "zz", tmp_path / "other")
    rename(tissue, "104", "yy", other)
    predictions = predict(prediction(run, other), tmp_path / "out")
    assert set(predictions["patient_id"]) == {"yy", "zz"}
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert any(
        note.startswith("the run was trained on 9 of these images, under names of other patients")
        for note in found["notes"]
    )
    judged = pd.read_csv(run / "predictions" / "patients.csv").set_index("patient_id")
    mean = found["patient_mean"]["new"]["auroc"]["value"]
    assert mean == pytest.approx(judged.loc[104, "auroc"], abs=1e-5)


def test_weights_that_know_images_of_dev_or_test_are_not_taken(run: Path) -> None:
    known = read_run(run).seen
    rows = pd.DataFrame(
        {
            "patient_id": ["n", "n", "m", "o"],
            "split": ["train", "train", "test", "dev"],
            "path": ["n/1", "n/2", "m/1", "o/1"],
            "digest": [f"{int(key) % 2**64:016x}{'0' * 8}" for key in known.images[:4]],
            "blank": [False, False, False, True],
        }
    )
    assert image_keys(rows["digest"]).tolist() == known.images[:4].tolist()
    with told("model.weights=a was trained on 1 images of this run's dev and test (m/1)"):
        check_start("model.weights=a", known, rows)
    check_start("model.weights=a", known, rows[rows["patient_id"] != "m"])
    rows["patient_id"] = ["n", "n", "102", "o"]
    with told("model.weights=a knew 1 patients of this run's dev and test (102)"):
        check_start("model.weights=a", known, rows)


# Weights that began with those of another run


@pytest.fixture(scope="module")
def later(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other patients, which began with the backbone of the first run."""
    folder = tmp_path_factory.mktemp("later")
    for path in sorted((run.parent / "tissue").rglob("*.png")):
        _, _, x, y, target = path.stem.replace("class", "").split("_")
        patient = f"n{path.parent.parent.name}"
        place = place_of(folder / "tissue", (patient, int(x[1:]), int(y[1:]), int(target)))
        with Image.open(path) as image:
            ImageOps.invert(image).save(place)
    splits = pd.read_csv(run.parent / "own.csv", dtype=str)
    splits.assign(patient_id="n" + splits["patient_id"]).to_csv(folder / "own.csv", index=False)
    (folder / "run").mkdir()
    train(after(run, folder, "scheduler=none", "trainer.epochs=1"), folder / "run")
    return folder / "run"


def after(first: Path, folder: Path, *overrides: str) -> Config:
    """The configuration of a run in a folder that begins with weights of another."""
    places = (f"data.root={folder}/tissue", f"split.path={folder}/own.csv")
    weights = f"model.weights={first}/checkpoints/best.ckpt"
    return config_of(*TINY, *places, weights, *QUICK, *overrides)


def test_a_checkpoint_knows_what_its_first_weights_have_seen(run: Path, later: Path) -> None:
    first, second = read_run(run).seen, read_run(later)
    assert set(second.splits.index) == {f"n{patient}" for patient in PATIENTS}
    earlier = first.splits[first.splits != "test"]
    assert second.seen.splits.to_dict() == second.splits.to_dict() | earlier.to_dict()
    assert set(first.images) < set(second.seen.images)
    assert len(second.seen.images) == 2 * len(first.images)


def test_what_was_seen_before_is_not_judged(run: Path, later: Path, tmp_path: Path) -> None:
    tissue = run.parent / "tissue"
    found = evaluate(evaluation(later, f"data.root={tissue}"), tmp_path / "judged")
    assert found["patients"] == {"dev": 2, "new": 1}
    assert any("left out train patients of the run: 3" in note for note in found["notes"])
    predict(prediction(later, tissue), tmp_path / "predicted")
    said = json.loads((tmp_path / "predicted" / "results.json").read_text())
    assert any("was trained on 3 of these patients (101, 102, 103)" in n for n in said["notes"])
    assert set(said["patient_mean"]) == {"dev", "new"}
    other = rename(tissue, "102", "zz", tmp_path / "other")
    with told("leak: 9 patches of", "are images that the run was trained on"):
        evaluate(evaluation(later, f"data.root={other}"), tmp_path / "copies")


def test_weights_are_refused_for_what_their_first_weights_have_seen(
    run: Path, later: Path, tmp_path: Path
) -> None:
    splits = pd.read_csv(run.parent / "own.csv", dtype=str)
    swapped = {"101": "test", "9": "train"}
    splits["split"] = splits["patient_id"].map(swapped).fillna(splits["split"])
    splits.to_csv(tmp_path / "own.csv", index=False)
    shutil.copytree(run.parent / "tissue", tmp_path / "tissue")
    for first in (run, later):
        with told(f"model.weights={first}/", "knew 1 patients of this run's dev and test (101)"):
            train(after(first, tmp_path), tmp_path / "run")


def test_a_run_that_goes_on_still_knows_it(run: Path, later: Path, tmp_path: Path) -> None:
    shutil.copytree(later.parent, tmp_path / "later")
    shutil.copytree(run, tmp_path / "first")
    goes_on = after(tmp_path / "first", tmp_path / "later", "scheduler=none", "trainer.epochs=2")
    shutil.rmtree(tmp_path / "first")
    train(goes_on, tmp_path / "later" / "run")
    own = read_run(tmp_path / "later" / "run" / "checkpoints" / "last.ckpt").seen
    before = read_run(later).seen
    assert own.splits.to_dict() == before.splits.to_dict()
    assert own.images.tolist() == before.images.tolist()


def test_keys_are_as_many_as_images() -> None:
    digests = pd.Series([f"{number:024x}" for number in (0, 2**95, 2**31, 2**64)])
    assert len(np.unique(image_keys(digests))) == 3
    assert image_keys(digests).dtype == np.int64
    assert len(image_keys(digests[:0])) == 0
