"""Stains are normalised slide by slide, wherever a network takes pixels, and only there."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_data import pixels_of
from helpers_model import TINY, config_of, write_tissue
from helpers_runs import QUICK, evaluation, prediction, trained
from PIL import Image

from idc_lightning.data import stains
from idc_lightning.data.batches import gather
from idc_lightning.data.grid import PATCH
from idc_lightning.data.resident import resident_pixels
from idc_lightning.data.stains import DENSITY, LEAST, REFERENCE, TISSUE, Stains, measure_stains
from idc_lightning.evaluate import evaluate
from idc_lightning.predict import predict
from idc_lightning.ranks import ALONE
from idc_lightning.train import train
from idc_lightning.training import build_data

SLIDE = "data.stain_normalisation=slide"


def tissue(count: int, seed: int = 0) -> np.ndarray:
    """Patches with pink and purple, and glass at the right, uint8 [count, 50, 50, 3]."""
    rng = np.random.default_rng(seed)
    shape = (count, PATCH, PATCH, 3)
    pixels = rng.integers((140, 90, 130), (210, 180, 200), shape).astype(np.uint8)
    pixels[:, :, 40:] = 255
    return pixels


def dyed(pixels: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """The same tissue that took up more or less of each dye."""
    return np.rint(255 * np.exp(-DENSITY[pixels] * factors)).astype(np.uint8)


def measured(pixels: np.ndarray, patients: list[str]) -> Stains:
    places = np.arange(len(pixels))
    return measure_stains(pd.Series(patients), places, pixels.__getitem__, len(pixels))


def density(pixels: np.ndarray) -> np.ndarray:
    """Mean optical density of tissue, [3]."""
    found = DENSITY[pixels].reshape(-1, 3)
    return np.array([channel[channel > TISSUE].mean() for channel in found.T])


def test_the_same_tissue_looks_alike_however_it_was_dyed() -> None:
    same = tissue(5)
    pixels = np.concatenate([same, dyed(same, (0.8, 1.2, 1.3))])
    every = np.arange(10)
    found = measured(pixels, ["a"] * 5 + ["b"] * 5).apply(pixels, every)
    assert np.abs(found[:5].astype(int) - found[5:]).max() <= 3
    assert np.abs(pixels[:5].astype(int) - pixels[5:]).max() > 20
    assert density(found) == pytest.approx(REFERENCE, rel=0.01)
    assert (found[:, :, 40:] == 255).all()


def test_a_slide_does_not_depend_on_another() -> None:
    pixels = np.concatenate([tissue(4), dyed(tissue(3, seed=1), (0.7, 0.7, 0.7))])
    both = measured(pixels, ["a"] * 4 + ["b"] * 3).apply(pixels, np.arange(7))
    alone = measured(pixels[4:], ["b"] * 3).apply(pixels[4:], np.arange(3))
    np.testing.assert_array_equal(both[4:], alone)


def test_places_of_a_pack_are_told_from_rows_of_a_table() -> None:
    pixels = np.concatenate([tissue(8), dyed(tissue(9, seed=1), (0.8, 0.8, 0.9))])
    left_out = [0, 2, 13]
    places = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(17), left_out))
    ids = pd.Series(np.where(places < 8, "a", "b"))
    found = measure_stains(ids, places, pixels.__getitem__, len(pixels))
    changed = found.apply(pixels, np.arange(17))
    np.testing.assert_array_equal(changed[left_out], pixels[left_out])
    for own in (places[ids == "a"], places[ids == "b"]):
        assert density(changed[own]) == pytest.approx(REFERENCE, rel=0.01)
    grid = np.array([[6, 1], [4, 3]])
    np.testing.assert_array_equal(found.apply(pixels[grid], grid), changed[grid])


def test_stains_of_too_little_tissue_are_left_as_they_are() -> None:
    pixels = np.full((20, PATCH, PATCH, 3), 255, np.uint8)
    pixels[:12] = tissue(12)
    few = pixels.copy()
    few[6:12, :, 33:] = 255
    assert 6 * 33 * PATCH < LEAST <= 6 * 40 * PATCH
    patients = ["a"] * 6 + ["few"] * 6 + ["white"] * 8
    found = measured(few, patients)
    assert found.unmeasured == ("few", "white")
    np.testing.assert_array_equal(found.apply(few, np.arange(20))[6:], few[6:])
    assert measured(pixels, patients).unmeasured == ("white",)


def test_ink_changes_stains_within_limits_only() -> None:
    dark = np.full((5, PATCH, PATCH, 3), 3, np.uint8)
    found = measured(dark, ["ink"] * 5).apply(dark, np.arange(5))
    assert (found == dyed(dark, (0.5, 0.5, 0.5))).all()


def test_slides_of_many_patches_are_measured_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stains, "SAMPLE", 10)
    pixels, asked = tissue(45), []

    def read(places: np.ndarray) -> np.ndarray:
        asked.extend(places)
        return pixels[places]

    measure_stains(pd.Series(["a"] * 45), np.arange(45), read, 45)
    assert asked == list(range(0, 45, 4))


def test_networks_see_them_and_pictures_do_not(tmp_path: Path) -> None:
    data = build_data(config_of(*TINY, *write_tissue(tmp_path), f"cache={tmp_path}", SLIDE), ALONE)
    data.setup()
    store, rows = data.store, np.arange(len(data.table))
    raw, shown = store.read(rows), store.read_input(rows)
    assert density(raw) != pytest.approx(REFERENCE, rel=0.1)
    assert density(shown) == pytest.approx(REFERENCE, rel=0.1)
    np.testing.assert_array_equal(gather(store, torch.from_numpy(rows)), shown)
    resident = resident_pixels(store, torch.device("cpu"), "on")
    assert resident is not None
    np.testing.assert_array_equal(resident[:-1], shown)
    batch = next(iter(data.val_dataloader()))
    seen = batch["image"].permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(seen, shown[batch["cell"].flatten().numpy()])


def test_a_run_is_judged_and_predicts_with_the_stains_it_learned_from(tmp_path: Path) -> None:
    run = trained(tmp_path, SLIDE)
    plain = tmp_path / "plain"
    plain.mkdir()
    config = config_of(*TINY, *write_tissue(tmp_path), "trainer.epochs=1", *QUICK)
    train(config, plain)
    evaluate(evaluation(run), tmp_path / "judged")
    predict(prediction(run, tmp_path / "tissue" / "9"), tmp_path / "predicted")
    own, judged, unlike = (
        (folder / "predictions" / "test.csv").read_bytes()
        for folder in (run, tmp_path / "judged", plain)
    )
    assert judged == own != unlike
    columns = ["x", "y", "proba"]
    tables = (run / "predictions" / "test.csv", tmp_path / "predicted" / "predictions.csv")
    first, second = (pd.read_csv(file)[columns].sort_values(["x", "y"]) for file in tables)
    assert first.to_numpy() == pytest.approx(second.to_numpy(), abs=1e-5)


def test_features_of_normalised_stains_are_kept_apart(tmp_path: Path) -> None:
    frozen = ("model.freeze_backbone=true", f"cache={tmp_path}/cache")
    for name in ("none", "slide"):
        (tmp_path / name).mkdir()
        common = (*TINY, *write_tissue(tmp_path), *frozen, "trainer.epochs=1", *QUICK)
        for way in ("auto", "off"):
            given = (f"data.stain_normalisation={name}", f"data.features={way}")
            train(config_of(*common, *given), tmp_path / name / way)
        found = [
            pd.read_csv(tmp_path / name / way / "predictions" / "test.csv")["proba"]
            for way in ("auto", "off")
        ]
        assert found[0].to_numpy() == pytest.approx(found[1].to_numpy(), abs=1e-4)
    assert len(list((tmp_path / "cache" / "features").glob("*/features.json"))) == 2


def test_tissue_whose_stains_cannot_be_measured_is_told(tmp_path: Path) -> None:
    run = trained(tmp_path, SLIDE)
    new = tmp_path / "new" / "7" / "0"
    new.mkdir(parents=True)
    Image.fromarray(pixels_of(("7", 1, 1, 0))).save(new / "7_idx5_x1_y1_class0.png")
    predict(prediction(run, tmp_path / "new"), tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert any("too little tissue to measure its stains" in note for note in notes)
