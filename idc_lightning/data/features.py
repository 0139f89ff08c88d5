"""Features of a frozen backbone on disk: one row for each patch of a store and each of its views.

It knows nothing of the network. Rows are filled as they are needed and marked only when they lie on
disk, so that runs with other splits share them and a run that was killed leaves what it finished.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idc_lightning.data.checked import CheckedRows, checksums_of
from idc_lightning.data.views import VIEWS
from idc_lightning.errors import IDCError
from idc_lightning.files import locked, made_once, need_room, remade, replaced, write_text

FOLDER = "features"
"""Folder of all features in a cache."""

FACTS = "features.json"

FORMAT = 3
"""Number of the files' layout and of what they hold, to be raised with each change of either.

So also when views, normalisation, convolutions or pooling change, which no key of the features
tells.
"""

KINDS = {torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.float16}
"""How features lie on disk, where numpy has no bfloat16."""


@dataclass(frozen=True)
class Features:
    """Features of the patches that a run uses.

    Attributes:
        arrays: [M, F] of each view that is there, mapped from disk.
        places: Row of the arrays for each row of the run's table, int64 [n].
        dtype: In what they were computed.
    """

    arrays: dict[int, CheckedRows]
    places: npt.NDArray[np.int64]
    dtype: torch.dtype

    def read(self, rows: Tensor, views: Tensor | None = None) -> Tensor:
        """Gather features.

        Args:
            rows: Rows of the run's table, int64 [B].
            views: View of each, int64 [B]; None takes the patches as they are.

        Returns:
            Float32 [B, F].

        Raises:
            IDCError: If they aren't those that were computed.
        """
        places = self.places[rows.cpu().numpy()]
        if views is None:
            return self._as_float(self.arrays[0].read(places))
        chosen = views.cpu().numpy()
        absent = set(np.unique(chosen).tolist()) - set(self.arrays)
        if absent:
            raise ValueError(f"features of the views {sorted(absent)} weren't opened")
        first = next(iter(self.arrays.values()))
        gathered = np.empty((len(places), first.shape[1]), dtype=first.dtype)
        for view, array in self.arrays.items():
            mask = chosen == view
            gathered[mask] = array.read(places[mask])
        return self._as_float(gathered)

    def _as_float(self, values: npt.NDArray[np.generic]) -> Tensor:
        found = torch.from_numpy(values)
        return found.view(self.dtype).float() if self.dtype == torch.bfloat16 else found.float()


class FeatureCache:
    """A folder of features of one backbone, on one store, in one precision.

    Args:
        folder: Made on first use; its name tells it from others.
        patches: Number of patches in the store, M.
        width: Number of features, F.
        dtype: In what they are computed: float32, bfloat16 or float16.

    Raises:
        IDCError: If the folder can't be made, or holds other features.
    """

    def __init__(self, folder: Path, *, patches: int, width: int, dtype: torch.dtype) -> None:
        self.folder = folder
        self.shape = (patches, width)
        self.dtype = dtype
        self._checksums_path = folder / "checksums.npy"
        self._facts = {"format": FORMAT, "patches": patches, "width": width, "dtype": str(dtype)}
        with made_once(folder) as partial:
            if partial is not None:
                self._begin(partial)
        if _read_facts(folder) != self._facts:
            raise _damaged(folder)

    def _begin(self, folder: Path) -> None:
        """Write what says that there are no features yet."""
        write_text(folder / FACTS, json.dumps(self._facts))
        none = np.zeros((VIEWS, self.shape[0]), dtype=np.uint32)
        _save(folder / self._checksums_path.name, none)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Keep other processes from computing the same features at the same time.

        Whoever finds another one at work says so once and waits.
        """
        with locked(self.folder, waiting=f"waiting for another process that fills {self.folder}"):
            if not self.folder.is_dir():  # it was cleaned meanwhile
                with remade(self.folder) as partial:
                    self._begin(partial)
            yield

    def check_room(self, rows: int) -> None:
        """Stop before so many rows are computed if the disk can't take them.

        Raises:
            IDCError: If it has too little room.
        """
        size = rows * self.shape[1] * self.dtype.itemsize
        need_room(
            self.folder,
            size,
            what=f"features of {rows:,} views of patches take",
            instead="choose another cache=<folder>, or set data.features=off",
        )

    def missing(self, view: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Which of some patches have no features of a view yet, ordered, each once."""
        wanted = np.zeros(self.shape[0], dtype=bool)
        wanted[places] = True
        return np.flatnonzero(wanted & (self._checksums()[view] == 0))

    def write(self, view: int, places: npt.NDArray[np.int64], features: Tensor) -> None:
        """Add features, to be called within `filling`.

        Args:
            view: 0 to 7.
            places: Rows of the store [n].
            features: [n, F].

        Raises:
            IDCError: If they can't be written.
        """
        path = self._path(view)
        values = features.to(self.dtype).cpu()
        raw = values.view(torch.uint16) if self.dtype == torch.bfloat16 else values
        try:
            if not path.exists():
                with replaced(path) as partial:
                    _write_empty(partial, self.shape, np.dtype(KINDS[self.dtype]))
            _write_rows(path, self._open(path).offset, places, raw.numpy())
        except OSError as error:
            raise _cannot_write(path, error) from error
        checksums = self._checksums()
        checksums[view, places] = checksums_of(raw.numpy())
        with replaced(self._checksums_path) as partial:
            _save(partial, checksums)

    def open(self, views: list[int], places: npt.NDArray[np.int64]) -> Features:
        """What was computed, for reading.

        Args:
            views: Those that are read.
            places: Row of the store for each row of the run's table [n].

        Raises:
            IDCError: If they are damaged.
        """
        checksums = self._checksums()
        arrays = {
            view: CheckedRows(
                np.asarray(self._open(self._path(view))),
                checksums[view],
                damaged=str(_damaged(self.folder)),
            )
            for view in views
        }
        return Features(arrays, places, self.dtype)

    def _path(self, view: int) -> Path:
        return self.folder / f"view-{view}.npy"

    def _open(self, path: Path) -> "np.memmap[Any, Any]":
        try:
            array: np.memmap[Any, Any] = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(self.folder) from error
        if array.shape != self.shape or array.dtype != KINDS[self.dtype]:
            raise _damaged(self.folder)
        return array

    def _checksums(self) -> npt.NDArray[np.uint32]:
        """Of each view and row, uint32 [8, M]; 0 where nothing was computed yet."""
        try:
            found: npt.NDArray[np.uint32] = np.load(self._checksums_path)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(self.folder) from error
        if found.shape != (VIEWS, self.shape[0]) or found.dtype != np.uint32:
            raise _damaged(self.folder)
        return found


def stored_dtype(folder: Path) -> torch.dtype | None:
    """In what the features of a folder were computed; None if there is no such folder.

    Raises:
        IDCError: If they are damaged.
    """
    if not folder.is_dir():
        return None
    found = {str(dtype): dtype for dtype in KINDS}.get(str(_read_facts(folder).get("dtype")))
    if found is None:
        raise _damaged(folder)
    return found


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder) from error
    return found if isinstance(found, dict) else {}


def _write_empty(path: Path, shape: tuple[int, int], dtype: "np.dtype[Any]") -> None:
    """Write an array of zeros that takes no room where file systems allow it."""
    facts = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, facts)
        file.truncate(file.tell() + shape[0] * shape[1] * dtype.itemsize)


def _write_rows(
    path: Path, start: int, places: npt.NDArray[np.int64], rows: npt.NDArray[np.generic]
) -> None:
    """Write rows into the array of a file whose data begin at a byte."""
    ends = np.flatnonzero(np.diff(places) != 1) + 1
    # Writing tells of a full disk by an error; a memory map would end the process.
    with path.open("r+b") as file:
        for first, run in zip([0, *ends.tolist()], np.split(rows, ends), strict=True):
            file.seek(start + int(places[first]) * rows[0].nbytes)
            file.write(np.ascontiguousarray(run).data)


def _save(path: Path, array: npt.NDArray[np.uint32]) -> None:
    with path.open("wb") as file:  # np.save would append .npy to a temporary name
        np.save(file, array)


def _damaged(folder: Path) -> IDCError:
    return IDCError(f"the features in {folder} are damaged: delete this folder")


def _cannot_write(path: Path, error: OSError) -> IDCError:
    return IDCError(
        f"can't write {path}: {error.strerror}; free space, choose another cache=<folder>, or set "
        "data.features=off"
    )
