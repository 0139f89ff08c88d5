"""Names beside the marks of a scatter plot, where they cover nothing."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

from idc_lightning.figures.style import GREY, shortened

Floats = npt.NDArray[np.float64]

SIZE = 8
"""Of the names, in points."""

WIDEST = 0.95
"""Inches that a name takes at most."""


def name_points(
    figure: Figure, axes: Axes, names: Sequence[str], at: Floats, marks: Floats, line: Floats
) -> None:
    """Write names where they cover no mark, no other name and no line; the first have precedence.

    A name without a free place is left out. All places are in the data's units.

    Args:
        figure: The whole picture, in which all but the names is drawn already.
        axes: Axes with the marks.
        names: What is written.
        at: The mark that each name belongs to, x and y [names, 2].
        marks: All marks [n, 2].
        line: Points of a line that is kept free [m, 2].
    """
    figure.draw_without_rendering()  # places the axes, so that pixels are known
    to_pixels = axes.transData.transform
    taken = [Bbox.from_bounds(left - 5, low - 5, 10, 10) for left, low in to_pixels(marks)]
    taken += [Bbox.from_bounds(left, low, 1, 1) for left, low in to_pixels(line)]
    written: list[Bbox] = []
    for name, place in zip(names, at, strict=True):
        text = axes.annotate(
            shortened(name, WIDEST, SIZE),
            (place[0], place[1]),
            xytext=(0, 0),
            textcoords="offset points",
            size=SIZE,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 3},
            zorder=2,
        )
        # Only its size matters; the constrained layout would make room for it.
        text.set_in_layout(False)
        point = to_pixels(place)
        box = _free_place(axes.bbox, point, Text.get_window_extent(text), taken, written)
        if box is None:
            text.remove()
            continue
        left, low = (box.min - point) * 72 / figure.dpi
        text.set_position((left, low))
        written.append(text.get_window_extent())  # with the line to its mark


def _free_place(
    axes: BboxBase, point: Floats, size: Bbox, marks: Sequence[Bbox], names: Sequence[Bbox]
) -> Bbox | None:
    """The nearest box of this size beside a point, all in pixels, that is free; None without one.

    It stays inside the axes and touches neither marks nor names; the line to it crosses no name.
    """
    half = np.array([size.width, size.height]) / 2
    for distance in (8, 16, 26, 38, 52, 68):
        for angle in np.deg2rad([0, 180, -45, -135, 45, 135, 90, -90]):
            way = np.array([np.cos(angle), np.sin(angle)])
            low = point + way * distance + (way - 1) * half
            box = Bbox.from_bounds(low[0], low[1], size.width, size.height)
            corners = [(box.x0, box.y0), (box.x1, box.y1)]
            line = np.linspace(point, low + half, 20)
            if (
                all(axes.contains(x, y) for x, y in corners)
                and not box.padded(2).count_overlaps([*marks, *names])
                and not any(name.contains(x, y) for name in names for x, y in line)
            ):
                return box
    return None
