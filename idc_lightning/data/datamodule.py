"""The data of a run: finds it, splits it, reads it and serves batches.

It only joins the steps, each of which has its own module: archive or demo, index, split, sample,
store, batches, augment.
"""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

from idc_lightning.config import AnyData, AnySplit, DemoDataConfig
from idc_lightning.data.archive import left_out, unpack
from idc_lightning.data.augment import augment
from idc_lightning.data.batches import Batch, Crops, loader
from idc_lightning.data.demo import DRAWING, make_demo
from idc_lightning.data.index import Index, read_index
from idc_lightning.data.kaggle import download
from idc_lightning.data.sample import sample_patches
from idc_lightning.data.split import (
    NAMES,
    check_leaks,
    patients_of,
    split_hash,
    split_notes,
    split_patients,
)
from idc_lightning.data.store import Store, decode
from idc_lightning.errors import IDCError
from idc_lightning.files import made_once

CLASSES = ("healthy", "IDC")


class IDCDataModule(lightning.LightningDataModule):
    """Patches of breast tissue, split by patient.

    Batches are described by `idc_lightning.data.batches.Batch`. After `setup`, `table` has one row
    for each patch with patient_id, x, y, target, path, edge, blank, digest and split, and the
    ``cell`` of a batch numbers its rows.

    Args:
        data: Which data set, and how its patches are read and changed.
        split: How its patients are divided.
        seed: Seed of the order of the patches and of their augmentation.
        cache: Folder for the demo tissue and unpacked archives.
    """

    def __init__(self, data: AnyData, split: AnySplit, *, seed: int, cache: Path) -> None:
        super().__init__()
        self.data = data
        self.split = split
        self.seed = seed
        self.cache = cache
        self._root: Path | None = None
        self._archive_notes: list[str] = []
        self._index: Index | None = None
        self._store: Store | None = None
        self._splits: pd.Series | None = None

    @property
    def index(self) -> Index:
        """All patches of the data set; there after `setup`."""
        if self._index is None:
            raise RuntimeError("the data module isn't set up: call setup() first")
        return self._index

    @property
    def store(self) -> Store:
        """Pixels and table; there after `setup`."""
        if self._store is None:
            raise RuntimeError("the data module isn't set up: call setup() first")
        return self._store

    @property
    def splits(self) -> pd.Series:
        """``"train"``, ``"dev"`` or ``"test"`` by patient_id; there after `setup`."""
        if self._splits is None:
            raise RuntimeError("the data module isn't set up: call setup() first")
        return self._splits

    @property
    def table(self) -> pd.DataFrame:
        """One row for each patch that the run uses."""
        return self.store.table

    def prepare_data(self) -> None:
        """Make the demo tissue or unpack the archive, once for all processes."""
        self.root()

    def root(self) -> Path:
        """Folder of the patients' folders, made, unpacked or downloaded on the first call.

        Raises:
            IDCError: If there is no such folder or archive.
        """
        if self._root is None:
            self._root = self._find_root()
        return self._root

    def _find_root(self) -> Path:
        if isinstance(self.data, DemoDataConfig) and self.data.root is None:
            return _demo(self.data, self.cache)
        root = self.data.root
        if root is None:
            raise IDCError(
                "data.root is not set: give the folder or .zip of the data set, e.g. "
                "data.root=IDC_regular_ps50_idx5"
            )
        if str(root) == "kaggle" and not root.exists():
            return download()
        root = root.expanduser()
        if root.is_file() and root.suffix.lower() == ".zip":
            unpacked = unpack(root, self.cache.expanduser())
            self._archive_notes = left_out(unpacked)
            return unpacked
        if not root.is_dir():
            problem = "is neither a folder nor a .zip" if root.exists() else "doesn't exist"
            raise IDCError(f"data.root={root} {problem}: give a folder or .zip of patches")
        return root

    def setup(self, stage: str | None = None) -> None:
        """Index, split and read the patches; a second call does nothing.

        Raises:
            IDCError: If the data can't be used as it is, with how to mend it.
        """
        if self._store is not None:
            return
        index = read_index(self.root(), on_conflict=self.data.on_conflict)
        splits = split_patients(index.table, self.split)
        table = index.table.assign(split=index.table["patient_id"].map(splits))
        table = table[table["split"].notna()].reset_index(drop=True)
        if self.data.sample is not None:
            table = sample_patches(table, self.data.sample, seed=self.seed)
        store = decode(
            index.root,
            table,
            edge_patches=self.data.edge_patches,
            on_broken=self.data.on_broken,
        )
        check_leaks(store.table)
        _check_classes(store.table)
        self._index, self._splits, self._store = index, splits, store

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split's patches in `table`, int64 [n]."""
        return np.flatnonzero((self.table["split"] == split).to_numpy())

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
        return self._archive_notes + self.index.notes() + split + self.store.notes()

    def summary(self) -> pd.DataFrame:
        """Patients, patches and IDC share of each split, one row each."""
        rows = []
        for name in NAMES:
            patients = patients_of(self.table[self.table["split"] == name])
            patches = int(patients["patches"].sum())
            idc = float((patients["patches"] * patients["idc"]).sum() / max(1, patches))
            rows.append((name, len(patients), patches, idc))
        return pd.DataFrame(rows, columns=["split", "patients", "patches", "idc"])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of train, in another order each epoch."""
        rows = self.rows("train")
        size = self.data.batch_size
        # BatchNorm can't be trained on a batch of one.
        drop_last = self.data.drop_last or len(rows) % size == 1
        if drop_last and len(rows) < size:
            raise IDCError(
                f"train has {len(rows)} patches, less than a batch: set data.batch_size to "
                f"{len(rows)} or less"
            )
        return loader(
            self._crops(rows),
            batch_size=size,
            workers=self.data.workers,
            pin_memory=self._pinned(),
            shuffle_seed=self.seed,
            drop_last=drop_last,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of dev, in the table's order."""
        return self.eval_dataloader("dev")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of test, in the table's order."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader[Batch]:
        """Batches of a split without augmentation, in the table's order."""
        return loader(
            self._crops(self.rows(split)),
            batch_size=self.data.eval_batch_size,
            workers=self.data.workers,
            pin_memory=self._pinned(),
        )

    def _crops(self, rows: np.ndarray) -> Crops:
        return Crops(self.store, rows.reshape(-1, 1, 1))

    def _pinned(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Turn images to float32 in 0 to 1 and augment those of train, on their device."""
        image = as_float(batch["image"])
        label, cell = batch["label"], batch["cell"]
        if self.trainer is not None and self.trainer.training:
            image, label, cell = augment(
                image,
                label,
                cell,
                self.data.augment,
                seed=self.seed,
                epoch=self.trainer.current_epoch,
            )
        return {**batch, "image": image, "label": label, "cell": cell}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says of its data: plain values of where and how it was read."""
        return {
            "data": self.data.model_dump(mode="json"),
            "seed": self.seed,
            "splits": dict(self.splits.items()),
            "split_hash": self.split_hash(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with other patients.

        Raises:
            IDCError: If the checkpoint was trained on another split.
        """
        if self._store is not None and state_dict["split_hash"] != self.split_hash():
            raise IDCError(
                "the checkpoint was trained on another split of the patients: give its own by "
                "split=file split.path=<its run folder>/splits.csv"
            )


def as_float(image: Tensor) -> Tensor:
    """Turn uint8 in 0 to 255 to float32 in 0 to 1."""
    return image.float().div_(255)


def _demo(data: DemoDataConfig, cache: Path) -> Path:
    """Folder of the demo tissue, made on first use.

    Raises:
        IDCError: If it can't be made, or patients were deleted since.
    """
    size = f"{data.patients}-patients_{data.patches or 'drawn'}-patches"
    name = f"{size}_seed-{data.seed}_drawing-{DRAWING}"
    folder = cache.expanduser() / "demo" / name
    with made_once(folder) as partial:
        if partial is not None:
            make_demo(
                partial / "tissue", patients=data.patients, patches=data.patches, seed=data.seed
            )
    tissue = folder / "tissue"
    if not tissue.is_dir() or sum(1 for _ in tissue.iterdir()) < data.patients:
        raise IDCError(f"parts of the demo tissue in {folder} are gone: delete this folder")
    return tissue


def _check_classes(table: pd.DataFrame) -> None:
    """Stop if a split is empty or train lacks a class."""
    for name in NAMES:
        if not (table["split"] == name).any():
            raise IDCError(
                f"no patch of {name} is left: check data.sample, data.edge_patches and "
                "data.on_broken"
            )
    targets = table.loc[table["split"] == "train", "target"].unique()
    for target, name in enumerate(CLASSES):
        if target not in targets:
            raise IDCError(
                f"train has no {name} patch, so nothing can be learned: take another "
                "split or add patients"
            )
