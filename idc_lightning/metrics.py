"""Which metrics are computed; IDC is the positive class throughout."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    BinarySpecificity,
    BinaryStatScores,
)

from idc_lightning.data.grid import NO_LABEL


class BinaryBalancedAccuracy(BinaryStatScores):
    """Mean of recall and specificity; NaN if a class is absent."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def compute(self) -> Tensor:
        """The metric of all patches seen so far, a scalar in 0 to 1."""
        tp, fp, tn, fn = self._final_state()
        return (tp / (tp + fn) + tn / (tn + fp)) / 2


def patch_metrics(threshold: float) -> MetricCollection:
    """Metrics of patches, by the names of results.json.

    Args:
        threshold: Probability from which a patch counts as IDC.

    Returns:
        A collection that takes probabilities of IDC, float32 [N], and labels, int [N]; -1 is left
        out.
    """
    # torchmetrics counts what is above its threshold, not what reaches it.
    threshold = _float32_below(threshold)
    return MetricCollection(
        {
            "f1": BinaryF1Score(threshold, ignore_index=NO_LABEL),
            "precision": BinaryPrecision(threshold, ignore_index=NO_LABEL),
            "recall": BinaryRecall(threshold, ignore_index=NO_LABEL),
            "specificity": BinarySpecificity(threshold, ignore_index=NO_LABEL),
            "balanced_accuracy": BinaryBalancedAccuracy(threshold, ignore_index=NO_LABEL),
            "auroc": BinaryAUROC(ignore_index=NO_LABEL),
            "average_precision": BinaryAveragePrecision(ignore_index=NO_LABEL),
        }
    )


def better(monitor: str) -> Literal["min", "max"]:
    """Which values of a metric of dev are the better ones: small losses, large metrics."""
    return "min" if monitor == "dev/loss" else "max"


def _float32_below(number: float) -> float:
    """The largest float32 that is below a positive number."""
    nearest = np.float32(number)
    below = nearest if float(nearest) < number else np.nextafter(nearest, np.float32(0))
    return float(below)


def idc_probability(logits: Tensor) -> Tensor:
    """Softmax probability of IDC: float [..., 2] to [...]."""
    return torch.softmax(logits.float(), dim=-1)[..., 1]
