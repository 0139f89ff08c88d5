"""From the store to batches: which patches, in which order, gathered whole."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from idc_lightning import ranks
from idc_lightning.data.crops import Cut
from idc_lightning.data.decode import WHITE
from idc_lightning.data.grid import NO_CELL, NO_LABEL, PATCH, assemble
from idc_lightning.data.store import Store


class Batch(TypedDict):
    """A batch of B crops of h x w cells (a single patch is 1 x 1).

    Attributes:
        image: Uint8 [B, 3, 50h, 50w] from the loader; float32 in 0 to 1 on the device. Absent where
            features take its place, and from the loader where the pixels lie on the device.
        features: Float32 [B, h, w, F] of a frozen backbone, added on the device.
        shown: Int64 [B, h, w], row numbers in the store's table; -1 no patch there.
        cell: The same of those that are judged; others are only seen.
        label: Int64 [B, h, w]; 0 healthy, 1 IDC, -1 where ``cell`` is -1.
        patient_id: B names.
        x: Int64 [B], column of the crop's upper left cell in pixels, from 1.
        y: Int64 [B], row of the crop's upper left cell in pixels, from 1.
    """

    image: NotRequired[Tensor]
    features: NotRequired[Tensor]
    shown: Tensor
    cell: Tensor
    label: Tensor
    patient_id: list[str]
    x: Tensor
    y: Tensor


class Crops(Dataset[Batch]):
    """Crops of tissue, fetched by lists of their numbers.

    Args:
        store: Pixels and table.
        cut: Which patches each of them holds.
        images: Whether batches hold the pixels, or only say which patches they are.
    """

    def __init__(self, store: Store, cut: Cut, *, images: bool = True) -> None:
        self.cut = cut
        self.store = store
        self.images = images
        self.labels = torch.from_numpy(store.table["target"].to_numpy(dtype=np.int64, copy=True))
        self.x = torch.from_numpy(store.table["x"].to_numpy(dtype=np.int64, copy=True))
        self.y = torch.from_numpy(store.table["y"].to_numpy(dtype=np.int64, copy=True))
        self.patient_ids = store.table["patient_id"].to_numpy(dtype=object)

    def __len__(self) -> int:
        return len(self.cut)

    def __getitem__(self, number: int) -> Batch:
        """A batch of one crop."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: list[int]) -> Batch:
        """A batch of the crops with these numbers, gathered whole."""
        shown, cell = map(torch.from_numpy, self.cut.cells(numbers))
        # The largest row number of a crop is that of a patch, even where others are missing.
        row, place = shown.flatten(1).max(dim=1)
        across = shown.shape[2]
        batch: Batch = {
            "shown": shown,
            "cell": cell,
            "label": self.labels[cell].masked_fill(cell == NO_CELL, NO_LABEL),
            "patient_id": self.patient_ids[row.numpy()].tolist(),
            "x": self.x[row] - PATCH * (place % across),
            "y": self.y[row] - PATCH * (place // across),
        }
        if self.images:
            batch["image"] = assemble(gather(self.store, shown))
        return batch


def count_patches(batch: Batch) -> int:
    """Number of patches that a batch judges."""
    cell = batch["cell"]
    if is_single(batch):
        return len(cell)
    return int((cell != NO_CELL).sum())


def is_single(batch: Batch) -> bool:
    """Whether each crop is a patch, of which none is missing; a GPU needn't look for them."""
    return batch["cell"].shape[1:] == (1, 1)


def gather(store: Store, cell: Tensor) -> Tensor:
    """Pixels of crops, uint8 [B, h, w, 50, 50, 3], white where there is no patch.

    Args:
        store: Pixels and table.
        cell: Row numbers in the store's table, int64 [B, h, w]; -1 where there is no patch.
    """
    pixels = torch.from_numpy(store.read_input(cell.numpy()))
    pixels[cell == NO_CELL] = WHITE
    return pixels


class ShuffledSampler(Sampler[int]):
    """An order of the crops that depends on seed and epoch alone.

    Args:
        cut: The crops.
        seed: Seed of the run.
        taken: Number of crops that an epoch takes, at most all.
        begin: The first epoch, and how many of its crops are left out, as a run needs it that is
            resumed. It counts from the start, since a loader may ask for an order before it is
            told of the epoch.
    """

    def __init__(self, cut: Cut, seed: int, *, taken: int, begin: tuple[int, int] = (0, 0)) -> None:
        self.cut = cut
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
        order = self.cut.order(np.random.default_rng([self.seed, self.epoch]))
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


def _ignore_sigterm(_: int) -> None:
    """Let a worker live until its process has saved what it learned, if all are told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
    numbers: Sequence[int] | None = None,
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
        numbers: Of the crops that are loaded in order; None loads all.
    """
    left_out = len(crops) % batch_size if drop_last else 0
    sampler: Sampler[int] | Sequence[int]
    if shuffle_seed is None:
        sampler = range(len(crops)) if numbers is None else numbers
    else:
        taken = len(crops) - left_out
        sampler = ShuffledSampler(crops.cut, shuffle_seed, taken=taken, begin=begin)
    kind = BatchSampler if shuffle_seed is None else BatchShare
    return DataLoader(
        crops,
        batch_sampler=kind(sampler, batch_size * block, drop_last=False),
        collate_fn=_as_gathered,
        num_workers=workers,
        worker_init_fn=_ignore_sigterm,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
    )
