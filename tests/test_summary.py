import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_model import told
from rich.console import Console
from rich.table import Table
from test_bootstrap import NAMES, cohort

from idc_lightning.config import ResultsConfig
from idc_lightning.results.bootstrap import Interval, bootstrap_metrics
from idc_lightning.results.summary import (
    Metrics,
    console,
    data_table,
    judge,
    metrics_table,
    versions,
    write_results,
)

CONFIG = ResultsConfig(threshold=0.4, draws=50, confidence=0.9)


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
    assert judge(predictions, CONFIG, seed=7) == wanted
    assert judge(predictions, CONFIG, seed=8) != wanted


def test_patients_whose_names_are_numbers_are_judged_alike(predictions: pd.DataFrame) -> None:
    numbers = predictions["patient_id"].str.removeprefix("p")
    as_text, as_int = (
        predictions.assign(patient_id=numbers),
        predictions.assign(patient_id=numbers.astype(int)),
    )
    assert judge(as_int, CONFIG, seed=0) == judge(as_text, CONFIG, seed=0)


def test_results_are_plain_json(predictions: pd.DataFrame, tmp_path: Path) -> None:
    metrics = {split: judge(predictions, CONFIG, seed=0) for split in ("dev", "test")}
    metrics["test"]["auroc"] = Interval(None, None, None)
    path = tmp_path / "new" / "results.json"
    returned = write_results(path, metrics, {"threshold": 0.4, "versions": versions()})
    content = json.loads(path.read_text())
    assert content == returned
    assert list(content) == ["dev", "test", "threshold", "versions"]
    assert set(content["test"]) == set(NAMES)
    assert content["test"]["auroc"] == {"value": None, "low": None, "high": None}
    f1 = metrics["dev"]["f1"]
    assert content["dev"]["f1"] == {"value": f1.value, "low": f1.low, "high": f1.high}
    assert path.read_text().endswith("}\n")


def test_what_json_does_not_know_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="nan"):
        write_results(path, {}, {"images_per_second": float("nan")})
    assert not list(tmp_path.iterdir())


def test_results_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "results.json").mkdir()
    with told("can't write", "results.json"):
        write_results(tmp_path / "results.json", {}, {})


def test_versions_name_what_the_numbers_depend_on() -> None:
    found = versions()
    assert {"idc_lightning", "python", "torch", "torchvision", "lightning", "numpy"} <= set(found)
    assert all(value[0].isdigit() for value in found.values())


def test_the_printed_metrics() -> None:
    dev: Metrics = {name: Interval(0.5, 0.25, 0.75) for name in NAMES}
    test: Metrics = {name: Interval(0.8, None, None) for name in NAMES}
    test["auroc"] = Interval(None, None, None)
    lines = printed(metrics_table({"dev": dev, "test": test}, CONFIG))
    assert "90% interval" in lines[0]
    rows = {" ".join(line.strip(" │┃").split("│")).strip() for line in lines}
    text = "\n".join(" ".join(row.split()) for row in rows)
    assert "F1 (IDC) 0.500 [0.250, 0.750] 0.800" in text
    assert "AUROC 0.500 [0.250, 0.750] undefined" in text
    assert text.count("0.500 [0.250, 0.750]") == len(NAMES)


def test_the_printed_data() -> None:
    summary = pd.DataFrame(
        {"split": ["train"], "patients": [195], "patches": [196_064], "idc": [0.28239]}
    )
    text = "\n".join(" ".join(line.split()) for line in printed(data_table(summary)))
    assert "train │ 195 │ 196,064 │ 28.2%" in text


def test_pipes_and_files_get_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    assert console().width == 100
