"""Geometry of tissue on a grid: file names, positions of cells, and their pixels.

A slide is a grid of cells of 50x50 px. All that turns a position into a cell or a cell into pixels
stands here, so that x (column) and y (row) can be swapped nowhere else.
"""

import re

import numpy as np
import numpy.typing as npt
from torch import Tensor

PATCH = 50
"""Width and height of a cell in pixels."""

# Printable, and no lone surrogates, which stand for bytes that are no UTF-8.
_WORD = r"[^\s/\x00-\x1f\x7f\ud800-\udfff]+"
PATIENT_NAME = rf"{_WORD}(?: {_WORD})*"
NUMBER = r"0|[1-9][0-9]{0,6}"
"""What a patient and a coordinate look like in the name of a file, as regular expressions."""

FILE_NAME = re.compile(
    rf"(?P<patient_id>{PATIENT_NAME})_idx5_x(?P<x>{NUMBER})_y(?P<y>{NUMBER})"
    r"_class(?P<target>[01])\.png"
)
"""Name of a patch; x is the column and y the row of its upper left pixel, both from 1.

A patient, a position and a class have one name only, so numbers have no leading zeros.
"""

CLASSES = ("healthy", "IDC")
"""Names of the labels 0 and 1."""

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


def places(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row and column of cells, int64 [n] each, from 0.

    Args:
        x: Columns of the upper left pixels [n], from 1.
        y: Rows of the upper left pixels [n], from 1.
    """
    return (y - 1) // PATCH, (x - 1) // PATCH


def cell_map(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], values: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Lay one value for each cell of a slide on its grid.

    Args:
        x: Columns of the upper left pixels [n], from 1.
        y: Rows of the upper left pixels [n], from 1.
        values: One for each cell [n].

    Returns:
        Float64 [rows, columns]; NaN where there is no cell.
    """
    row, column = places(x, y)
    laid = np.full((row.max() + 1, column.max() + 1), np.nan)
    laid[row, column] = values
    return laid


def tissue_image(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], pixels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Put the patches of a slide together.

    Args:
        x: Columns of the upper left pixels [n], from 1.
        y: Rows of the upper left pixels [n], from 1.
        pixels: Patches [n, 50, 50, 3].

    Returns:
        Uint8 [50 rows, 50 columns, 3], white where there is no patch.
    """
    row, column = places(x, y)
    cells = np.full((row.max() + 1, column.max() + 1, PATCH, PATCH, 3), 255, dtype=np.uint8)
    cells[row, column] = pixels
    rows, columns = cells.shape[:2]
    return cells.swapaxes(1, 2).reshape(rows * PATCH, columns * PATCH, 3)


def grid_of(image: Tensor) -> tuple[int, int]:
    """Rows and columns of cells in images [B, 3, 50h, 50w]: h and w."""
    return image.shape[-2] // PATCH, image.shape[-1] // PATCH


def assemble(pixels: Tensor) -> Tensor:
    """Put the cells of crops side by side.

    Args:
        pixels: Cells [B, h, w, 50, 50, 3]: crop, row and column of the cell, row and column of the
            pixel, colour.

    Returns:
        Images [B, 3, 50h, 50w] of the same dtype.
    """
    batch, rows, columns, height, width, channels = pixels.shape
    return pixels.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * height, columns * width)
