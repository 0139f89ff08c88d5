"""The report of a judged run: numbers, curves, patients, worst patches, landscapes, model card."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from idc_lightning.config import ReportConfig
from idc_lightning.data.store import Store
from idc_lightning.figures.style import Picture
from idc_lightning.report.page import Section, write_report
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
class Judged:
    """A judged run with what its report shows.

    Attributes:
        title: Heading of the report.
        judgement: Predictions, indexed by row numbers of the store, and their numbers.
        store: Pixels and table.
        microns: Width of a pixel in µm.
        facts: What stands at the top, by name.
        card: The model card, by name.
        notes: Lines on what was left out or is doubtful.
        training: Pictures of how it learned.
    """

    title: str
    judgement: Judgement
    store: Store
    microns: float
    facts: Mapping[str, str]
    card: Mapping[str, str]
    notes: Sequence[str]
    training: Sequence[Picture]


def write_run_report(folder: Path, judged: Judged, config: ReportConfig) -> list[Picture]:
    """Draw the figures of a judged run and write its report.html.

    Args:
        folder: Where figures/ and report.html go.
        judged: What is shown.
        config: How much of it.

    Returns:
        All pictures that were drawn, in the order of the report.

    Raises:
        IDCError: If a file can't be written.
    """
    drawn: list[Picture] = []

    def seen(sections: Iterator[Section]) -> Iterator[Section]:
        for section in sections:
            drawn.extend(item for item in section.items if isinstance(item, Picture))
            yield section

    # Closed in any case, so that no process draws into the folder of a run that has failed.
    with closing(_sections(folder / "figures", judged, config)) as sections:
        write_report(
            folder / "report.html",
            title=judged.title,
            facts=judged.facts,
            sections=seen(sections),
            notes=judged.notes,
        )
    return drawn


def _sections(
    figures: Path, judged: Judged, config: ReportConfig
) -> Generator[Section, None, None]:
    judgement = judged.judgement
    wanted = {
        split: (judgement.predictions[split], chosen(table["patient_id"], config.patients))
        for split, table in judgement.patients.items()
    }
    # They take longest, and the other pictures are drawn meanwhile.
    with landscapes(
        figures / "landscapes",
        wanted,
        judged.store,
        microns=judged.microns,
        threshold=judgement.decision.threshold,
    ) as drawn:
        yield numbers(judgement)
        if judged.training:
            yield Section("Training", "", judged.training)
        yield decisions(figures, judgement)
        yield by_patient(figures, judgement, microns=judged.microns)
        yield from worst(figures, judgement, judged.store, count=config.gallery)
        for split, (_, names) in wanted.items():
            if names:
                title = f"Landscapes of {split}"
                yield Section(title, "The worst patients (by F1) first.", list(drawn[split]))
    yield statements("Model card", judged.card)
