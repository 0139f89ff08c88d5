"""The numbers of a run: results.json, and the table that the command prints."""

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from idc_lightning import __version__
from idc_lightning.config import ResultsConfig
from idc_lightning.files import write_text
from idc_lightning.results.bootstrap import Interval, bootstrap_metrics

LABELS = {
    "f1": "F1 (IDC)",
    "balanced_accuracy": "balanced accuracy",
    "precision": "precision (IDC)",
    "recall": "recall (IDC)",
    "specificity": "specificity",
    "auroc": "AUROC",
    "average_precision": "average precision",
}

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy", "pandas")

Metrics = dict[str, Interval]


def judge(predictions: pd.DataFrame, config: ResultsConfig, *, seed: int) -> Metrics:
    """Metrics of a table of predictions, with intervals over its patients."""
    return bootstrap_metrics(
        predictions["true"].to_numpy(dtype=np.int64),
        predictions["proba"].to_numpy(dtype=np.float64),
        predictions["patient_id"].to_numpy(dtype=np.str_),
        threshold=config.threshold,
        draws=config.draws,
        confidence=config.confidence,
        seed=seed,
    )


def versions() -> dict[str, str]:
    """Versions of this project, Python and the packages that numbers may depend on."""
    found = {name: version(name) for name in PACKAGES}
    return {"idc_lightning": __version__, "python": platform.python_version(), **found}


def write_results(path: Path, metrics: dict[str, Metrics], facts: dict[str, Any]) -> dict[str, Any]:
    """Write results.json.

    Args:
        path: The file.
        metrics: Metrics by split.
        facts: What else it says, by key; plain values.

    Returns:
        Its content.
    """
    content = {
        split: {name: asdict(interval) for name, interval in values.items()}
        for split, values in metrics.items()
    } | facts
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return content


def data_table(summary: pd.DataFrame) -> Table:
    """What each split holds, for printing."""
    table = Table("split", title="Data", title_justify="left")
    for name in ("patients", "patches", "IDC"):
        table.add_column(name, justify="right")
    for row in summary.itertuples(index=False):
        table.add_row(str(row.split), f"{row.patients:,}", f"{row.patches:,}", f"{row.idc:.1%}")
    return table


def metrics_table(metrics: dict[str, Metrics], config: ResultsConfig) -> Table:
    """Metrics by split, for printing."""
    share = f"{config.confidence:.0%} interval over patients"
    table = Table("metric", title=f"Results ({share})", title_justify="left")
    for split in metrics:
        table.add_column(split, justify="right")
    for name, label in LABELS.items():
        table.add_row(label, *[_cell(values[name]) for values in metrics.values()])
    return table


def _cell(interval: Interval) -> str:
    if interval.value is None:
        return "undefined"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def console() -> Console:
    """Where tables are printed; pipes and files get 100 columns."""
    found = Console()
    return found if found.is_terminal else Console(width=100)
