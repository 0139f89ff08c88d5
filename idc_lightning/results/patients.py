"""Metrics of each patient, and their averages, in which every patient weighs the same."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from idc_lightning.results.bootstrap import pooled_metrics


@dataclass(frozen=True)
class Mean:
    """An average over the patients for whom a metric is defined; None if there are none."""

    value: float | None
    patients: int


def patients_table(predictions: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Judge each patient alone.

    Args:
        predictions: Labelled predictions of a split; patient_id, true, proba.
        threshold: Probability from which a patch counts as IDC.

    Returns:
        One row for each patient, those with the lowest F1 first, then those with the lowest
        balanced accuracy: patient_id, patches (number), idc and predicted_idc (shares of the
        patches), correct (share), and the metrics of `pooled_metrics`. NaN where one is undefined,
        so F1, recall and average precision of a patient without IDC, who come last.
    """
    rows = [
        {"patient_id": patient, **_patient(patches, threshold)}
        for patient, patches in predictions.groupby("patient_id", sort=False)
    ]
    order = ["f1", "balanced_accuracy", "correct", "patient_id"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


def _patient(patches: pd.DataFrame, threshold: float) -> dict[str, float]:
    true = patches["true"].to_numpy(dtype=np.int64)
    proba = patches["proba"].to_numpy(dtype=np.float64)
    predicted = proba >= threshold
    metrics = pooled_metrics(true, proba, threshold=threshold)
    if not true.any():  # one wrong patch would make it 0, however many are right
        metrics["f1"] = np.nan
    return {
        "patches": len(patches),
        "idc": float(true.mean()),
        "predicted_idc": float(predicted.mean()),
        "correct": float((predicted == true).mean()),
        **metrics,
    }


def patient_means(table: pd.DataFrame) -> dict[str, Mean]:
    """Average each metric over patients.

    Args:
        table: Of `patients_table`.

    Returns:
        By its name, the mean of each metric and ``correct``, over the patients who have it.
    """
    values = table.drop(columns=["patient_id", "patches", "idc", "predicted_idc"])
    return {str(name): _mean(column.dropna()) for name, column in values.items()}


def _mean(defined: pd.Series) -> Mean:
    return Mean(float(defined.mean()) if len(defined) else None, len(defined))
