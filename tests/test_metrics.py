import math
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor

from idc_lightning.config import Monitored
from idc_lightning.decision import UNDECIDED
from idc_lightning.metrics import better, idc_probability, patch_metrics
from idc_lightning.results.predictions import predictions_table

pytestmark = pytest.mark.filterwarnings("ignore:No (positive|negative) samples")


def wanted(true: np.ndarray, proba: np.ndarray, threshold: float) -> dict[str, float]:
    """The metrics by scikit-learn."""
    predicted = proba >= threshold
    return {
        "f1": f1_score(true, predicted),
        "precision": precision_score(true, predicted),
        "recall": recall_score(true, predicted),
        "specificity": recall_score(true, predicted, pos_label=0),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        "auroc": roc_auc_score(true, proba),
        "average_precision": average_precision_score(true, proba),
    }


def values(proba: Tensor, labels: Tensor, threshold: float = 0.5) -> dict[str, float]:
    metrics = patch_metrics(threshold)
    metrics.update(proba, labels)
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize("threshold", [0.5, 0.3, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_values_are_scikit_learns_over_uneven_batches(threshold: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Eleven probabilities, so that many are tied and some lie on the threshold.
    proba = rng.integers(0, 11, 500).astype(np.float32) / np.float32(10)
    labels = np.where(rng.random(500) < 0.2, -1, rng.random(500) < 0.2 + 0.5 * proba)
    metrics = patch_metrics(threshold)
    for part in np.split(np.arange(500), [1, 2, 40, 300]):
        metrics.update(torch.from_numpy(proba[part]), torch.from_numpy(labels[part]).long())
    found = {name: float(value) for name, value in metrics.compute().items()}
    kept = labels >= 0
    exact = proba[kept].astype(np.float64)
    assert found == pytest.approx(wanted(labels[kept], exact, threshold), abs=1e-6)


def test_reset_forgets() -> None:
    metrics = patch_metrics(0.5)
    metrics.update(torch.tensor([0.9, 0.1]), torch.tensor([0, 1]))
    metrics.reset()
    metrics.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]))
    assert {float(value) for value in metrics.compute().values()} == {1.0}


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_patch_on_the_threshold_counts_as_in_the_table_of_predictions(threshold: float) -> None:
    nearest = np.float32(threshold)
    near = [np.nextafter(nearest, np.float32(0)), nearest, np.nextafter(nearest, np.float32(1))]
    counted = [values(torch.tensor([p]), torch.tensor([1]), threshold)["recall"] for p in near]
    assert counted == [float(float(p) >= threshold) for p in near]
    assert counted[0] == 0
    assert counted[2] == 1


def test_equal_logits_are_idc_at_one_half_everywhere() -> None:
    logits = torch.zeros(1, 2)
    patches = pd.DataFrame({"patient_id": ["1"], "x": [1], "y": [1], "target": [1]})
    table = predictions_table(patches, torch.tensor([0]), logits, UNDECIDED)
    assert table["predicted"].tolist() == [1]
    assert values(idc_probability(logits), torch.tensor([1]))["recall"] == 1


def test_one_class_alone() -> None:
    healthy = values(torch.tensor([0.2, 0.8]), torch.tensor([0, 0]))
    assert healthy["specificity"] == 0.5
    assert healthy["f1"] == healthy["precision"] == healthy["recall"] == 0
    assert math.isnan(healthy["balanced_accuracy"])
    idc = values(torch.tensor([0.2, 0.8]), torch.tensor([1, 1]))
    assert idc["recall"] == 0.5
    assert idc["precision"] == idc["average_precision"] == 1
    assert idc["f1"] == pytest.approx(2 / 3)
    assert math.isnan(idc["balanced_accuracy"])


def test_idc_probability_is_the_softmax_of_both_logits() -> None:
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0]], [[300.0, -300.0], [-2.0, -1.0]]])
    probability = idc_probability(logits)
    expected = torch.tensor([[0.5, 1 / (1 + math.exp(-2))], [0.0, 1 / (1 + math.exp(-1))]])
    torch.testing.assert_close(probability, expected)
    assert idc_probability(logits.bfloat16()).dtype == torch.float32


def test_every_metric_can_be_monitored() -> None:
    logged = {"dev/loss", *(f"dev/{name}" for name in patch_metrics(0.5))}
    assert set(get_args(Monitored)) == logged


def test_of_losses_alone_less_is_better() -> None:
    ways = {monitor: better(monitor) for monitor in get_args(Monitored)}
    assert ways.pop("dev/loss") == "min"
    assert set(ways.values()) == {"max"}
