"""How all pictures look, and how they reach the disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from idc_lightning.files import replaced

HEALTHY = "#0072B2"
IDC = "#D55E00"
CLASS_COLOURS = (HEALTHY, IDC)
SPLIT_COLOURS = {"train": "#56B4E9", "dev": "#E69F00", "test": "#009E73", "new": "#CC79A7"}
"""Told apart by colour-blind people (M. Okabe and K. Ito, "Color universal design", 2008)."""

HEAT = "viridis"
"""Colours of a value from 0 to 1: even in lightness, safe for colour-blind people."""

DPI = 110

RULES: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    # Names of folders may hold a $, which would begin a formula.
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Picture:
    """A picture on disk.

    Attributes:
        path: A PNG file.
        title: What it shows, in a few words.
        caption: What to look for.
        wide: Whether it needs more width than a phone has, and so scrolls there.
    """

    path: Path
    title: str
    caption: str
    wide: bool = False


@contextmanager
def drawing(
    path: Path, width: float, height: float, *, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Draw a picture and write it when the block ends.

    Nothing of it stays in memory afterwards, so that hundreds can be drawn in turn.

    Args:
        path: The PNG file.
        width: In inches of `DPI` pixels.
        height: Likewise.
        rows: Of axes.
        columns: Of axes.

    Yields:
        The figure and its axes, row by row.

    Raises:
        IDCError: If the file can't be written.
    """
    with mpl.rc_context(RULES):
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(axes.flat)
        with replaced(path) as partial:
            figure.savefig(partial, format="png")
