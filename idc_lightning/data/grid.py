"""Geometry of tissue on a grid: file names, positions of cells, and their pixels.

A slide is a grid of cells of 50x50 px. All that turns a position into a cell or a cell into pixels
stands here, so that x (column) and y (row) can be swapped nowhere else.
"""

import re

from torch import Tensor

PATCH = 50
"""Width and height of a cell in pixels."""

# Printable, and no lone surrogates, which stand for bytes that are no UTF-8.
_WORD = r"[^\s/\x00-\x1f\x7f\ud800-\udfff]+"
_NUMBER = r"0|[1-9][0-9]{0,6}"

FILE_NAME = re.compile(
    rf"(?P<patient_id>{_WORD}(?: {_WORD})*)_idx5_x(?P<x>{_NUMBER})_y(?P<y>{_NUMBER})"
    r"_class(?P<target>[01])\.png"
)
"""Name of a patch; x is the column and y the row of its upper left pixel, both from 1.

A patient, a position and a class have one name only, so numbers have no leading zeros.
"""

NO_CELL = -1
"""Row number that stands for a place without a patch."""

NO_LABEL = -1
"""Label of a place without a patch; loss and metrics leave it out."""


def file_name(patient_id: str, x: int, y: int, target: int) -> str:
    """The name of a patch.

    Args:
        patient_id: The patient, as in the folder's name.
        x: Column of the upper left pixel, from 1.
        y: Row of the upper left pixel, from 1.
        target: 0 for healthy, 1 for IDC.
    """
    return f"{patient_id}_idx5_x{x}_y{y}_class{target}.png"


def assemble(pixels: Tensor) -> Tensor:
    """Put the cells of crops side by side.

    Args:
        pixels: Cells [B, g, g, 50, 50, 3]: crop, row and column of the cell, row and column of the
            pixel, colour.

    Returns:
        Images [B, 3, 50g, 50g] of the same dtype.
    """
    batch, rows, columns, height, width, channels = pixels.shape
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * height, columns * width)
