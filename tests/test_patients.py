import time
import warnings

import numpy as np
import pandas as pd
import pytest
from test_bootstrap import NAMES, cohort, scikit_learns

from idc_lightning.results.patients import Mean, patient_means, patients_table


@pytest.fixture
def predictions() -> pd.DataFrame:
    true, proba, patients = cohort(0)
    return pd.DataFrame({"patient_id": patients, "true": true, "proba": proba})


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_values_are_scikit_learns_for_each_patient(
    predictions: pd.DataFrame, threshold: float
) -> None:
    table = patients_table(predictions, threshold).set_index("patient_id")
    assert set(table.index) == set(predictions["patient_id"])
    compared = 0
    for patient, rows in predictions.groupby("patient_id"):
        true, proba = rows["true"].to_numpy(), rows["proba"].to_numpy()
        found = table.loc[str(patient)]
        assert found["patches"] == len(rows)
        assert found["idc"] == true.mean()
        assert found["predicted_idc"] == (proba >= threshold).mean()
        assert found["correct"] == ((proba >= threshold) == true).mean()
        if len(set(true)) == 2 and (proba >= threshold).any():
            wanted = scikit_learns(true, proba, threshold)
            assert found[list(NAMES)].to_dict() == pytest.approx(wanted)
            compared += 1
    assert compared > 8


def test_what_a_patient_does_not_define_is_missing() -> None:
    healthy = {"patient_id": "h", "true": 0, "proba": [0.1, 0.2, 0.9]}
    idc = {"patient_id": "i", "true": 1, "proba": [0.1, 0.9]}
    unseen = {"patient_id": "u", "true": [0, 1], "proba": [0.2, 0.1]}
    predictions = pd.concat([pd.DataFrame(rows) for rows in (healthy, idc, unseen)])
    table = patients_table(predictions, 0.5).set_index("patient_id")
    missing = {patient: {n for n in NAMES if np.isnan(table.loc[patient, n])} for patient in "hiu"}
    assert missing == {
        "h": {"f1", "recall", "balanced_accuracy", "auroc", "average_precision"},
        "i": {"specificity", "balanced_accuracy", "auroc"},
        "u": {"precision"},
    }
    assert table.loc["u", "f1"] == 0


def test_the_worst_patients_come_first(predictions: pd.DataFrame) -> None:
    healthy = pd.DataFrame({"patient_id": ["h1", "h0", "h0"], "true": 0, "proba": [0.1, 0.9, 0.1]})
    table = patients_table(pd.concat([healthy, predictions]), 0.5)
    assert table["f1"].dropna().is_monotonic_increasing
    assert table["patient_id"].tolist()[-2:] == ["h0", "h1"]
    assert table.index.tolist() == list(range(len(table)))


def test_patients_of_equal_f1_are_in_the_order_of_balanced_accuracy() -> None:
    missed = {"a": [0, 0, 0], "b": [1, 0, 0], "c": [1, 1, 0]}
    rows = [
        {"patient_id": patient, "true": [1, 0, 0, 0], "proba": [0, *wrong]}
        for patient, wrong in missed.items()
    ]
    table = patients_table(pd.concat([pd.DataFrame(row) for row in rows]), 0.5)
    assert table["patient_id"].tolist() == ["c", "b", "a"]


def test_means_are_over_the_patients_who_have_the_metric() -> None:
    table = pd.DataFrame(
        {
            "patient_id": ["a", "b", "c"],
            "patches": [1, 10, 100],
            "idc": [0.0, 0.5, 0.5],
            "predicted_idc": [0.0, 0.5, 0.5],
            "correct": [0.9, 0.6, 0.3],
            "f1": [np.nan, 0.5, 0.7],
            "auroc": [np.nan] * 3,
        }
    )
    means = patient_means(table)
    assert means == {
        "correct": Mean(pytest.approx(0.6), 3),
        "f1": Mean(pytest.approx(0.6), 2),
        "auroc": Mean(None, 0),
    }


def test_the_whole_data_set_takes_a_moment() -> None:
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 279, 277_000).astype(np.str_)
    true = rng.integers(0, 2, len(patients))
    predictions = pd.DataFrame(
        {"patient_id": patients, "true": true, "proba": rng.random(len(true))}
    )
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(patients_table(predictions, 0.5)) == 279
    assert time.perf_counter() - began < 5
