"""From the pixels in memory to batches: which patches, in which order, gathered whole."""

from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from idc_lightning.data.grid import NO_CELL, NO_LABEL, PATCH, assemble
from idc_lightning.data.store import WHITE, Store


class Batch(TypedDict):
    """A batch of B crops of g x g cells (a single patch is g = 1).

    Attributes:
        image: Uint8 [B, 3, 50g, 50g] from the loader; float32 in 0 to 1 on the device.
        label: Int64 [B, g, g]; 0 healthy, 1 IDC, -1 no patch there.
        cell: Int64 [B, g, g], row numbers in the store's table; -1 no patch there.
        patient_id: B names.
        x: Int64 [B], column of the crop's upper left cell in pixels, from 1.
        y: Int64 [B], row of the crop's upper left cell in pixels, from 1.
    """

    image: Tensor
    label: Tensor
    cell: Tensor
    patient_id: list[str]
    x: Tensor
    y: Tensor


class Crops(Dataset[Batch]):
    """Crops of tissue, fetched by lists of their numbers.

    Args:
        store: Pixels and table.
        cells: Row numbers in the store, int64 [N, g, g], -1 where there is no patch.
    """

    def __init__(self, store: Store, cells: npt.NDArray[np.int64]) -> None:
        self.cells = torch.from_numpy(cells)
        self.pixels = torch.from_numpy(store.pixels)
        self.labels = torch.from_numpy(store.table["target"].to_numpy(dtype=np.int64, copy=True))
        self.x = torch.from_numpy(store.table["x"].to_numpy(dtype=np.int64, copy=True))
        self.y = torch.from_numpy(store.table["y"].to_numpy(dtype=np.int64, copy=True))
        self.patient_ids = store.table["patient_id"].tolist()

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, number: int) -> Batch:
        """A batch of one crop."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: list[int]) -> Batch:
        """A batch of the crops with these numbers, gathered whole."""
        cell = self.cells[numbers]
        present = cell != NO_CELL
        pixels = self.pixels[cell]
        pixels[~present] = WHITE
        # The largest row number of a crop is that of a patch, even where others are missing.
        row, place = cell.flatten(1).max(dim=1)
        across = cell.shape[2]
        return {
            "image": assemble(pixels),
            "label": self.labels[cell].masked_fill(~present, NO_LABEL),
            "cell": cell,
            "patient_id": [self.patient_ids[number] for number in row.tolist()],
            "x": self.x[row] - PATCH * (place % across),
            "y": self.y[row] - PATCH * (place // across),
        }


class ShuffledSampler(Sampler[int]):
    """An order of the crops that depends on seed and epoch alone.

    Args:
        length: Number of crops.
        seed: Seed of the run.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter(order.tolist())


def _as_gathered(batch: Any) -> Any:  # noqa: ANN401 - typed as a list by DataLoader
    """Nothing is left to collate."""
    return batch


def loader(
    crops: Crops,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    shuffle_seed: int | None = None,
    drop_last: bool = False,
) -> DataLoader[Batch]:
    """Load batches in order, or shuffled anew in each epoch.

    Args:
        crops: What is loaded.
        batch_size: Crops in a batch.
        workers: Processes that gather batches; 0 gathers them in this one.
        pin_memory: Whether batches lie in memory that a GPU copies from quickly.
        shuffle_seed: Seed of the order; None keeps the order of the crops.
        drop_last: Whether an incomplete last batch is left out.
    """
    sampler: Sampler[int] = (
        SequentialSampler(crops)
        if shuffle_seed is None
        else ShuffledSampler(len(crops), shuffle_seed)
    )
    return DataLoader(
        crops,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=_as_gathered,
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
