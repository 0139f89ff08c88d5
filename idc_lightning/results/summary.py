"""The numbers of a run, and the tables that the command prints."""

import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Literal

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from idc_lightning import __version__
from idc_lightning.config import JudgeConfig
from idc_lightning.data.health import summarise
from idc_lightning.results.bootstrap import Interval, bootstrap_metrics
from idc_lightning.results.calibration import expected_calibration_error
from idc_lightning.results.patients import Mean

LABELS = {
    "f1": "F1 (IDC)",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision (IDC)",
    "recall": "recall (IDC)",
    "specificity": "specificity",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "expected_calibration_error": "calibration error",
}

AT_THRESHOLD = ("f1", "balanced_accuracy", "precision", "recall", "specificity")
"""Metrics that depend on the threshold."""

UNDEFINED = "undefined"
"""Said of a metric that a class lacks for, as AUROC without IDC."""

PRINTED = 30
"""Patients in a printed table."""

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy", "pandas")

Metrics = dict[str, Interval]


def judge(
    predictions: pd.DataFrame, threshold: float, config: JudgeConfig, *, seed: int
) -> Metrics:
    """Metrics of a table of predictions, with intervals over its patients.

    Args:
        predictions: Labelled predictions of a split; patient_id, true, proba.
        threshold: Probability from which a patch counts as IDC.
        config: How many draws, and the share of them inside an interval.
        seed: Seed of the draws.

    Returns:
        The metrics of `bootstrap_metrics`, and expected_calibration_error.
    """
    true = predictions["true"].to_numpy(dtype=np.int64)
    proba = predictions["proba"].to_numpy(dtype=np.float64)
    metrics = bootstrap_metrics(
        true,
        proba,
        predictions["patient_id"].to_numpy(dtype=np.str_),
        threshold=threshold,
        draws=config.draws,
        confidence=config.confidence,
        seed=seed,
    )
    # Drawing patients adds noise to each of its bins, so that its percentiles would lie too high.
    error = Interval(expected_calibration_error(true, proba), None, None)
    return {**metrics, "expected_calibration_error": error}


def versions() -> dict[str, str]:
    """Versions of this project, Python and the packages that numbers may depend on."""
    found = {name: version(name) for name in PACKAGES}
    return {"idc_lightning": __version__, "python": platform.python_version(), **found}


def data_table(summary: pd.DataFrame) -> Table:
    """What each split holds, for printing."""
    table = Table("split", title="Data", title_justify="left")
    for name in ("patients", "patches", "IDC"):
        table.add_column(name, justify="right")
    for row in summary.itertuples(index=False):
        table.add_row(str(row.split), f"{row.patients:,}", f"{row.patches:,}", f"{row.idc:.1%}")
    return table


def health_table(findings: pd.DataFrame) -> Table:
    """Numbers of findings of `idc_lightning.data.health.find_problems`, for printing."""
    table = Table("finding", title="Health of the data", title_justify="left")
    for name in ("count", "patients"):
        table.add_column(name, justify="right")
    table.add_column("meaning")
    for row in summarise(findings).to_dict("records"):
        table.add_row(
            row["finding"], f"{row['count']:,}", f"{row['patients']:,}", str(row["meaning"])
        )
    return table


def metrics_table(metrics: Mapping[str, Metrics], threshold: float, confidence: float) -> Table:
    """Metrics of all patches by split, for printing.

    Args:
        metrics: Of `judge`, by split.
        threshold: At which they were computed.
        confidence: Share of the draws inside an interval.
    """
    title = f"Results at threshold {threshold:.3f} ({confidence:.0%} interval over patients)"
    note = "Brier score and calibration error: lower is better"
    table = Table("metric", title=title, title_justify="left", caption=note, caption_justify="left")
    for split in metrics:
        table.add_column(split, justify="right")
    for name, label in LABELS.items():
        table.add_row(
            label,
            *[interval_text(values[name]) for values in metrics.values()],
            end_section=name == "average_precision",
        )
    return table


def interval_text(interval: Interval, *, sign: Literal["-", "+"] = "-") -> str:
    """A metric with its interval, as a reader sees it; ``"+"`` shows the sign of a difference."""
    if interval.value is None:
        return UNDEFINED
    if interval.low is None or interval.high is None:
        return f"{interval.value:{sign}.3f}"
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def mean_text(mean: Mean) -> str:
    """An average over patients with their number, as a reader sees it."""
    return UNDEFINED if mean.value is None else f"{mean.value:.3f} (n={mean.patients})"


def comparison_table(
    at_half: Mapping[str, Mapping[str, float]],
    means: Mapping[str, Mapping[str, Mean]],
    threshold: float,
) -> Table:
    """The same metrics counted in two other ways, for printing below `metrics_table`.

    Args:
        at_half: Metrics of all patches at 0.5 by split, of `pooled_metrics`.
        means: Averages over patients by split, of `patient_means`.
        threshold: At which the latter were computed.
    """
    title = f"For comparison: all patches at 0.5; mean over patients at {threshold:.3f}"
    table = Table("metric", title=title, title_justify="left")
    for split in at_half:
        table.add_column(f"{split}\nat 0.5", justify="right")
        table.add_column(f"{split}\nby patient", justify="right")
    for name, label in LABELS.items():
        if name == "expected_calibration_error":  # of one patient it is mostly chance
            continue
        cells = []
        for split, values in at_half.items():
            cells.append(_number(values[name]) if name in AT_THRESHOLD else "as above")
            cells.append(mean_text(means[split][name]))
        table.add_row(label, *cells, end_section=name == "average_precision")
    return table


def called_table(patients: pd.DataFrame, threshold: float) -> Table:
    """What is called IDC in each patient, for printing.

    Args:
        patients: patient_id, patches, called_idc, probability.
        threshold: From which probability on.
    """
    title = f"Called IDC from the probability {threshold:.3f} on"
    table = Table("patient", title=title, title_justify="left")
    for name in ("patches", "called IDC", "mean probability"):
        table.add_column(name, justify="right")
    for row in patients.head(PRINTED).itertuples():
        patient = Text(str(row.patient_id))  # brackets in it are no markup
        table.add_row(
            patient, f"{row.patches:,}", f"{row.called_idc:.1%}", f"{row.probability:.3f}"
        )
    if len(patients) > PRINTED:
        table.caption = f"and {len(patients) - PRINTED:,} more patients, see patients.csv"
    return table


def _number(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:.3f}"


def console() -> Console:
    """Where tables are printed; pipes and files get 100 columns."""
    found = Console()
    return found if found.is_terminal else Console(width=100)
