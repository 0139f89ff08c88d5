"""The report of new tissue: what is said of each patient, and how it fits labels if any."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from idc_lightning.config import ReportConfig
from idc_lightning.data.store import Store
from idc_lightning.report.page import DataTable, Section, write_report
from idc_lightning.report.sections import (
    by_patient,
    chosen,
    decisions,
    landscapes,
    numbers,
    statements,
    worst,
)
from idc_lightning.results.judgement import Judgement


@dataclass(frozen=True)
class Predicted:
    """Predictions of new tissue with what their report shows.

    Attributes:
        predictions: Indexed by row numbers of the store; true is -1 without a label.
        patients: One row for each patient, in the order in which they are shown.
        judgement: Of the labelled ones; None without any.
        store: Pixels and table.
        threshold: Probability from which a patch counts as IDC.
        microns: Width of a pixel in µm.
        facts: What stands at the top, by name.
        card: The model card, by name.
        notes: Lines on what was left out or is doubtful.
    """

    predictions: pd.DataFrame
    patients: pd.DataFrame
    judgement: Judgement | None
    store: Store
    threshold: float
    microns: float
    facts: Mapping[str, str]
    card: Mapping[str, str]
    notes: Sequence[str]


def write_prediction_report(folder: Path, predicted: Predicted, config: ReportConfig) -> None:
    """Draw the figures of new tissue and write its report.html.

    Args:
        folder: Where figures/ and report.html go.
        predicted: What is shown.
        config: How much of it.

    Raises:
        IDCError: If a file can't be written.
    """
    write_report(
        folder / "report.html",
        title="Predictions",
        facts=predicted.facts,
        sections=_sections(folder / "figures", predicted, config),
        notes=predicted.notes,
    )


def _sections(figures: Path, predicted: Predicted, config: ReportConfig) -> Iterator[Section]:
    yield Section(
        "Patients",
        f"A patch is called IDC from the probability {predicted.threshold:.3f} on.",
        [
            DataTable(
                "What is said of each patient",
                "called_idc is the share of the patches called IDC, probability the mean of all, "
                "idc the share of those with a label that are labelled IDC.",
                predicted.patients,
            )
        ],
    )
    names = chosen(predicted.patients["patient_id"], config.patients)
    with landscapes(
        figures / "landscapes",
        {"patient": (predicted.predictions, names)},
        predicted.store,
        microns=predicted.microns,
        threshold=predicted.threshold,
    ) as drawn:
        pictures = list(drawn["patient"])
    yield Section("Landscapes", "", pictures)
    judgement = predicted.judgement
    if judgement is not None:
        yield numbers(judgement)
        yield decisions(figures, judgement)
        yield by_patient(figures, judgement, microns=predicted.microns)
        yield from worst(figures, judgement, predicted.store, count=config.gallery)
    yield statements("Model card", predicted.card)
