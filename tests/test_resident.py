from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from helpers_data import checked
from helpers_model import TINY, config_of, told, write_tissue
from lightning.pytorch.callbacks import Callback
from test_batches import cells_of, slide, store_of
from torch import Tensor

import idc_lightning.data.resident as resident
from idc_lightning.classifier import IDCClassifier
from idc_lightning.data.batches import Batch, gather
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.grid import NO_CELL, PATCH
from idc_lightning.data.resident import resident_pixels
from idc_lightning.data.store import Store
from idc_lightning.trainer import build_trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


class Seen(Callback):
    """The batches that the network got, by stage, and its weights at the end of training."""

    def __init__(self) -> None:
        self.batches: dict[str, list[Batch]] = {"train": [], "dev": [], "test": []}
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, _: int) -> None:
        self.batches["train"].append(batch)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Batch, _: int) -> None:
        self.batches["dev"].append(batch)

    def on_test_batch_start(self, trainer: Any, module: Any, batch: Batch, _: int) -> None:
        self.batches["test"].append(batch)

    def on_train_end(self, trainer: Any, module: IDCClassifier) -> None:
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}


def seen_by_a_run(folder: Path, *overrides: str) -> tuple[Seen, IDCDataModule]:
    """Train two epochs with all augmentations, then test."""
    data_values = write_tissue(folder)
    jitter = ("data.augment.stain_jitter=0.1", "data.augment.brightness=0.1")
    config = config_of(*TINY, *data_values, *jitter, *overrides)
    lightning.seed_everything(config.seed, verbose=False)
    trainer = build_trainer(config, folder, interactive=False)
    seen = Seen()
    trainer.callbacks = [*trainer.callbacks, seen]  # type: ignore[attr-defined]
    data = IDCDataModule(config.data, config.split, seed=config.seed, cache=folder)
    model = IDCClassifier(config.model, config.optimizer, config.scheduler)
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    return seen, data


def test_a_run_on_resident_pixels_sees_the_same_batches_and_learns_the_same(
    tmp_path: Path,
) -> None:
    away, plain = seen_by_a_run(tmp_path / "off", "data.device_resident=off")
    here, there = seen_by_a_run(tmp_path / "on", "data.device_resident=on")
    assert "image" in next(iter(plain.val_dataloader()))
    assert "image" not in next(iter(there.val_dataloader()))  # else both would read the store
    for stage, batches in away.batches.items():
        assert batches
        for expected, batch in zip(batches, here.batches[stage], strict=True):
            assert batch.keys() == expected.keys()
            assert batch["patient_id"] == expected["patient_id"]
            for name in ("image", "label", "cell", "x", "y"):
                assert torch.equal(batch[name], expected[name]), (stage, name)
    assert away.weights.keys() == here.weights.keys()
    for name, value in away.weights.items():
        assert torch.equal(value, here.weights[name]), name


def packed_otherwise(store: Store) -> Store:
    """The same patches, whose pixels are packed in another order among those of others."""
    places = np.random.default_rng(0).permutation(len(store.table) + 5)[: len(store.table)]
    packed = np.full((len(store.table) + 5, PATCH, PATCH, 3), 77, np.uint8)
    packed[places] = store.read(store.table.index)
    return replace(store, packed=checked(packed), places=places)


@pytest.mark.parametrize("chunk", [4, 7, 4096], ids=lambda size: f"chunks of {size}")
@pytest.mark.parametrize("packing", [lambda store: store, packed_otherwise])
def test_cells_are_looked_up_as_in_the_store_and_missing_ones_are_white(
    chunk: int, packing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "CHUNK", chunk)
    store = packing(slide(4, 4, {(1, 1), (3, 3)}))
    pixels = resident_pixels(store, CPU, "on")
    assert pixels is not None
    cell = torch.from_numpy(cells_of(store, 3, (0, 0), (1, 1), (3, 3)))
    assert (cell == NO_CELL).any()
    assert torch.equal(pixels[cell], gather(store, cell))
    assert torch.equal(pixels[: len(store.table)], torch.from_numpy(store.read(range(14))))


def test_pixels_stay_where_they_are_unless_a_gpu_or_the_user_wants_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = store_of()
    assert resident_pixels(store, CPU, "auto") is None
    assert resident_pixels(store, CPU, "off") is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: pytest.fail("nobody should ask"))
    assert resident_pixels(store, GPU, "off") is None


def test_patches_that_need_more_than_half_of_a_gpu_stay_away_or_stop_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = store_of()
    size = len(store.table) * PATCH * PATCH * 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size - 2, 100 * size))
    assert resident_pixels(store, GPU, "auto") is None
    with told("data.device_resident=on", "on: 1 MB", "data.device_resident=auto"):
        resident_pixels(store, GPU, "on")


def test_patches_that_need_half_of_a_gpu_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of()
    size = len(store.table) * PATCH * PATCH * 3
    sent: list[torch.device] = []

    def full(*args: Any, device: torch.device, **values: Any) -> Tensor:
        sent.append(device)
        return real(*args, **values)

    real = torch.full
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * size, 100 * size))
    monkeypatch.setattr(torch, "full", full)
    monkeypatch.setattr(Tensor, "to", lambda self, _: self)
    pixels = resident_pixels(store, GPU, "auto")
    assert sent == [GPU]
    assert pixels is not None
    assert torch.equal(pixels[:-1], torch.from_numpy(store.read(store.table.index)))
