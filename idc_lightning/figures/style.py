"""How all pictures look, and how they reach the disk."""

import warnings
from bisect import bisect_right
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

MARKERS = {"dev": "o", "test": "D", "new": "s"}
"""Marks of the splits that are judged."""

GREY = "#555555"
"""Of what belongs to no class and no split."""

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
    with mpl.rc_context(RULES), _any_script():
        figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(axes.flat)
        with replaced(path) as partial:
            figure.savefig(partial, format="png")


@contextmanager
def _any_script() -> Iterator[None]:
    """Draw a box for a letter that the font lacks, silently.

    Names of folders may be in any script; the report shows them as they are.
    """
    with warnings.catch_warnings():
        for message in ("Glyph .* missing from", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield


def shortened(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Cut a line of text, such as a patient's name, where it would not fit.

    Args:
        text: One line.
        inches: The room it has.
        size: Of the letters, in points.
        bold: Whether they are bold.

    Returns:
        The text itself if it fits, else as much of its begin as does, and "…".
    """
    figure = Figure(figsize=(1, 1), dpi=DPI)
    FigureCanvasAgg(figure)
    weight = "bold" if bold else "normal"
    drawn = figure.text(0, 0, "", size=size, weight=weight, parse_math=False)

    def width(part: str) -> float:
        drawn.set_text(part)
        return drawn.get_window_extent().width / DPI

    with _any_script():
        if width(text) <= inches:
            return text
        ends = range(1, len(text))
        fitting = bisect_right(ends, inches, key=lambda end: width(f"{text[:end]}…"))
    return f"{text[:fitting]}…"


def text_colour(background: tuple[float, float, float, float]) -> str:
    """Black or white, whichever has more contrast (WCAG 2.1): 4.58:1 or more on any colour.

    Args:
        background: Red, green, blue and opacity, 0 to 1; a colour that hides what is below.
    """
    channels = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in background[:3]
    ]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    # Contrast is (lighter + 0.05) / (darker + 0.05).
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
