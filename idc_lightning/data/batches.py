"""From the store to batches: which patches, in which order, gathered whole."""

from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from idc_lightning import ranks
from idc_lightning.data.decode import WHITE
from idc_lightning.data.grid import NO_CELL, NO_LABEL, PATCH, assemble
from idc_lightning.data.store import Store


class Batch(TypedDict):
    """A batch of B crops of g x g cells (a single patch is g = 1).

    Attributes:
        image: Uint8 [B, 3, 50g, 50g] from the loader; float32 in 0 to 1 on the device. Absent where
            features take its place, and from the loader where the pixels lie on the device.
        features: Float32 [B, g, g, F] of a frozen backbone, added on the device.
        label: Int64 [B, g, g]; 0 healthy, 1 IDC, -1 no patch there.
        cell: Int64 [B, g, g], row numbers in the store's table; -1 no patch there.
        patient_id: B names.
        x: Int64 [B], column of the crop's upper left cell in pixels, from 1.
        y: Int64 [B], row of the crop's upper left cell in pixels, from 1.
    """

    image: NotRequired[Tensor]
    features: NotRequired[Tensor]
    label: Tensor
    cell: Tensor
    patient_id: list[str]
    x: Tensor
    y: Tensor


class Crops(Dataset[Batch]):
    """Crops of tissue, fetched by lists of their numbers.

    Args:
        store: Pixels and table.
        cells: Row numbers in the store's table, int64 [N, g, g], -1 where there is no patch.
        images: Whether batches hold the pixels, or only say which patches they are.
    """

    def __init__(self, store: Store, cells: npt.NDArray[np.int64], *, images: bool = True) -> None:
        self.cells = torch.from_numpy(cells)
        self.store = store
        self.images = images
        self.labels = torch.from_numpy(store.table["target"].to_numpy(dtype=np.int64, copy=True))
        self.x = torch.from_numpy(store.table["x"].to_numpy(dtype=np.int64, copy=True))
        self.y = torch.from_numpy(store.table["y"].to_numpy(dtype=np.int64, copy=True))
        self.patient_ids = store.table["patient_id"].to_numpy(dtype=object)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, number: int) -> Batch:
        """A batch of one crop."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: list[int]) -> Batch:
        """A batch of the crops with these numbers, gathered whole."""
        cell = self.cells[numbers]
        present = cell != NO_CELL
        # The largest row number of a crop is that of a patch, even where others are missing.
        row, place = cell.flatten(1).max(dim=1)
        across = cell.shape[2]
        batch: Batch = {
            "label": self.labels[cell].masked_fill(~present, NO_LABEL),
            "cell": cell,
            "patient_id": self.patient_ids[row.numpy()].tolist(),
            "x": self.x[row] - PATCH * (place % across),
            "y": self.y[row] - PATCH * (place // across),
        }
        if self.images:
            batch["image"] = assemble(gather(self.store, cell))
        return batch


def gather(store: Store, cell: Tensor) -> Tensor:
    """Pixels of crops, uint8 [B, g, g, 50, 50, 3], white where there is no patch.

    Args:
        store: Pixels and table.
        cell: Row numbers in the store's table, int64 [B, g, g]; -1 where there is no patch.
    """
    pixels = torch.from_numpy(store.read(cell.numpy()))
    pixels[cell == NO_CELL] = WHITE
    return pixels


class ShuffledSampler(Sampler[int]):
    """An order of the crops that depends on seed and epoch alone.

    Args:
        length: Number of crops.
        seed: Seed of the run.
        taken: Number of crops that an epoch takes, at most all.
        begin: The first epoch, and how many of its crops are left out, as a run needs it that is
            resumed. It counts from the start, since a loader may ask for an order before it is
            told of the epoch.
    """

    def __init__(
        self, length: int, seed: int, *, taken: int, begin: tuple[int, int] = (0, 0)
    ) -> None:
        self.length = length
        self.seed = seed
        self.taken = taken
        self.epoch, self.left_out = begin
        self.first_epoch = self.epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.taken

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        left_out = self.left_out if self.epoch == self.first_epoch else 0
        return iter(order[left_out : self.taken].tolist())


class BatchShare(BatchSampler):
    """The part of each batch that this process learns from; all processes share out a batch.

    The one of rank r of W takes every W-th crop from the r-th on, so that the order of the crops
    doesn't depend on the number of processes.
    """

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[ranks.rank() :: ranks.world()]


def split_block(batch: Batch, size: int) -> Iterator[Batch]:
    """Take a block of batches apart.

    Args:
        batch: Of any number of crops.
        size: Crops in each of the batches, of which the last may have fewer.
    """
    count = len(batch["cell"])
    if count <= size:
        yield batch
        return
    for start in range(0, count, size):
        part: Any = {name: value[start : start + size] for name, value in batch.items()}  # type: ignore[index]
        yield part


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
    block: int = 1,
    begin: tuple[int, int] = (0, 0),
) -> DataLoader[Batch]:
    """Load batches in order, or shuffled anew in each epoch.

    Args:
        crops: What is loaded.
        batch_size: Crops in a batch; of a shuffled order, over all processes of a training.
        workers: Processes that gather batches; 0 gathers them in this one.
        pin_memory: Whether batches lie in memory that a GPU copies from quickly.
        shuffle_seed: Seed of the order; None keeps the order of the crops.
        drop_last: Whether an incomplete last batch of a shuffled order is left out.
        block: Batches that are fetched together, to be told apart by whoever takes them.
        begin: Of a shuffled order, as in `ShuffledSampler`.
    """
    left_out = len(crops) % batch_size if drop_last else 0
    sampler: Sampler[int] = (
        SequentialSampler(crops)
        if shuffle_seed is None
        else ShuffledSampler(len(crops), shuffle_seed, taken=len(crops) - left_out, begin=begin)
    )
    kind = BatchSampler if shuffle_seed is None else BatchShare
    return DataLoader(
        crops,
        batch_sampler=kind(sampler, batch_size * block, drop_last=False),
        collate_fn=_as_gathered,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
