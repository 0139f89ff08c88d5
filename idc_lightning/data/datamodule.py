"""The data of a run: finds it, splits it, reads it and serves batches.

It only joins the steps, each of which has its own module: source, index, split, sample, store,
batches, augment, features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch import Tensor
from torch.utils.data import DataLoader

from idc_lightning import ranks
from idc_lightning.config import AnyData, AnySplit
from idc_lightning.data.augment import as_float, augment, draw_views
from idc_lightning.data.batches import Batch, Crops, gather, loader
from idc_lightning.data.crops import Cut, judging_cut, training_cut
from idc_lightning.data.features import Features
from idc_lightning.data.grid import CLASSES, NO_CELL, assemble
from idc_lightning.data.index import Index, read_index
from idc_lightning.data.resident import resident_pixels
from idc_lightning.data.sample import sample_patches
from idc_lightning.data.seen import Seen
from idc_lightning.data.source import Source, find_source
from idc_lightning.data.split import (
    NAMES,
    check_leaks,
    compare_splits,
    rows_of,
    split_hash,
    split_notes,
    split_patients,
)
from idc_lightning.data.store import Store, open_store
from idc_lightning.data.views import viewed
from idc_lightning.errors import IDCError


@dataclass(frozen=True)
class Ready:
    """What `IDCDataModule.setup` has made; another process may take it."""

    index: Index
    store: Store
    splits: pd.Series
    seen: Seen


class IDCDataModule(lightning.LightningDataModule):
    """Patches of breast tissue, split by patient.

    Batches are described by `idc_lightning.data.batches.Batch`. After `setup`, `table` has one row
    for each patch with patient_id, x, y, target, path, split and what reading adds (see
    `idc_lightning.data.store.Store`), and the ``cell`` of a batch numbers its rows.

    Args:
        data: Which data set, and how its patches are read and changed.
        split: How its patients are divided.
        seed: Seed of the order of the patches and of their augmentation.
        cache: Folder for the demo tissue, unpacked archives, stores and features.
        on_features: Whether batches hold features of a frozen backbone in place of images.
        block: Batches of train that are served together; see `train_dataloader`.
        ready: What another process has made for the same configuration; None makes it.

    Attributes:
        features: What batches hold in place of images; to be set before the first of them.
    """

    def __init__(
        self,
        data: AnyData,
        split: AnySplit,
        *,
        seed: int,
        cache: Path,
        on_features: bool = False,
        block: int = 1,
        ready: Ready | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.split = split
        self.seed = seed
        self.cache = cache
        self.on_features = on_features
        self.block = block
        self.features: Features | None = None
        self._pixels: Tensor | None = None
        self._places: Tensor | None = None
        self._train: Cut | None = None
        self._begin = (0, 0)
        self._source: Source | None = None
        self._done = ready

    @property
    def ready(self) -> Ready:
        """What `setup` has made."""
        if self._done is None:
            raise RuntimeError("the data module isn't set up: call setup() first")
        return self._done

    @property
    def index(self) -> Index:
        """All patches of the data set; there after `setup`."""
        return self.ready.index

    @property
    def store(self) -> Store:
        """Pixels and table; there after `setup`."""
        return self.ready.store

    @property
    def splits(self) -> pd.Series:
        """``"train"``, ``"dev"`` or ``"test"`` by patient_id; there after `setup`."""
        return self.ready.splits

    @property
    def table(self) -> pd.DataFrame:
        """One row for each patch that the run uses."""
        return self.store.table

    def prepare_data(self) -> None:
        """Make the demo tissue or unpack the archive, once for all processes."""
        if self._done is None:
            self.root()

    def root(self) -> Path:
        """Folder of the patients' folders, made, unpacked or downloaded on the first call.

        Raises:
            IDCError: If there is no such folder or archive.
        """
        if self._source is None:
            self._source = find_source(self.data, self.cache)
        return self._source.root

    def setup(self, stage: str | None = None) -> None:
        """Index, split and read the patches; a second call does nothing.

        Raises:
            IDCError: If the data can't be used as it is, with how to mend it.
        """
        if self._done is not None:
            return
        index = read_index(self.root(), on_conflict=self.data.on_conflict)
        splits = split_patients(index.table, self.split)
        table = index.table.assign(split=index.table["patient_id"].map(splits))
        table = table[table["split"].notna()].reset_index(drop=True)
        if self.data.sample is not None:
            table = sample_patches(table, self.data.sample, seed=self.seed, crop=self.data.crop)
        store = open_store(
            index.root,
            table,
            cache=self.cache,
            everything=index.table,
            edge_patches=self.data.edge_patches,
            on_broken=self.data.on_broken,
            stain_normalisation=self.data.stain_normalisation,
        )
        check_leaks(store.table)
        _check_classes(store.table)
        self._done = Ready(index, store, splits, Seen.of(splits, store.table))

    def begin_with(self, earlier: Seen) -> None:
        """Take down what the weights have seen with which the run begins."""
        self._done = replace(self.ready, seen=self.ready.seen.after(earlier))

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split's patches in `table`, int64 [n]."""
        return rows_of(self.table, split)

    def class_counts(self) -> list[int]:
        """Numbers of healthy and of IDC patches in train."""
        targets = self.table.loc[self.table["split"] == "train", "target"]
        return [int((targets == target).sum()) for target in range(len(CLASSES))]

    def split_hash(self) -> str:
        """SHA-256 of splits.csv."""
        return split_hash(self.splits)

    def notes(self) -> list[str]:
        """One line on each kind of patch that was left out or changed."""
        split = split_notes(self.splits, self.index.table, self.split)
        source = self._source.notes if self._source else ()
        lacking = [
            f"dev has no {name} patch, so that temperature, bias and threshold aren't fitted"
            for name in lacking_classes(self.table, "dev")
        ]
        return [*source, *self.index.notes(), *split, *self.store.notes(), *lacking]

    def summary(self) -> pd.DataFrame:
        """Patients, patches and IDC share of each split, one row each."""
        compared = compare_splits(self.table)
        return compared.loc[compared["split"] != "all", ["split", "patients", "patches", "idc"]]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of train, in another order each epoch.

        With a ``block`` above 1 so many of them are joined to one; the last may hold fewer.

        Raises:
            IDCError: If train has less than a batch.
        """
        return loader(
            self._crops(self._training()),
            batch_size=self.batch_size,
            workers=self.data.workers,
            pin_memory=self._pinned(),
            shuffle_seed=self.seed,
            drop_last=self._drops_last(),
            block=self.block,
            begin=self._begin,
        )

    @property
    def batch_size(self) -> int:
        """Crops in a batch of train, over all processes."""
        return self.data.batch_size // self.data.crop**2

    def steps_per_epoch(self) -> int:
        """Number of batches of train, of whatever block.

        Raises:
            IDCError: If train has less than a batch.
        """
        full, rest = divmod(len(self._training()), self.batch_size)
        return full if self._drops_last() else full + (rest > 0)

    def _training(self) -> Cut:
        """The crops of train."""
        if self._train is None:
            self._train = training_cut(self.data, self.table, self.rows("train"))
        return self._train

    def _drops_last(self) -> bool:
        size, count = self.batch_size, len(self._training())
        what, cells = ("patches" if self.data.crop == 1 else "crops"), self.data.crop**2
        least = 2 * ranks.world()  # BatchNorm can't be trained on a batch of one
        if size < least:
            raise IDCError(
                f"data.batch_size={self.data.batch_size} is less than 2 {what} for each of "
                f"{ranks.world()} processes: take {least * cells} or more, or lower trainer.devices"
            )
        if self.data.crop > 1 and count < least:
            raise IDCError(f"train has {count} {what}, too few to learn from: lower data.crop")
        drops = self.data.drop_last or 0 < count % size < least
        if drops and count < size:
            raise IDCError(
                f"train has {count} {what}, less than a batch: set data.batch_size to "
                f"{count * cells} or less"
            )
        return drops

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of dev, in the table's order."""
        return self.eval_dataloader("dev")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of test, in the table's order."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader[Batch]:
        """Batches of a split without augmentation, in the table's order.

        Of several processes each takes its own patches, which no other one has.

        Raises:
            IDCError: If there is less than a patch for each process.
        """
        rows = self.rows(split)
        if len(rows) < ranks.world():
            raise IDCError(
                f"{split} has {len(rows)} patches, less than one for each of {ranks.world()} "
                f"processes: take trainer.devices={len(rows)}"
            )
        cut = judging_cut(self.data, self.table, rows)
        own = range(ranks.rank(), len(cut), ranks.world())
        return loader(
            self._crops(cut),
            batch_size=self.data.judged_at_once,
            workers=self.data.workers,
            pin_memory=self._pinned(),
            numbers=own or [~0],  # one that judges none, since each process has to take part
        )

    def train_images(self, device: torch.device) -> Iterator[Tensor]:
        """Images of train as they are, float [B, 3, 50, 50], each once and in random batches.

        Their order depends on nothing but the patches, so that runs of a sweep share what is
        computed from them.
        """
        rows = np.random.default_rng(0).permutation(self.rows("train"))
        starts = list(range(0, len(rows), self.data.eval_batch_size))
        if len(starts) > 1 and len(rows) - starts[-1] == 1:  # BatchNorm may need two
            starts.pop()
        for part in np.split(rows, starts[1:]):
            cell = torch.from_numpy(part)
            yield as_float(assemble(gather(self.store, cell.reshape(-1, 1, 1))).to(device))

    def _crops(self, cut: Cut) -> Crops:
        if not self.on_features and self._pixels is None:
            self._pixels = resident_pixels(self.store, self._device(), self.data.device_resident)
        images = not self.on_features and self._pixels is None
        return Crops(self.store, cut, images=images)

    def free_device(self) -> None:
        """Give back the memory of pixels that lie on the device; batches need them no more."""
        self._pixels = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _pinned(self) -> bool:
        return self._device().type == "cuda"

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Send what computes; Lightning would look at the name of each patient, too."""
        moved = {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        return cast(Batch, moved)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment train and turn bytes to float32 in 0 to 1, on the device; or add features."""
        training = self.trainer is not None and self.trainer.training
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        label, cell, shown = batch["label"], batch["cell"], batch["shown"]
        if self.on_features:
            views = None
            if training:
                number = self._numbers(cell)
                views = draw_views(
                    self.data.augment, cell, number=number, seed=self.seed, epoch=epoch
                )
                label, cell = viewed(label, views), viewed(cell, views)
                shown = cell
            features = self._features_of(shown, views)
            return {**batch, "features": features, "label": label, "cell": cell, "shown": shown}
        image = batch["image"] if self._pixels is None else assemble(self._pixels[shown])
        if training:
            number = self._numbers(cell)
            image, label, cell = augment(
                image, label, cell, self.data.augment, number=number, seed=self.seed, epoch=epoch
            )
            shown = cell
        return {
            **batch,
            "image": as_float(image),
            "label": label,
            "cell": cell,
            "shown": shown,
        }

    def _numbers(self, cell: Tensor) -> Tensor:
        """What the draws of crops depend on: the place of a patch in the pack, int64 [B].

        It stays the same whatever a run leaves out of its table.
        """
        if self._places is None or self._places.device != cell.device:
            self._places = torch.from_numpy(self.store.places).to(cell.device)
        return self._places[cell.amax(dim=(1, 2))]

    def _features_of(self, cell: Tensor, views: Tensor | None) -> Tensor:
        """Features of the patches of crops, float32 [B, h, w, F]; zero where there is none.

        Each patch has the view of its crop, int64 [B].
        """
        if self.features is None:
            raise RuntimeError("the features of the frozen backbone aren't computed yet")
        there = cell != NO_CELL
        if views is not None:
            views = views[:, None, None].expand(cell.shape)[there]
        found = self.features.read(cell[there], views).to(cell.device)
        features = found.new_zeros(*cell.shape, found.shape[1])
        features[there] = found
        return features

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of its data: plain values of where and how it was read."""
        data, root = self.data, self.data.root
        if root is not None and root.expanduser().exists():  # so that it is found from anywhere
            data = data.model_copy(update={"root": root.expanduser().absolute()})
        return {
            "data": data.model_dump(mode="json"),
            "seed": self.seed,
            "splits": dict(self.splits.items()),
            "split_hash": self.split_hash(),
            "patches": {name: len(self.rows(name)) for name in NAMES},
            "seen": self.ready.seen.to_plain(),
            "next": self._next(),
            "block": self.block,
        }

    def _next(self) -> list[int]:
        """Epoch and number of its crops with which the training goes on."""
        if self.trainer is None:
            return list(self._begin)
        batches = self.trainer.fit_loop.epoch_loop.batch_progress
        done = 0 if batches.is_last_batch else batches.current.ready
        epochs = self.trainer.fit_loop.epoch_progress.current
        assert isinstance(epochs, _ProcessedTracker)  # its others count an epoch too late
        return [epochs.processed, done * self.block * self.batch_size]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on training where a checkpoint was written, with the same patients.

        Raises:
            IDCError: If the checkpoint was trained on another split.
        """
        if state_dict["split_hash"] != self.split_hash():
            raise IDCError(
                "the checkpoint was trained on another split of the patients: give its own by "
                "split=file split.path=<its run folder>/splits.csv"
            )
        self.begin_with(Seen.from_plain(state_dict["seen"]))
        epoch, crops = state_dict["next"]
        self._begin = epoch, crops


def _check_classes(table: pd.DataFrame) -> None:
    """Stop if a split is empty or train lacks a class."""
    for name in NAMES:
        if not (table["split"] == name).any():
            raise IDCError(
                f"no patch of {name} is left: check data.sample, data.edge_patches and "
                "data.on_broken"
            )
    lacking = lacking_classes(table, "train")
    if lacking:
        raise IDCError(
            f"train has no {lacking[0]} patch, so nothing can be learned: take another split or "
            "add patients"
        )


def lacking_classes(table: pd.DataFrame, split: str) -> list[str]:
    """Names of the classes of which a split has no patch."""
    targets = table.loc[table["split"] == split, "target"].unique()
    return [name for target, name in enumerate(CLASSES) if target not in targets]
