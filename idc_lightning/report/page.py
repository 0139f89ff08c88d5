"""A report as one HTML file that opens offline: sections of pictures, tables and galleries.

Pictures are read from disk one after the other while the file is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from idc_lightning.figures.style import Picture


@dataclass(frozen=True)
class DataTable:
    """A table that a reader can sort by any column.

    Attributes:
        title: What it shows, in a few words.
        caption: What to look for.
        rows: The cells. Floats are shown with three digits, missing values as a dash.
    """

    title: str
    caption: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Tile:
    """A patch of a gallery.

    Attributes:
        pixels: Uint8 [50, 50, 3].
        lines: What stands below it.
    """

    pixels: npt.NDArray[np.uint8]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Patches beside one another.

    Attributes:
        title: What it shows, in a few words.
        caption: What to look for.
        tiles: The patches.
    """

    title: str
    caption: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading of its own.

    Attributes:
        title: The heading.
        text: A paragraph below it; may be empty.
        items: What it shows.
    """

    title: str
    text: str
    items: Sequence[Picture | DataTable | Gallery]


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    sections: Iterable[Section],
    notes: Sequence[str] = (),
) -> None:
    """Write a report.

    Args:
        path: The HTML file.
        title: Its heading.
        facts: What stands at its top, by name.
        sections: Its parts; taken one after the other, so that they may be made meanwhile.
        notes: Lines on what was left out or is doubtful, which stand out at the top.

    Raises:
        IDCError: If the file can't be written.
    """
    raise NotImplementedError
