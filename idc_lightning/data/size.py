"""Whether patches are as large as a cell, told by a few of them before all are read."""

from collections import Counter
from pathlib import Path

import pandas as pd

from idc_lightning.data.grid import PATCH
from idc_lightning.data.store import HEADER, START
from idc_lightning.errors import IDCError

LOOKED_AT = 200
"""Files whose headers are read."""


def check_size(root: Path, table: pd.DataFrame) -> None:
    """Stop if most patches are of another size than a cell's.

    Patches that are smaller in one direction may all lie at an edge of the tissue. Single files
    that are too large are told when they are read.

    Args:
        root: Folder that the table's paths start from.
        table: Patches with path.

    Raises:
        IDCError: If they are larger, or smaller in both directions.
    """
    paths = table["path"].iloc[:: max(1, len(table) // LOOKED_AT)]
    sizes = Counter(size for size in (_size(root / path) for path in paths) if size is not None)
    if not sizes:
        return
    (width, height), _ = sizes.most_common(1)[0]
    if max(width, height) > PATCH or (width < PATCH and height < PATCH):
        raise IDCError(
            f"most patches of {root} have {width}x{height} px, but the run was trained on "
            f"{PATCH}x{PATCH} px: cut them to this size, at the magnification of its data"
        )


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG; None for what isn't one."""
    try:
        with path.open("rb") as file:
            head = file.read(HEADER.size)
    except OSError:
        return None
    if len(head) < HEADER.size or not head.startswith(START):
        return None
    _, width, height, _ = HEADER.unpack(head)
    return width, height
