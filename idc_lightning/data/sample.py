"""A small part of a table of patches that still looks like the whole, for quick runs."""

import numpy as np
import pandas as pd

from idc_lightning.data.grid import places


def sample_patches(table: pd.DataFrame, size: int, *, seed: int, crop: int = 1) -> pd.DataFrame:
    """Draw patches, or squares of neighbours, evenly from each patient and class.

    Args:
        table: Patches with patient_id, x, y and target.
        size: Number of rows, or a few more where squares are drawn; one patch, or square, of each
            patient and class is kept in any case.
        seed: Seed of the draw.
        crop: Rows and columns of patches in a square, which is of the class IDC if it has any.

    Returns:
        The drawn rows, in the table's order.
    """
    if size >= len(table):
        return table
    row, column = places(table["x"].to_numpy(), table["y"].to_numpy())
    squares = table.assign(row=row // crop, column=column // crop).groupby(
        ["patient_id", "row", "column"], sort=False
    )
    square = squares.ngroup().to_numpy()
    units = squares["target"].agg(["max", "size"]).reset_index()
    order = np.random.default_rng(seed).permutation(len(units))
    groups = units.iloc[order].groupby(["patient_id", "max"], sort=False)
    place = groups.cumcount().to_numpy()
    # How far into its group a square stands, so that the lowest are an equal share of each group.
    depth = np.where(place == 0, 0, (place + 0.5) / groups["max"].transform("size"))
    best = order[np.argsort(depth, kind="stable")]
    enough = int(np.searchsorted(units["size"].to_numpy()[best].cumsum(), size)) + 1
    kept = best[: max(enough, groups.ngroups)]
    return table[np.isin(square, kept)].reset_index(drop=True)


def draw_evenly(table: pd.DataFrame, count: int, *, seed: int) -> pd.DataFrame:
    """Draw patches to look at: one of each patient, by chance, before a second of any.

    Args:
        table: Patches with patient_id.
        count: Number of rows, at most.
        seed: Seed of the draw.

    Returns:
        The drawn rows under their own index, in the table's order.
    """
    order = np.random.default_rng(seed).permutation(len(table))
    turn = table["patient_id"].iloc[order].groupby(table["patient_id"].iloc[order]).cumcount()
    chosen = order[np.argsort(turn.to_numpy(), kind="stable")[:count]]
    return table.iloc[np.sort(chosen)]
