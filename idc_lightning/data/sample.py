"""A small part of a table of patches that still looks like the whole, for quick runs."""

import numpy as np
import pandas as pd


def sample_patches(table: pd.DataFrame, size: int, *, seed: int) -> pd.DataFrame:
    """Draw patches evenly from each patient and class.

    Args:
        table: Patches with patient_id and target.
        size: Wanted number; one patch of each patient and class is kept in any case.
        seed: Seed of the draw.

    Returns:
        The drawn rows, in the table's order.
    """
    if size >= len(table):
        return table
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = table.iloc[order]
    groups = shuffled.groupby(["patient_id", "target"], sort=False)
    place = groups.cumcount().to_numpy()
    wanted = groups["x"].transform("size").to_numpy() * size / len(table)
    kept = order[place < np.maximum(1, np.round(wanted))]
    return table.iloc[np.sort(kept)].reset_index(drop=True)
