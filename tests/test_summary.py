import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table
from test_bootstrap import NAMES, cohort

from idc_lightning.config import ResultsConfig
from idc_lightning.results.bootstrap import Interval, bootstrap_metrics
from idc_lightning.results.calibration import expected_calibration_error
from idc_lightning.results.patients import Mean
from idc_lightning.results.summary import (
    Metrics,
    comparison_table,
    console,
    data_table,
    judge,
    metrics_table,
    versions,
)

CONFIG = ResultsConfig(threshold="max_f1", sensitivity=0.9, draws=50, confidence=0.9)
JUDGED = {*NAMES, "expected_calibration_error"}


@pytest.fixture
def predictions() -> pd.DataFrame:
    true, proba, patients = cohort(0)
    return pd.DataFrame({"patient_id": patients, "true": true, "proba": proba})


def printed(table: Table) -> list[str]:
    out = Console(width=100, color_system=None, force_terminal=False)
    with out.capture() as text:
        out.print(table)
    return text.get().splitlines()


def test_a_table_is_judged_with_the_configured_values(predictions: pd.DataFrame) -> None:
    wanted = bootstrap_metrics(
        predictions["true"].to_numpy(),
        predictions["proba"].to_numpy(),
        predictions["patient_id"].to_numpy(dtype=np.str_),
        threshold=0.4,
        draws=50,
        confidence=0.9,
        seed=7,
    )
    found = judge(predictions, 0.4, CONFIG, seed=7)
    error = found.pop("expected_calibration_error")
    assert found == wanted
    proba = predictions["proba"].to_numpy()
    assert error.value == expected_calibration_error(predictions["true"].to_numpy(), proba)
    assert error.low is error.high is None
    assert judge(predictions, 0.6, CONFIG, seed=7)["f1"] != wanted["f1"]
    assert judge(predictions, 0.4, CONFIG, seed=8)["f1"] != wanted["f1"]


def test_patients_whose_names_are_numbers_are_judged_alike(predictions: pd.DataFrame) -> None:
    numbers = predictions["patient_id"].str.removeprefix("p")
    as_text, as_int = (
        predictions.assign(patient_id=numbers),
        predictions.assign(patient_id=numbers.astype(int)),
    )
    assert judge(as_int, 0.4, CONFIG, seed=0) == judge(as_text, 0.4, CONFIG, seed=0)


def test_versions_name_what_the_numbers_depend_on() -> None:
    found = versions()
    assert {"idc_lightning", "python", "torch", "torchvision", "lightning", "numpy"} <= set(found)
    assert all(value[0].isdigit() for value in found.values())


def rows_of(lines: list[str]) -> list[str]:
    return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in lines]


def test_the_printed_metrics() -> None:
    dev: Metrics = {name: Interval(0.5, 0.25, 0.75) for name in JUDGED}
    test: Metrics = {name: Interval(0.8, None, None) for name in JUDGED}
    test["auroc"] = Interval(None, None, None)
    rows = rows_of(printed(metrics_table({"dev": dev, "test": test}, 0.4321, 0.9)))
    assert rows[0] == "Results at threshold 0.432 (90% interval over patients)"
    assert "F1 (IDC) 0.500 [0.250, 0.750] 0.800" in rows
    assert "AUROC 0.500 [0.250, 0.750] undefined" in rows
    assert "Brier score 0.500 [0.250, 0.750] 0.800" in rows
    assert sum("0.500 [0.250, 0.750]" in row for row in rows) == len(JUDGED)


def test_the_printed_comparison() -> None:
    names = [*NAMES, "correct"]
    half = {"dev": dict.fromkeys(NAMES, 0.5), "test": {**dict.fromkeys(NAMES, 0.7), "f1": math.nan}}
    means = {
        "dev": {name: Mean(0.25, 42) for name in names},
        "test": {name: Mean(None, 0) for name in names},
    }
    rows = rows_of(printed(comparison_table(half, means, 0.4321)))
    assert "all patches at 0.5" in rows[0]
    assert "mean over patients at 0.432" in rows[0]
    assert "F1 (IDC) 0.500 0.250 (n=42) undefined undefined" in rows
    assert "recall (IDC) 0.500 0.250 (n=42) 0.700 undefined" in rows
    assert "AUROC as above 0.250 (n=42) as above undefined" in rows


def test_tables_of_two_splits_fit_into_100_columns() -> None:
    splits = ("dev", "test")
    metrics = {split: {name: Interval(0.5, 0.25, 0.75) for name in JUDGED} for split in splits}
    half = {split: dict.fromkeys(NAMES, 0.5) for split in splits}
    means = {split: {name: Mean(0.25, 279) for name in NAMES} for split in splits}
    lines = printed(metrics_table(metrics, 0.5, 0.95)) + printed(comparison_table(half, means, 0.5))
    rows = rows_of(lines)
    assert "balanced accuracy" + 2 * " 0.500 [0.250, 0.750]" in rows
    assert "balanced accuracy" + 2 * " 0.500 0.250 (n=279)" in rows


def test_the_printed_data() -> None:
    summary = pd.DataFrame(
        {"split": ["train"], "patients": [195], "patches": [196_064], "idc": [0.28239]}
    )
    text = "\n".join(" ".join(line.split()) for line in printed(data_table(summary)))
    assert "train │ 195 │ 196,064 │ 28.2%" in text


def test_pipes_and_files_get_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert console().width == 100
