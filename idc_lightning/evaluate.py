"""``idc-evaluate``: judge a finished run again, on its own data or on other tissue."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from idc_lightning.cli import run_command
from idc_lightning.config import AgainDataConfig, AnyData, EvaluateConfig
from idc_lightning.data.index import read_index
from idc_lightning.data.sample import sample_patches
from idc_lightning.data.size import check_size
from idc_lightning.data.source import find_source
from idc_lightning.data.split import rows_of
from idc_lightning.data.store import Store, open_store
from idc_lightning.decision import Decision
from idc_lightning.errors import IDCError, listed
from idc_lightning.figures.training import draw_training
from idc_lightning.inference import predict_logits
from idc_lightning.leaks import refuse_known_images
from idc_lightning.report.card import model_card
from idc_lightning.report.run import Judged, write_run_report
from idc_lightning.report.sections import check_patients, too_scattered
from idc_lightning.results.judgement import Judgement, decide_again, judge_splits
from idc_lightning.results.predictions import predictions_table
from idc_lightning.results.sealed import write_results
from idc_lightning.results.summary import (
    comparison_table,
    console,
    metrics_table,
    versions,
)
from idc_lightning.runs import JUDGED, Run, read_run


def evaluate(config: EvaluateConfig, folder: Path) -> dict[str, Any]:
    """Judge a run again.

    Args:
        config: Which run, on which data.
        folder: Where predictions, results and figures are written.

    Returns:
        The content of results.json.

    Raises:
        IDCError: If the run can't be read, or the data can't be used for it.
    """
    began = time.perf_counter()
    out = console()
    run = read_run(config.run)
    store, notes = read_patches(run, config)
    check_patients(config.report, store.table)
    notes = [*run.notes(), *notes]
    if config.report.enabled:
        notes += too_scattered(store.table, run.data.microns_per_pixel)
    decision, predictions = predict_splits(run, store, config)
    judgement = judge_splits(predictions, decision, config.results, seed=run.seed)
    judgement.write_tables(folder)
    results = judgement.values() | {
        "patients": {split: len(table) for split, table in judgement.patients.items()},
        "patches": {split: len(table) for split, table in predictions.items()},
        "notes": notes,
        "checkpoint": str(run.checkpoint),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }
    write_results(folder / "results.json", results)
    if config.report.enabled:
        judged = judged_run(run, config, judgement, store, notes, folder)
        write_run_report(folder, judged, config.report)
    for note in notes:
        out.print(note, highlight=False, markup=False)
    out.print(metrics_table(judgement.metrics, decision.threshold, config.results.confidence))
    out.print(comparison_table(judgement.at_half, judgement.means, decision.threshold))
    out.print(f"written to: {folder}", highlight=False, markup=False, soft_wrap=True)
    return results


def read_patches(run: Run, config: EvaluateConfig) -> tuple[Store, list[str]]:
    """Read the patches that are judged.

    Returns:
        Pixels and table, with a column split, and lines on what was left out.

    Raises:
        IDCError: If no patient is left who may be judged, or most patches are of another size.
    """
    own = config.data.root is None
    data = run.data if own else _elsewhere(run.data, config.data)
    source = find_source(data, config.cache)
    index = read_index(source.root, on_conflict=data.on_conflict)
    known = run.splits if own else run.seen.splits
    table = index.table.assign(split=index.table["patient_id"].map(known))
    if own:
        table = table[table["split"].notna()].reset_index(drop=True)
    else:
        check_size(index.root, table)
        table["split"] = table["split"].astype(object).fillna("new")
    if data.sample is not None:
        table = sample_patches(table, data.sample, seed=run.seed, crop=data.crop)
    judged = table[table["split"] != "train"].reset_index(drop=True)
    if judged.empty:
        raise IDCError(
            f"{source.root} holds no patients on whom the run can be judged, only such whom it was "
            "trained on or doesn't know: give other tissue by data.root=<folder>"
        )
    store = open_store(
        index.root,
        judged,
        cache=config.cache,
        everything=index.table,
        edge_patches=data.edge_patches,
        on_broken=data.on_broken,
        stain_normalisation=data.stain_normalisation,
    )
    if not own:
        refuse_known_images(run, store.table, source.root)
    changed = _changed(run, table, store) if own else _left_out(table)
    return store, [*source.notes, *index.notes(), *changed, *store.notes()]


def _elsewhere(data: AnyData, other: AgainDataConfig) -> AnyData:
    """How other data is read: as the run's own, but from another place and whole."""
    return data.model_copy(update={**dict(other), "sample": None})


def _left_out(table: pd.DataFrame) -> list[str]:
    """A line on the patients of other data who aren't judged."""
    known = table.loc[table["split"] == "train", "patient_id"].nunique()
    return [f"left out train patients of the run: {known:,}"] if known else []


def _changed(run: Run, table: pd.DataFrame, store: Store) -> list[str]:
    """Lines on what has become of the run's own data since it was trained.

    Args:
        run: The run.
        table: All patches of its patients.
        store: Those of dev and test that were read.
    """
    wanted = run.splits.index[run.splits != "train"]
    gone = sorted(set(wanted) - set(table["patient_id"]))
    counts = {name: len(rows_of(store.table, name)) for name in ("dev", "test")}
    different = [
        f"{name} had {run.patches[name]:,} patches and has {count:,}"
        for name, count in counts.items()
        if count != run.patches[name]
    ]
    notes = different
    if gone:
        notes = [f"dev and test patients of the run are gone from its data: {listed(gone)}"]
    return [f"{note}; so the numbers aren't those of the run" for note in notes]


def predict_splits(
    run: Run, store: Store, config: EvaluateConfig
) -> tuple[Decision, dict[str, pd.DataFrame]]:
    """Predict all splits, dev first, on which a threshold may be chosen.

    Returns:
        What was decided by, and tables of `predictions_table` by split.

    Raises:
        IDCError: If a threshold shall be chosen on dev, of whom there is none.
    """
    rows = {split: rows_of(store.table, split) for split in JUDGED}
    logits: dict[str, Tensor] = {}

    def table(split: str, by: Decision) -> pd.DataFrame:
        return predictions_table(store.table, torch.from_numpy(rows[split]), logits[split], by)

    if len(rows["dev"]):
        logits["dev"] = predict_logits(run, store, rows["dev"], config.trainer)
    dev = table("dev", run.decision) if logits else None
    decision = decide_again(run.decision, config.results, dev)
    for split in ("test", "new"):
        if len(rows[split]):
            logits[split] = predict_logits(run, store, rows[split], config.trainer)
    return decision, {split: table(split, decision) for split in logits}


def judged_run(
    run: Run,
    config: EvaluateConfig,
    judgement: Judgement,
    store: Store,
    notes: list[str],
    folder: Path,
) -> Judged:
    """What the report shows."""
    log = None if run.folder is None else run.folder / "metrics.csv"
    training = []
    if log is not None and log.is_file():
        try:
            training = draw_training(log, folder / "figures", run.monitor)
        except IDCError as error:  # of a run that was interrupted
            notes = [*notes, str(error)]
    root = config.data.root
    return Judged(
        title=f"Evaluation of {run.name}",
        judgement=judgement,
        store=store,
        microns=run.data.microns_per_pixel,
        facts={
            "Checkpoint": str(run.checkpoint),
            "Data": "the run's own" if root is None else str(root),
            "Patients": ", ".join(
                f"{len(table):,} {split}" for split, table in judgement.patients.items()
            ),
            "Network": run.classifier.model_config.backbone,
        },
        card=model_card(run.classifier, run.data, run.patients()),
        notes=notes,
        training=training,
    )


def main() -> None:
    """Entry point of the command."""
    run_command(evaluate, EvaluateConfig)


if __name__ == "__main__":
    main()
