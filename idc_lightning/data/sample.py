"""A small part of a table of patches that still looks like the whole, for quick runs."""

import numpy as np
import pandas as pd


def sample_patches(table: pd.DataFrame, size: int, *, seed: int) -> pd.DataFrame:
    """Draw patches evenly from each patient and class.

    Args:
        table: Patches with patient_id and target.
        size: Number of rows; one patch of each patient and class is kept in any case.
        seed: Seed of the draw.

    Returns:
        The drawn rows, in the table's order.
    """
    if size >= len(table):
        return table
    order = np.random.default_rng(seed).permutation(len(table))
    groups = table.iloc[order].groupby(["patient_id", "target"], sort=False)
    place = groups.cumcount().to_numpy()
    # How far into its group a patch stands, so that the lowest are an equal share of each group.
    depth = np.where(place == 0, 0, (place + 0.5) / groups["target"].transform("size"))
    kept = order[np.argsort(depth, kind="stable")[: max(size, groups.ngroups)]]
    return table.iloc[np.sort(kept)].reset_index(drop=True)


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
