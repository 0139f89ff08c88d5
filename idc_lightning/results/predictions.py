"""The table of predictions: one row for each patch of a split, each exactly once."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from idc_lightning.decision import Decision
from idc_lightning.files import write_text
from idc_lightning.results.smoothing import smooth

COLUMNS = ("patient_id", "x", "y", "true", "predicted", "proba")


def predictions_table(
    patches: pd.DataFrame, cells: Tensor, logits: Tensor, decision: Decision
) -> pd.DataFrame:
    """Join logits with the patches that they belong to.

    Args:
        patches: The data module's table.
        cells: Row numbers in it, int64 [n]; one that occurs again is left out.
        logits: Float [n, 2]; where the decision averages them, those of all patches of a slide.
        decision: How logits are turned to calls.

    Returns:
        Rows in the order of ``patches``, indexed by their numbers there: patient_id, x, y (pixels,
        from 1), true (0 healthy, 1 IDC, -1 unknown), predicted (0 or 1), proba (of IDC, 0 to 1).
    """
    rows, first = np.unique(cells.numpy(), return_index=True)
    chosen = patches.iloc[rows]
    averages = smooth(chosen, logits[torch.from_numpy(first)], decision.bandwidth)
    probability = decision.probability(averages).numpy().astype(np.float64)
    return pd.DataFrame(
        {
            "patient_id": chosen["patient_id"].to_numpy(),
            "x": chosen["x"].to_numpy(),
            "y": chosen["y"].to_numpy(),
            "true": chosen["target"].to_numpy(),
            "predicted": (probability >= decision.threshold).astype(np.int64),
            "proba": probability,
        },
        columns=list(COLUMNS),
        index=rows,
    )


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Write predictions as CSV; ``proba`` has all digits of a float32."""
    write_text(path, predictions.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
