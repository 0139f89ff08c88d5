"""Patches beside one another, magnified: galleries, and what augmentation makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from idc_lightning.data.grid import PATCH
from idc_lightning.figures.style import DPI, Picture, drawing, shortened

Pixels = npt.NDArray[np.uint8]

TILE = 2 * (PATCH + 6) / DPI
"""Inches from one patch to the next, at two pixels of the picture for one of the patch."""

LINE = 14 / DPI
"""Inches of a line of text."""

ACROSS = 10
"""Patches in a row."""

SIZE = 7
"""Of the letters beside a patch, in points."""

ROOM = TILE - 0.06
"""Inches of a line below or above a patch."""


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


def draw_gallery(path: Path, gallery: Gallery) -> Picture:
    """Draw the patches of a gallery, each with its lines below.

    Args:
        path: The PNG file.
        gallery: The patches.

    Raises:
        IDCError: If the file can't be written.
    """
    tiles = gallery.tiles
    # Galleries of thousands grow to both sides, since pictures can't be of any height.
    columns = max(1, min(len(tiles), max(ACROSS, int(len(tiles) ** 0.5))))
    rows = max(1, -(-len(tiles) // columns))
    lines = max((len(tile.lines) for tile in tiles), default=1)
    down = TILE + lines * LINE
    with drawing(path, columns * TILE + 0.1, rows * down + 0.1) as (_, (axes,)):
        _bare(axes, columns * TILE + 0.1, rows * down + 0.1)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            left, top = 0.1 + column * TILE, 0.1 + row * down
            _place(axes, tile.pixels, left, top)
            below = "\n".join(shortened(line, ROOM, SIZE) for line in tile.lines)
            axes.text(left, top + _inches(PATCH) + 0.03, below, va="top", size=SIZE)
        if not tiles:
            axes.text(0.1, 0.1, "no patches", va="top")
    return Picture(path, gallery.title, gallery.caption, wide=columns > 6)


def draw_augmentation(
    path: Path, views: Mapping[str, Sequence[Pixels]], names: Sequence[tuple[str, ...]]
) -> Picture:
    """Draw the same patches as they are, as training and as evaluation sees them.

    Args:
        path: The PNG file.
        views: Rows by what they show; each holds one uint8 [height, width, 3] for each patch, at
            most 50x50.
        names: Lines above each patch.

    Raises:
        IDCError: If the file can't be written.
    """
    margin = 0.1 + 0.075 * max(len(view) for view in views)
    head = 0.1 + LINE * max(len(lines) for lines in names)
    width, height = margin + len(names) * TILE, head + len(views) * TILE
    with drawing(path, width, height) as (_, (axes,)):
        _bare(axes, width, height)
        for column, lines in enumerate(names):
            above = "\n".join(shortened(line, ROOM, SIZE) for line in lines)
            axes.text(margin + column * TILE, head - 0.04, above, va="bottom", size=SIZE)
        for row, (view, patches) in enumerate(views.items()):
            top = head + row * TILE
            axes.text(margin - 0.1, top + _inches(PATCH) / 2, view, ha="right", va="center", size=9)
            for column, pixels in enumerate(patches):
                _place(axes, pixels, margin + column * TILE, top)
    return Picture(
        path,
        "What training and evaluation see",
        "Each column is a patch. Training draws anew in each epoch; evaluation never changes a "
        "patch, beside bringing edge patches, which don't fill their frame, to full size. "
        "Look for draws that no longer look like stained tissue: then the augmentation is too "
        "strong.",
        wide=True,
    )


def _bare(axes: Axes, width: float, height: float) -> None:
    """Make axes the whole picture, measured in inches from its upper left."""
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.set_layout_engine("none")
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()


def _place(axes: Axes, pixels: Pixels, left: float, top: float) -> None:
    """Draw a patch in a frame, which one smaller than 50x50 px doesn't fill."""
    height, width = (_inches(side) for side in pixels.shape[:2])
    axes.imshow(
        pixels,
        extent=(left, left + width, top + height, top),
        interpolation="nearest",
        aspect="auto",
    )
    right, bottom = left + _inches(PATCH), top + _inches(PATCH)
    corners = ([left, right, right, left, left], [top, top, bottom, bottom, top])
    axes.plot(*corners, color="#aaaaaa", linewidth=0.6)


def _inches(pixels: int) -> float:
    """Length of so many pixels of a patch."""
    return 2 * pixels / DPI
