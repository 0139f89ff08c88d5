from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_model import told

from idc_lightning.decision import Decision
from idc_lightning.results.predictions import predictions_table, write_predictions


@pytest.fixture
def patches() -> pd.DataFrame:
    """A data module's table: its index is that of the rows."""
    return pd.DataFrame(
        {
            "patient_id": ["007", "007", "12", "12", "12"],
            "x": [1, 51, 101, 151, 201],
            "y": [351, 301, 251, 201, 151],
            "target": [0, 1, 0, 1, 1],
            "path": list("abcde"),
        }
    )


def logits_of(proba: list[float]) -> torch.Tensor:
    share = torch.tensor(proba, dtype=torch.float64)
    return torch.stack([torch.zeros(len(proba)), torch.log(share / (1 - share))], dim=-1).float()


def test_rows_are_joined_by_number_and_come_in_the_tables_order(patches: pd.DataFrame) -> None:
    cells = torch.tensor([4, 0, 3])
    table = predictions_table(patches, cells, logits_of([0.9, 0.2, 0.4]), Decision(1.0, 0.0, 0.5))
    assert table.columns.tolist() == ["patient_id", "x", "y", "true", "predicted", "proba"]
    assert table["patient_id"].tolist() == ["007", "12", "12"]
    assert table["x"].tolist() == [1, 151, 201]
    assert table["y"].tolist() == [351, 201, 151]
    assert table["true"].tolist() == [0, 1, 1]
    assert table["predicted"].tolist() == [0, 0, 1]
    assert table["proba"].tolist() == pytest.approx([0.2, 0.4, 0.9])
    assert table.index.tolist() == [0, 3, 4]


def test_a_patch_that_comes_again_is_left_out(patches: pd.DataFrame) -> None:
    cells = torch.tensor([2, 1, 2, 0, 1, 3, 4])
    proba = [0.3, 0.6, 0.99, 0.1, 0.01, 0.7, 0.8]
    table = predictions_table(patches, cells, logits_of(proba), Decision(1.0, 0.0, 0.5))
    assert table["x"].tolist() == patches["x"].tolist()
    assert table["proba"].tolist() == pytest.approx([0.1, 0.6, 0.3, 0.7, 0.8])


def test_the_threshold_itself_is_idc(patches: pd.DataFrame) -> None:
    cells, logits = torch.arange(2), torch.zeros(2, 2)
    assert (
        predictions_table(patches, cells, logits, Decision(1.0, 0.0, 0.5))["predicted"].sum() == 2
    )
    assert (
        predictions_table(patches, cells, logits, Decision(1.0, 0.0, 0.51))["predicted"].sum() == 0
    )


def test_the_bias_is_added_to_the_logit_of_idc(patches: pd.DataFrame) -> None:
    logits = logits_of([0.5, 0.5])
    table = predictions_table(patches, torch.arange(2), logits, Decision(3.0, 1.0, 0.5))
    assert table["proba"].tolist() == pytest.approx([1 / (1 + np.exp(-1))] * 2)


def test_the_temperature_pulls_probabilities_towards_a_half(patches: pd.DataFrame) -> None:
    logits = torch.tensor([[0.0, -4.0], [1.0, 3.0]])
    table = predictions_table(patches, torch.arange(2), logits, Decision(2.0, 0.0, 0.8))
    assert table["proba"].tolist() == pytest.approx([1 / (1 + np.e**2), 1 / (1 + np.e**-1)])
    assert table["predicted"].tolist() == [0, 0]  # at temperature 1 the latter has 0.88


def test_patches_without_a_label_are_predicted_as_well(patches: pd.DataFrame) -> None:
    unknown = patches.assign(target=-1)
    logits = logits_of([0.9, 0.2, 0.3, 0.6, 0.1])
    table = predictions_table(unknown, torch.arange(5), logits, Decision(1.0, 0.0, 0.5))
    assert set(table["true"]) == {-1}
    assert table["predicted"].tolist() == [1, 0, 0, 1, 0]


def test_csv_gives_the_same_table_back(patches: pd.DataFrame, tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 2) * torch.tensor([[1], [4], [20], [60], [0.001]])
    table = predictions_table(patches, torch.arange(5), logits, Decision(1.0, 0.0, 0.5))
    path = tmp_path / "predictions" / "test.csv"
    write_predictions(table, path)
    read = pd.read_csv(path, dtype={"patient_id": str})
    assert read.columns.tolist() == table.columns.tolist()
    pd.testing.assert_frame_equal(read.drop(columns="proba"), table.drop(columns="proba"))
    same = read["proba"].to_numpy(np.float32) == table["proba"].to_numpy(np.float32)
    assert same.all()
    assert b"\r" not in path.read_bytes()
    assert path.read_text().count("\n") == 6


def test_a_file_that_cannot_be_written_is_told(patches: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "test.csv").mkdir()
    table = predictions_table(patches, torch.arange(5), torch.zeros(5, 2), Decision(1.0, 0.0, 0.5))
    with told("can't write", "test.csv"):
        write_predictions(table, tmp_path / "test.csv")
