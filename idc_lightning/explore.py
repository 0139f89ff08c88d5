"""``idc-explore``: a data set before training: what it holds, how it looks, what is doubtful."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from idc_lightning.cli import run_command
from idc_lightning.config import AnyData, ExploreConfig
from idc_lightning.data.grid import PATCH
from idc_lightning.data.health import (
    SMALL_INSIDE,
    describe_patients,
    find_problems,
    what_stops_training,
)
from idc_lightning.data.index import Index, read_index
from idc_lightning.data.sample import sample_patches
from idc_lightning.data.source import find_source
from idc_lightning.data.split import (
    TooFewPatientsError,
    compare_splits,
    split_patients,
    write_splits,
)
from idc_lightning.data.store import open_store
from idc_lightning.files import write_text
from idc_lightning.report.exploration import Explored, write_exploration
from idc_lightning.report.sections import check_patients, chosen, too_scattered
from idc_lightning.results.summary import console, data_table, health_table


def explore(config: ExploreConfig, folder: Path) -> Explored:
    """Look at a data set.

    What would stop training doesn't stop this: broken files and positions with both labels are
    left out whatever data.on_broken and data.on_conflict say, and listed; leaks are reported.

    Args:
        config: Which data, and how much of it is shown.
        folder: Where tables, figures and report.html are written.

    Returns:
        What it found.

    Raises:
        IDCError: If there is no such data, or a patient who shall be drawn isn't in it.
    """
    out = console()
    explored = read_data(config)
    write_tables(folder, explored)
    if config.report.enabled:
        write_exploration(folder, explored, config)
    out.print(data_table(_compared(explored)))
    out.print(health_table(explored.findings))
    for note in explored.notes:
        out.print(note, highlight=False, markup=False)
    out.print(f"written to: {folder}", highlight=False, markup=False, soft_wrap=True)
    return explored


def read_data(config: ExploreConfig) -> Explored:
    """Find, index, split and read a data set, and look for what is doubtful."""
    source = find_source(config.data, config.cache)
    index = read_index(source.root, on_conflict="drop")
    splits, notes = try_split(index, config)
    table = index.table
    if config.data.sample is not None:
        if not splits.empty:  # idc-train draws among their patients
            table = table[table["patient_id"].isin(splits.index)].reset_index(drop=True)
        table = sample_patches(table, config.data.sample, seed=config.seed, crop=config.data.crop)
        notes.append(f"read {len(table):,} of {len(index.table):,} patches: data.sample is set")
    check_patients(config.report, table)
    drawn = chosen(table["patient_id"].unique(), config.report.patients)
    store = open_store(
        index.root,
        table,
        cache=config.cache,
        everything=index.table,
        on_broken="skip",
        stain_normalisation=config.data.stain_normalisation,
    )
    store = replace(store, table=store.table.assign(split=store.table["patient_id"].map(splits)))
    findings = find_problems(index, store, source.notes)
    return Explored(
        root=index.root,
        store=store,
        splits=splits,
        patients=describe_patients(
            index, store.table, splits, findings, microns=config.data.microns_per_pixel
        ),
        findings=findings,
        drawn=drawn,
        notes=[
            *notes,
            *source.notes,
            *index.notes(),
            *store.notes(),
            *what_stops_training(findings, config.data),
            *edges_note(findings, config.data),
            *too_scattered(store.table, config.data.microns_per_pixel),
        ],
    )


def try_split(index: Index, config: ExploreConfig) -> tuple[pd.Series, list[str]]:
    """The split, and a note if there is none, so that it is empty, or if it lacks patients."""
    try:
        splits = split_patients(index.table, config.split)
    except TooFewPatientsError as error:
        return pd.Series(dtype=object), [f"no split: {error}"]
    absent = index.table["patient_id"].nunique() - len(splits)
    if absent:
        return splits, [f"split={config.split.name} doesn't name {absent:,} of the patients"]
    return splits, []


def edges_note(findings: pd.DataFrame, data: AnyData) -> list[str]:
    """A line on edge patches that idc-train would change, which aren't changed here."""
    changes = {"drop": "leaves them out", "resize": f"stretches them to {PATCH}x{PATCH} px"}
    found = findings["kind"].isin(["edge", SMALL_INSIDE]).any()
    if data.edge_patches not in changes or not found:
        return []
    change = changes[data.edge_patches]
    return [f"edge patches are shown here as they are; idc-train {change}, as you set"]


def write_tables(folder: Path, explored: Explored) -> None:
    """Write patients.csv and health.csv, and of a split splits.csv and split_comparison.csv."""
    write_text(folder / "patients.csv", explored.patients.to_csv(index=False))
    write_text(folder / "health.csv", explored.findings.to_csv(index=False))
    if not explored.splits.empty:
        write_splits(explored.splits, folder / "splits.csv")
        compared = compare_splits(explored.store.table)
        write_text(folder / "split_comparison.csv", compared.to_csv(index=False))


def _compared(explored: Explored) -> pd.DataFrame:
    """What each split holds, or without a split the whole."""
    if not explored.splits.empty:
        return compare_splits(explored.store.table)
    whole = compare_splits(explored.store.table.assign(split="none"))
    return whole[whole["split"] == "all"]


def main() -> None:
    """Entry point of the command."""
    run_command(explore, ExploreConfig)


if __name__ == "__main__":
    main()
