"""All that is said of the predictions of a run: its tables and the numbers of results.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from idc_lightning.config import AgainResultsConfig, JudgeConfig, ResultsConfig
from idc_lightning.decision import UNDECIDED, Decision
from idc_lightning.errors import IDCError
from idc_lightning.files import write_text
from idc_lightning.results.bootstrap import pooled_metrics
from idc_lightning.results.calibration import choose_threshold, fit_calibration
from idc_lightning.results.patients import Mean, patient_means, patients_table
from idc_lightning.results.predictions import predictions_table, write_predictions
from idc_lightning.results.smoothing import fit_bandwidth, smooth
from idc_lightning.results.summary import AT_THRESHOLD, Metrics, judge


def decide(
    patches: pd.DataFrame,
    cells: Tensor,
    logits: Tensor,
    config: ResultsConfig,
    *,
    bandwidth: float | Literal["auto"] = 0.0,
) -> Decision:
    """Fit bandwidth, temperature, bias and threshold on dev.

    Args:
        patches: The data module's table.
        cells: Row numbers of dev's patches in it, int64 [n].
        logits: Float32 [n, 2].
        config: The rule of the threshold.
        bandwidth: By which logits are averaged over neighbours; ``"auto"`` looks for the best.
    """
    dev = patches.iloc[cells.numpy()]
    true = dev["target"].to_numpy(dtype=np.int64)
    if bandwidth == "auto":
        bandwidth = fit_bandwidth(dev, logits, true)
    temperature, bias = fit_calibration(smooth(dev, logits, bandwidth).numpy(), true)
    calibrated = Decision(temperature, bias, UNDECIDED.threshold, bandwidth)
    return decide_again(calibrated, config, predictions_table(patches, cells, logits, calibrated))


def decide_again(
    own: Decision, config: ResultsConfig | AgainResultsConfig, dev: pd.DataFrame | None
) -> Decision:
    """A decision with its threshold by a rule.

    Args:
        own: All of which but the threshold stays.
        config: The rule of the threshold, None for its own.
        dev: Predictions of the run's dev patients by ``own``, if they are there.

    Raises:
        IDCError: If the rule needs dev patients and there are none.
    """
    rule = config.threshold
    if rule is None:
        return own
    if not isinstance(rule, str):
        return replace(own, threshold=rule)
    if dev is None:
        raise IDCError(
            f"results.threshold={rule} is chosen on the run's dev patients, of whom this data has "
            "none: give a number, or leave it out to take the run's own threshold"
        )
    true, proba = dev["true"].to_numpy(), dev["proba"].to_numpy()
    return replace(own, threshold=choose_threshold(true, proba, rule, config.sensitivity))


@dataclass(frozen=True)
class Judgement:
    """Predictions of splits and what they are worth, all by split.

    Attributes:
        decision: By which the predictions were made.
        predictions: Tables of `predictions_table`, all labelled.
        metrics: Of all patches at the threshold, with intervals.
        at_half: Those that depend on the threshold, at 0.5.
        patients: Tables of `patients_table`, at the threshold.
        means: Averages over patients, at the threshold.
    """

    decision: Decision
    predictions: dict[str, pd.DataFrame]
    metrics: dict[str, Metrics]
    at_half: dict[str, dict[str, float]]
    patients: dict[str, pd.DataFrame]
    means: dict[str, dict[str, Mean]]

    def values(self) -> dict[str, Any]:
        """The part of results.json that follows from the predictions; None where undefined."""
        return {
            **{
                split: {name: asdict(interval) for name, interval in metrics.items()}
                for split, metrics in self.metrics.items()
            },
            "at_0.5": {
                split: {name: _finite(value) for name, value in metrics.items()}
                for split, metrics in self.at_half.items()
            },
            "patient_mean": {
                split: {name: asdict(mean) for name, mean in means.items()}
                for split, means in self.means.items()
            },
            **asdict(self.decision),
        }

    def write_tables(self, folder: Path) -> None:
        """Write predictions/<split>.csv and predictions/patients.csv into a run folder.

        Raises:
            IDCError: If they can't be written.
        """
        for split, table in self.predictions.items():
            write_predictions(table, folder / "predictions" / f"{split}.csv")
        patients = pd.concat([table.assign(split=split) for split, table in self.patients.items()])
        columns = ["patient_id", "split", *patients.columns.drop(["patient_id", "split"])]
        text = patients[columns].to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(folder / "predictions" / "patients.csv", text)


def judge_splits(
    predictions: Mapping[str, pd.DataFrame],
    decision: Decision,
    config: JudgeConfig,
    *,
    seed: int,
) -> Judgement:
    """Judge the predictions of splits.

    Args:
        predictions: Labelled predictions by split.
        decision: By which they were made.
        config: Number of bootstrap draws, and the share of them inside an interval.
        seed: Seed of the bootstrap.
    """
    threshold = decision.threshold
    patients = {split: patients_table(table, threshold) for split, table in predictions.items()}
    return Judgement(
        decision=decision,
        predictions=dict(predictions),
        metrics={
            split: judge(table, threshold, config, seed=seed)
            for split, table in predictions.items()
        },
        at_half={split: _at_half(table) for split, table in predictions.items()},
        patients=patients,
        means={split: patient_means(table) for split, table in patients.items()},
    )


def _at_half(predictions: pd.DataFrame) -> dict[str, float]:
    values = pooled_metrics(
        predictions["true"].to_numpy(dtype=np.int64),
        predictions["proba"].to_numpy(dtype=np.float64),
        threshold=0.5,
    )
    return {name: values[name] for name in AT_THRESHOLD}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
