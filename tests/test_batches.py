import os
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from helpers_data import checked
from torch.utils.data import DataLoader

from idc_lightning.data.batches import Batch, Crops, loader
from idc_lightning.data.crops import Patches
from idc_lightning.data.decode import WHITE
from idc_lightning.data.grid import NO_CELL, NO_LABEL, PATCH, assemble
from idc_lightning.data.store import Store

COUNT = 37


def made(table: pd.DataFrame, pixels: np.ndarray) -> Store:
    """A store whose pixels are those of its table, row by row."""
    return Store(
        table=table,
        packed=checked(pixels),
        places=np.arange(len(table)),
        folder=Path(),
        key="made",
        converted={},
        broken=table[:0],
        dropped=0,
    )


def store_of(count: int = COUNT) -> Store:
    """Patches whose first pixels are their row number; places and labels differ from row to row."""
    rows = np.arange(count)
    pixels = np.zeros((count, PATCH, PATCH, 3), np.uint8)
    pixels[:] = rows[:, None, None, None]
    pixels[:, :, :, 1] = np.arange(PATCH)[:, None]  # green is the row of the pixel
    pixels[:, :, :, 2] = np.arange(PATCH)  # blue is its column
    table = pd.DataFrame(
        {
            "patient_id": [f"{number // 10:03}" for number in rows],
            "x": 1 + PATCH * (rows % 4),
            "y": 1 + PATCH * (rows * 7 % 11),
            "target": (rows % 3 == 0).astype("int64"),
        }
    )
    return made(table, pixels)


def patches(count: int = COUNT) -> Crops:
    return Crops(store_of(count), Patches(np.arange(count)))


@dataclass(frozen=True)
class Given:
    """Crops that show and judge the same cells, int64 [N, g, g]."""

    array: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.array)

    def order(self, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        return rng.permutation(len(self.array))

    def cells(self, numbers: Sequence[int]) -> tuple[npt.NDArray[np.int64], ...]:
        return self.array[np.asarray(numbers)], self.array[np.asarray(numbers)]


def slide(across: int, down: int, absent: Collection[tuple[int, int]] = ()) -> Store:
    """One patient's tissue, row by row; absent are (column, row) of cells without a patch."""
    cells = [(c, r) for r in range(down) for c in range(across) if (c, r) not in absent]
    store = store_of(len(cells))
    columns, rows = np.array(cells).T
    table = store.table.assign(patient_id="7", x=1 + PATCH * columns, y=1 + PATCH * rows)
    return made(table, store.read(table.index))


def cells_of(store: Store, size: int, *corners: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Row numbers of the crops whose upper left cells are these (column, row)."""
    numbers = {
        ((x - 1) // PATCH, (y - 1) // PATCH): row
        for row, (x, y) in enumerate(store.table[["x", "y"]].to_numpy().tolist())
    }
    return np.array(
        [
            [[numbers.get((c + i, r + j), NO_CELL) for i in range(size)] for j in range(size)]
            for c, r in corners
        ]
    )


def load(crops: Crops, **options: int | bool | None) -> DataLoader[Batch]:
    values = {"batch_size": 8, "workers": 0, "pin_memory": False} | options
    return loader(crops, **values)  # type: ignore[arg-type]


def rows_of(batches: DataLoader[Batch]) -> list[list[int]]:
    return [batch["cell"].flatten().tolist() for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def epochs(batches: DataLoader[Batch], count: int) -> list[list[list[int]]]:
    orders = []
    for epoch in range(count):
        batches.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        orders.append(rows_of(batches))
    return orders


def test_a_batch_has_its_keys_types_and_shapes() -> None:
    batch = next(iter(load(patches())))
    assert set(batch) == set(Batch.__annotations__) - {"features"}
    kinds = {k: (v.dtype, tuple(v.shape)) for k, v in batch.items() if isinstance(v, torch.Tensor)}
    assert kinds == {
        "image": (torch.uint8, (8, 3, PATCH, PATCH)),
        "shown": (torch.int64, (8, 1, 1)),
        "cell": (torch.int64, (8, 1, 1)),
        "label": (torch.int64, (8, 1, 1)),
        "x": (torch.int64, (8,)),
        "y": (torch.int64, (8,)),
    }
    assert batch["patient_id"] == ["000"] * 8


@pytest.mark.parametrize("seed", [None, 3])
def test_all_values_of_a_patch_belong_to_its_pixels(seed: int | None) -> None:
    table = store_of().table
    for batch in load(patches(), shuffle_seed=seed):
        row = batch["image"][:, 0, 0, 0].tolist()
        assert batch["cell"].flatten().tolist() == row
        assert batch["label"].flatten().tolist() == table["target"][row].tolist()
        assert batch["x"].tolist() == table["x"][row].tolist()
        assert batch["y"].tolist() == table["y"][row].tolist()
        assert batch["patient_id"] == table["patient_id"][row].tolist()


def test_rows_of_pixels_stay_rows() -> None:
    image = patches()[5]["image"][0]
    assert (image[0] == 5).all()
    assert (image[1] == torch.arange(PATCH)[:, None]).all()
    assert (image[2] == torch.arange(PATCH)).all()


def test_one_number_gives_a_batch_of_one() -> None:
    crops = patches()
    assert len(crops) == COUNT
    batch = crops[9]
    assert batch["image"].shape == (1, 3, PATCH, PATCH)
    assert batch["x"].tolist() == [store_of().table["x"][9]]


def test_a_batch_can_be_changed_without_harm_to_the_store() -> None:
    store = store_of()
    batch = Crops(store, Patches(np.arange(COUNT)))[4]
    for name in ("image", "label", "cell", "x", "y"):
        batch[name].zero_()  # type: ignore[literal-required]
    assert (store.read(4)[..., 0] == 4).all()
    pd.testing.assert_frame_equal(store.table, store_of().table)


def test_cells_of_a_crop_stand_where_they_stand_in_the_tissue() -> None:
    store = slide(5, 4)
    batch = Crops(store, Given(cells_of(store, 3, (0, 0), (2, 1)))).__getitems__([1, 0])
    assert batch["cell"][0].tolist() == [[7, 8, 9], [12, 13, 14], [17, 18, 19]]
    assert batch["x"].tolist() == [1 + 2 * PATCH, 1]
    assert batch["y"].tolist() == [1 + PATCH, 1]
    for crop in range(2):
        for down, across in np.ndindex(3, 3):
            tall = slice(down * PATCH, (down + 1) * PATCH)
            wide = slice(across * PATCH, (across + 1) * PATCH)
            part = batch["image"][crop, :, tall, wide]
            row = int(batch["cell"][crop, down, across])
            assert torch.equal(part, torch.from_numpy(store.read(row)).permute(2, 0, 1))
            assert batch["label"][crop, down, across] == store.table["target"][row]


@pytest.mark.parametrize(
    "absent",
    [
        {(1, 1)},
        {(1, 1), (2, 1), (1, 2)},
        {(3, 3)},
        {(c, r) for c in (1, 2, 3) for r in (1, 2, 3)} - {(1, 3)},
        {(c, r) for c in (1, 2, 3) for r in (1, 2, 3)} - {(3, 1)},
    ],
    ids=["first", "all around the first", "last", "all but lower left", "all but upper right"],
)
def test_missing_cells_are_white_without_label_and_the_crop_keeps_its_place(
    absent: set[tuple[int, int]],
) -> None:
    store = slide(5, 5, absent)
    batch = Crops(store, Given(cells_of(store, 3, (1, 1), (0, 0)))).__getitems__([0])
    assert (batch["x"].item(), batch["y"].item()) == (1 + PATCH, 1 + PATCH)
    assert batch["patient_id"] == ["7"]
    missing = batch["cell"][0] == NO_CELL
    assert {(c + 1, r + 1) for r, c in missing.nonzero().tolist()} == absent
    assert torch.equal(batch["label"][0] == NO_LABEL, missing)
    white = (batch["image"][0] == WHITE).all(dim=0)
    assert torch.equal(white, missing.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1))


def test_assemble_puts_pixels_at_their_row_and_column() -> None:
    pixels = torch.arange(2 * 3 * 4 * 2 * 5 * 3).reshape(2, 3, 4, 2, 5, 3)
    image = assemble(pixels)
    assert image.shape == (2, 3, 6, 20)
    for crop, row, column, colour in np.ndindex(2, 6, 20, 3):
        cell = pixels[crop, row // 2, column // 5, row % 2, column % 5, colour]
        assert image[crop, colour, row, column] == cell


def test_workers_outlive_a_sigterm_that_all_processes_are_sent() -> None:
    batches = iter(load(patches(), batch_size=1, workers=1))
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGTERM)  # type: ignore[attr-defined]
    assert len(list(batches)) == COUNT - 1


def test_batches_without_a_seed_keep_the_order_of_the_table() -> None:
    batches = rows_of(load(patches()))
    assert flat(batches) == list(range(COUNT))
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 5]


def test_each_patch_comes_exactly_once_in_an_epoch() -> None:
    for order in epochs(load(patches(), shuffle_seed=0), 5):
        assert sorted(flat(order)) == list(range(COUNT))
        assert [len(batch) for batch in order] == [8, 8, 8, 8, 5]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = epochs(load(patches(), shuffle_seed=0), 4)
    assert len({str(order) for order in orders}) == 4
    torch.manual_seed(99)
    np.random.default_rng().random()
    assert epochs(load(patches(), shuffle_seed=0), 4) == orders
    later = load(patches(), shuffle_seed=0)
    later.batch_sampler.sampler.set_epoch(3)  # type: ignore[union-attr]
    assert rows_of(later) == orders[3]  # as after a resume
    assert epochs(load(patches(), shuffle_seed=1), 4)[0] not in orders
    by_five = epochs(load(patches(), shuffle_seed=0, batch_size=5), 1)[0]
    assert flat(by_five) == flat(orders[0])


def test_the_order_mixes_the_patches() -> None:
    first = [flat(order)[0] for order in epochs(load(patches(10), shuffle_seed=0), 300)]
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 10
    assert counts.max() < 55


def test_an_incomplete_last_batch_can_be_left_out() -> None:
    batches = load(patches(), shuffle_seed=0, drop_last=True)
    assert len(batches) == 4
    assert [len(batch) for batch in rows_of(batches)] == [8] * 4
    assert len(load(patches(), drop_last=False)) == 5


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("seed", [None, 5])
def test_worker_processes_change_nothing(seed: int | None) -> None:
    here = load(patches(), shuffle_seed=seed)
    there = load(patches(), shuffle_seed=seed, workers=2)
    for epoch in range(2):
        for batches in (here, there):
            if seed is not None:
                batches.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        pairs = list(zip(here, there, strict=True))
        assert len(pairs) == 5
        for one, other in pairs:
            assert one["patient_id"] == other["patient_id"]
            for name in ("image", "label", "cell", "x", "y"):
                assert torch.equal(one[name], other[name])  # type: ignore[literal-required]
