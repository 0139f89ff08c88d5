"""Whether patches are as large as a cell, and whether smaller ones may be so."""

from collections import Counter
from pathlib import Path

import pandas as pd

from idc_lightning.data.decode import HEADER, START, read_file
from idc_lightning.data.grid import PATCH
from idc_lightning.errors import IDCError

LOOKED_AT = 200
"""Files whose headers are read."""

TOLERATED = 0.03
"""Share of them that may be too small without lying at an edge; a single one always may."""


def small_inside(patches: pd.DataFrame, places: pd.DataFrame) -> pd.Series:
    """Tell which patches are smaller than a cell though they don't lie at the end of the slide.

    A slide is cut from the upper left, so only its last column can hold narrow patches, and only
    its last row low ones.

    Args:
        patches: patient_id, x, y, width and height (pixels of the file).
        places: All positions of these patients that have a patch: patient_id, x, y.

    Returns:
        Bool, indexed as ``patches``.
    """
    ends = places.groupby("patient_id")[["x", "y"]].max()
    before_end = patches[["x", "y"]] < ends.loc[patches["patient_id"]].to_numpy()
    small = patches[["width", "height"]].to_numpy() < PATCH
    return (before_end & small).any(axis=1)


def check_size(root: Path, table: pd.DataFrame) -> None:
    """Stop if patches are of another size than a cell's, told by some before all are read.

    Single files that are too small are tolerated, and such that are too large told when they are
    read.

    Args:
        root: Folder that the table's paths start from.
        table: Patches with patient_id, x, y and path, all of their patients.

    Raises:
        IDCError: If most are larger, or smaller in both directions, or more than a few are smaller
            though they don't lie at an edge of the tissue.
    """
    looked = table.sample(min(len(table), LOOKED_AT), random_state=0)
    read = ((row, _size(root / path)) for row, path in looked["path"].items())
    sizes = {row: size for row, size in read if size is not None}
    if not sizes:
        return
    found = looked.loc[list(sizes)].assign(
        width=[width for width, _ in sizes.values()],
        height=[height for _, height in sizes.values()],
    )
    trained = (
        f"but the run was trained on {PATCH}x{PATCH} px: cut them to this size, at the "
        "magnification of its data"
    )
    width, height = _most_common(found)
    if max(width, height) > PATCH or (width < PATCH and height < PATCH):
        raise IDCError(f"most patches of {root} have {width}x{height} px, {trained}")
    small = found[small_inside(found, table)]
    if len(small) > max(1, TOLERATED * len(found)):
        width, height = _most_common(small)
        raise IDCError(
            f"{len(small)} of {len(found)} patches of {root} are smaller inside the tissue, such "
            f"as {width}x{height} px, {trained}"
        )


def _most_common(patches: pd.DataFrame) -> tuple[int, int]:
    """The width and height that most patches have."""
    return Counter(zip(patches["width"], patches["height"], strict=True)).most_common(1)[0][0]


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG; None for what isn't one."""
    try:
        head = read_file(path)[: HEADER.size]
    except OSError:
        return None
    if len(head) < HEADER.size or not head.startswith(START):
        return None
    _, width, height, _ = HEADER.unpack(head)
    return width, height
