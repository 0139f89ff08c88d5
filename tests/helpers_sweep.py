"""Folders of runs as idc-train leaves them, with made predictions in place of a training."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers_model import composed
from omegaconf import OmegaConf

from idc_lightning.config import JudgeConfig
from idc_lightning.results.sealed import write_results
from idc_lightning.results.summary import judge

JUDGED = JudgeConfig(draws=200, confidence=0.95)

PATIENTS = {"dev": ["a", "b", "c", "d"], "test": ["e", "f", "g"]}


def predictions(patients: list[str], quality: float, seed: int = 0) -> pd.DataFrame:
    """Thirty patches of each patient; the higher the quality, the better they are told apart."""
    tables = []
    for patient in patients:
        rng = np.random.default_rng([seed, *patient.encode()])
        true = (rng.random(30) < 0.4).astype(int)
        score = quality * (2 * true - 1) + rng.normal(0, 1, 30)
        proba = (1 / (1 + np.exp(-score))).astype(np.float32).astype(float)
        cells = {"x": 50 * np.arange(30) + 1, "y": 1}
        columns = {"true": true, "predicted": (proba >= 0.5).astype(int), "proba": proba}
        tables.append(pd.DataFrame({"patient_id": patient, **cells, **columns}))
    return pd.concat(tables, ignore_index=True)


def write_run(
    folder: Path,
    *typed: str,
    quality: float = 1.0,
    patients: Mapping[str, list[str]] = PATIENTS,
    seconds: float = 60,
    pruned_after: int | None = None,
    error: str = "",
) -> dict[str, pd.DataFrame]:
    """Write a run that was started with these overrides; one with an error has failed."""
    hydra = folder / ".hydra"
    hydra.mkdir(parents=True)
    config = composed(*typed)
    OmegaConf.save(config, hydra / "config.yaml")
    OmegaConf.save(list(typed), hydra / "overrides.yaml")
    groups = {key: value for key, _, value in (word.partition("=") for word in typed)}
    choices = {"scheduler": "onecycle", "split": "stratified"}
    choices |= {key: value for key, value in groups.items() if key in choices}
    runtime = {"job": {"config_name": "train"}, "runtime": {"choices": choices}}
    OmegaConf.save({"hydra": runtime}, hydra / "hydra.yaml")
    if error:
        (folder / "error.txt").write_text(f"{error}\n")
        return {}
    tables = {split: predictions(names, quality) for split, names in patients.items()}
    results: dict[str, Any] = {"seconds": seconds, "pruned_after": pruned_after}
    for split, table in tables.items():
        (folder / "predictions").mkdir(exist_ok=True)
        table.to_csv(folder / "predictions" / f"{split}.csv", index=False, float_format="%.9g")
        metrics = judge(table, 0.5, JUDGED, seed=0)
        results[split] = {name: asdict(interval) for name, interval in metrics.items()}
    write_results(folder / "results.json", results)
    return tables
