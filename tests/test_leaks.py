"""No run is judged on patients or images that it has seen, whatever they are called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_data import place_of
from helpers_model import told
from helpers_runs import evaluation, prediction, trained
from PIL import Image

from idc_lightning.data.decode import image_keys
from idc_lightning.data.grid import file_name
from idc_lightning.evaluate import evaluate
from idc_lightning.leaks import check_pretraining
from idc_lightning.predict import predict
from idc_lightning.runs import read_run


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
    known = read_run(run)
    rows = pd.DataFrame(
        {
            "patient_id": ["n", "n", "m", "o"],
            "split": ["train", "train", "test", "dev"],
            "path": ["n/1", "n/2", "m/1", "o/1"],
            "digest": [f"{int(key) % 2**64:016x}{'0' * 8}" for key in known.train_images[:4]],
            "blank": [False, False, False, True],
        }
    )
    assert image_keys(rows["digest"]).tolist() == known.train_images[:4].tolist()
    with told("was trained on 1 images of this run's dev and test (m/1)"):
        check_pretraining(known, rows)
    check_pretraining(known, rows[rows["patient_id"] != "m"])
    rows["patient_id"] = ["n", "n", "102", "o"]
    with told("knew 1 patients of this run's dev and test (102)"):
        check_pretraining(known, rows)


def test_keys_are_as_many_as_images() -> None:
    digests = pd.Series([f"{number:024x}" for number in (0, 2**95, 2**31, 2**64)])
    assert len(np.unique(image_keys(digests))) == 3
    assert image_keys(digests).dtype == np.int64
    assert len(image_keys(digests[:0])) == 0
