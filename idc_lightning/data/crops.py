"""How slides are cut into crops of cells: patches one by one, tilings of an epoch, whole slides.

A crop sees patches of one slide only. Which patches there are is all that is known here; pixels are
gathered by `idc_lightning.data.batches`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from idc_lightning.config import DataConfig
from idc_lightning.data.grid import NO_CELL, places

Ints = npt.NDArray[np.int64]

BITS = 20
"""Bits of a row and of a column in the number of a place, which a coordinate of 7 digits needs."""

SHIFT = 1 << 10
"""Added to rows and columns, so that crops may begin before the first cell of a slide."""

TRIED = 8
"""Tilings from which the number of crops in an epoch is taken."""


class Cut(Protocol):
    """Crops that are known by numbers."""

    def __len__(self) -> int:
        """Crops of an epoch."""

    def order(self, rng: np.random.Generator) -> Ints:
        """Numbers of the crops of an epoch in random order, as many as there are or more."""

    def cells(self, numbers: Sequence[int]) -> tuple[Ints, Ints]:
        """Row numbers in the table, int64 [B, h, w] twice; -1 where there is no patch.

        First those of all patches that the crops show, then those that are judged by them.
        """


def training_cut(data: DataConfig, table: pd.DataFrame, rows: Ints) -> Cut:
    """How patches are cut into what is learned from: one by one, or by crops of ``data.crop``."""
    return Patches(rows) if data.crop == 1 else Tilings(Slides(table, rows), data.crop)


def judging_cut(data: DataConfig, table: pd.DataFrame, rows: Ints) -> Cut:
    """How patches are cut to judge each of them once: one by one, or by whole slides."""
    if data.crop == 1:
        return Patches(rows)
    return Windows(Slides(table, rows), data.window, data.margin)


class Patches:
    """Each patch as a crop of its own.

    Args:
        rows: Their row numbers in the table [n].
    """

    def __init__(self, rows: Ints) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, rng: np.random.Generator) -> Ints:
        """As of `Cut`."""
        return rng.permutation(len(self._rows))

    def cells(self, numbers: Sequence[int]) -> tuple[Ints, Ints]:
        """As of `Cut`."""
        cells = self._rows[np.asarray(numbers, dtype=np.int64)].reshape(-1, 1, 1)
        return cells, cells


class Slides:
    """Finds the patches at places of slides, however far apart these are.

    A place is one number of slide, row and column.

    Args:
        table: Patches with patient_id, x and y, no two of a patient at one position.
        rows: Row numbers of those that there are [n].
    """

    def __init__(self, table: pd.DataFrame, rows: Ints) -> None:
        chosen = table.iloc[rows]
        self.slide = pd.factorize(chosen["patient_id"])[0].astype(np.int64)
        self.row, self.column = places(chosen["x"].to_numpy(), chosen["y"].to_numpy())
        place = place_of(self.slide, self.row, self.column)
        order = np.argsort(place)
        self._places, self._rows = place[order], rows[order]

    def cells(self, corners: Ints, height: int, width: int) -> Ints:
        """Row numbers of the patches of crops.

        Args:
            corners: Places of their upper left cells [B].
            height: Rows of each.
            width: Columns of each.

        Returns:
            Int64 [B, height, width]; -1 where there is no patch.
        """
        steps = (np.arange(height)[:, None] << BITS) + np.arange(width)
        wanted = corners[:, None, None] + steps
        found = np.searchsorted(self._places, wanted).clip(max=len(self._places) - 1)
        return np.where(self._places[found] == wanted, self._rows[found], NO_CELL)


def place_of(slide: Ints, row: Ints, column: Ints) -> Ints:
    """The numbers of places, from rows and columns of cells, which may be negative."""
    return (slide << 2 * BITS) + ((row + SHIFT) << BITS) + column + SHIFT


class Tilings:
    """Slides tiled by square crops, otherwise in each epoch.

    A tiling shows each patch once, beside other neighbours at the borders of its crop each time. It
    has few cells without a patch: crops lie in strips of rows or columns, and each begins, from
    either end, with the first patch that the one before hasn't reached.

    Args:
        slides: What is tiled.
        size: Rows and columns of a crop.
    """

    def __init__(self, slides: Slides, size: int) -> None:
        self._slides = slides
        self._size = size
        self._number = int(slides.slide.max()) + 1
        rng = np.random.default_rng(0)
        self._length = round(np.mean([len(self.tiling(rng)) for _ in range(TRIED)]))

    def __len__(self) -> int:
        """As many as a tiling has on average, so that all epochs have the same length."""
        return self._length

    def order(self, rng: np.random.Generator) -> Ints:
        """As of `Cut`: of one tiling, and of others where it has fewer crops than an epoch."""
        crops = rng.permutation(self.tiling(rng))
        while len(crops) < self._length:
            crops = np.append(crops, rng.permutation(self.tiling(rng)))
        return crops

    def tiling(self, rng: np.random.Generator) -> Ints:
        """Places of the crops of a tiling, int64 [n], in which each slide has strips of its own."""
        slides, size = self._slides, self._size
        first = rng.integers(size, size=self._number)[slides.slide]
        down, backwards = rng.integers(2, size=(2, self._number)).astype(bool)[:, slides.slide]
        across = np.where(down, slides.column, slides.row)
        along = np.where(down, slides.row, slides.column)
        strip = (across - first) // size
        step = np.where(backwards, -along, along)
        order = np.lexsort((step, strip, slides.slide))
        # Strips follow each other far apart, so that the first patch beyond the last crop of a
        # strip is the first one of the next.
        names = np.stack([slides.slide, strip])[:, order]
        apart = np.append(True, (np.diff(names) != 0).any(0))
        line = step[order] + (np.cumsum(apart) << BITS + 1)
        following = np.searchsorted(line, line + size)
        chosen, at = [], 0
        while at < len(line):
            chosen.append(order[at])
            at = following[at]
        begin = np.where(backwards, along - size + 1, along)[chosen]
        side = (strip * size + first)[chosen]
        row, column = np.where(down[chosen], (begin, side), (side, begin))
        return place_of(slides.slide[chosen], row, column)

    def cells(self, numbers: Sequence[int]) -> tuple[Ints, Ints]:
        """As of `Cut`."""
        corners = np.asarray(numbers, dtype=np.int64)
        cells = self._slides.cells(corners, self._size, self._size)
        return cells, cells


@dataclass(frozen=True)
class Window:
    """A part of a slide and, within it, what is judged: from its rows and columns to these."""

    corner: int
    height: int
    width: int
    judged: tuple[slice, slice]


class Windows:
    """Whole slides, or parts of large ones that see some cells more than they judge.

    Each patch is judged once. Windows differ in size, so that they are taken one by one.

    Args:
        slides: What is shown.
        size: Rows and columns of a window at most.
        margin: Rows and columns that a part sees beyond what it judges, on each side.
    """

    def __init__(self, slides: Slides, size: int, margin: int) -> None:
        self._slides = slides
        self._windows = [
            window
            for slide in range(int(slides.slide.max(initial=-1)) + 1)
            for window in _windows(slides, slide, size, margin)
        ]

    def __len__(self) -> int:
        return len(self._windows)

    def order(self, rng: np.random.Generator) -> Ints:
        """As of `Cut`."""
        return rng.permutation(len(self._windows))

    def cells(self, numbers: Sequence[int]) -> tuple[Ints, Ints]:
        """As of `Cut`, of one window; ``~number`` shows it and judges none of it."""
        (number,) = numbers
        window = self._windows[max(number, ~number)]
        shown = self._slides.cells(np.array([window.corner]), window.height, window.width)
        judged = np.full_like(shown, NO_CELL)
        if number >= 0:
            judged[:, *window.judged] = shown[:, *window.judged]
        return shown, judged


def _windows(slides: Slides, slide: int, size: int, margin: int) -> list[Window]:
    """The windows of a slide that judge a patch."""
    mine = slides.slide == slide
    down = _Axis.over(slides.row[mine], size, margin)
    across = _Axis.over(slides.column[mine], size, margin)
    parts = np.unique([down.part(slides.row[mine]), across.part(slides.column[mine])], axis=1)
    windows = []
    for row, column in parts.T.tolist():
        (top, height, rows), (left, width, columns) = down.seen(row), across.seen(column)
        corner = int(place_of(np.int64(slide), np.int64(top), np.int64(left)))  # type: ignore[arg-type]
        windows.append(Window(corner, height, width, (rows, columns)))
    return windows


@dataclass(frozen=True)
class _Axis:
    """Rows or columns of a slide, divided into parts of equal length."""

    first: int
    length: int
    step: int
    margin: int

    @classmethod
    def over(cls, taken: Ints, size: int, margin: int) -> "_Axis":
        first = int(taken.min())
        length = int(taken.max()) - first + 1
        if length <= size:
            return cls(first, length, length, 0)
        number = -(-length // (size - 2 * margin))
        return cls(first, length, -(-length // number), margin)

    def part(self, taken: Ints) -> Ints:
        """In which part rows or columns lie."""
        return (taken - self.first) // self.step

    def seen(self, part: int) -> tuple[int, int, slice]:
        """What the window of a part sees, its first and their number, and what it judges of it."""
        start, stop = part * self.step, min((part + 1) * self.step, self.length)
        begin, end = max(0, start - self.margin), min(self.length, stop + self.margin)
        return self.first + begin, end - begin, slice(start - begin, stop - begin)
