"""Rows of an array on disk, each compared with its checksum before it is first used."""

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from idc_lightning.errors import IDCError


def checksums_of(rows: Iterable[npt.NDArray[np.generic]]) -> npt.NDArray[np.uint32]:
    """CRC-32 of each row, uint32 [n], where 1 stands for 0, which is kept for "not there"."""
    sums = (zlib.crc32(np.ascontiguousarray(row).data) or 1 for row in rows)
    return np.fromiter(sums, dtype=np.uint32)


class CheckedRows:
    """An array whose rows are checked when they are first read.

    Looking at all of them at once would cost a start seconds; what lies on a disk that fails is
    noticed all the same before it is used. A mapped array is mapped anew in another process.

    Args:
        array: [M, ...].
        checksums: Of each row, as of `checksums_of`.
        damaged: The error if a row isn't what was written.
    """

    def __init__(
        self, array: npt.NDArray[Any], checksums: npt.NDArray[np.uint32], *, damaged: str
    ) -> None:
        self._array = array
        self._checksums = checksums
        self._damaged = damaged
        self._unchecked = np.ones(len(array), dtype=bool)

    def __len__(self) -> int:
        """Number of rows, M."""
        return len(self._array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, [M, ...]."""
        return self._array.shape

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of the array."""
        return self._array.dtype

    def read(self, places: npt.ArrayLike) -> npt.NDArray[Any]:
        """Copy some rows.

        Args:
            places: Their numbers, of any shape.

        Returns:
            Of this shape and that of a row.

        Raises:
            IDCError: If one isn't what was written.
        """
        places = np.asarray(places)
        rows: npt.NDArray[Any] = self._array[places]
        unchecked = self._unchecked[places]
        if unchecked.any():
            new = places[unchecked]
            if (checksums_of(rows[unchecked]) != self._checksums[new]).any():
                raise IDCError(self._damaged)
            self._unchecked[new] = False
        return rows

    def __getstate__(self) -> dict[str, Any]:
        """Without rows that are mapped from disk."""
        state = dict(self.__dict__)
        if isinstance(self._array.base, np.memmap):
            state["_array"] = self._array.base.filename
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map them again if they were left out."""
        if not isinstance(state["_array"], np.ndarray):
            state["_array"] = np.asarray(np.load(state["_array"], mmap_mode="r"))
        self.__dict__.update(state)
