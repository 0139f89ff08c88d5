"""``idc-predict``: what a finished run says of new tissue, labelled or not."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from idc_lightning.cli import run_command
from idc_lightning.config import PredictConfig
from idc_lightning.data.grid import NO_LABEL
from idc_lightning.data.loose import read_loose
from idc_lightning.data.size import check_size
from idc_lightning.data.store import Store, open_store
from idc_lightning.decision import Decision
from idc_lightning.files import write_text
from idc_lightning.inference import predict_logits
from idc_lightning.leaks import known_images, seen_before
from idc_lightning.report.card import model_card
from idc_lightning.report.prediction import Predicted, write_prediction_report
from idc_lightning.report.sections import check_patients, too_scattered
from idc_lightning.results.judgement import Judgement, judge_splits
from idc_lightning.results.predictions import predictions_table, write_predictions
from idc_lightning.results.sealed import write_results
from idc_lightning.results.summary import (
    called_table,
    console,
    metrics_table,
    versions,
)
from idc_lightning.runs import JUDGED, Run, read_run


def predict(config: PredictConfig, folder: Path) -> pd.DataFrame:
    """Predict new tissue.

    Args:
        config: By which run, on which patches.
        folder: Where predictions.csv, patients.csv, figures and report are written.

    Returns:
        The table of predictions.

    Raises:
        IDCError: If the run or the patches can't be read, or the patches are of another size.
    """
    began = time.perf_counter()
    out = console()
    run = read_run(config.run)
    decision = run.decision
    if config.results.threshold is not None:
        decision = replace(decision, threshold=config.results.threshold)
    store, notes = read_patches(run, config)
    predictions = predict_patches(run, store, decision, config)
    write_predictions(predictions, folder / "predictions.csv")
    labelled = predictions[predictions["true"] != NO_LABEL]
    judgement = None
    judged = by_split(run, labelled[~known_images(run.seen, store.table)[labelled.index]])
    if judged:
        judgement = judge_splits(judged, decision, config.results, seed=run.seed)
    patients = called(predictions)
    write_text(folder / "patients.csv", patients.to_csv(index=False, float_format="%.6g"))
    numbers = {} if judgement is None else judgement.values()
    facts = {
        "patients": len(patients),
        "patches": len(predictions),
        "labelled": len(labelled),
        "notes": notes,
        "checkpoint": str(run.checkpoint),
        "input": str(config.input.expanduser().absolute()),
        **asdict(decision),
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }
    write_results(folder / "results.json", numbers | facts)
    if config.report.enabled:
        shown = predicted(run, config, decision, predictions, patients, judgement, store, notes)
        write_prediction_report(folder, shown, config.report)
    for note in notes:
        out.print(note, highlight=False, markup=False)
    out.print(called_table(patients, decision.threshold))
    if judgement is not None:
        out.print(metrics_table(judgement.metrics, decision.threshold, config.results.confidence))
    out.print(f"written to: {folder}", highlight=False, markup=False, soft_wrap=True)
    return predictions


def read_patches(run: Run, config: PredictConfig) -> tuple[Store, list[str]]:
    """Read the patches as the run read its own.

    Returns:
        Pixels and table, and lines on what was left out or is doubtful.

    Raises:
        IDCError: If there are none, they can't be read, or they are of another size.
    """
    found = read_loose(config.input.expanduser(), on_conflict=config.data.on_conflict)
    check_patients(config.report, found.table)
    check_size(found.root, found.table)
    store = open_store(
        found.root,
        found.table,
        cache=config.cache,
        edge_patches=run.data.edge_patches,
        on_broken=config.data.on_broken,
        stain_normalisation=run.data.stain_normalisation,
    )
    notes = [*run.notes(), *found.notes(), *store.notes(), *seen_before(run, store.table)]
    if config.report.enabled:
        notes += too_scattered(store.table, run.data.microns_per_pixel)
    return store, notes


def predict_patches(
    run: Run, store: Store, decision: Decision, config: PredictConfig
) -> pd.DataFrame:
    """The table of `predictions_table` of all patches of a store."""
    rows = np.arange(len(store.table))
    logits = predict_logits(run, store, rows, config.trainer)
    return predictions_table(store.table, torch.from_numpy(rows), logits, decision)


def by_split(run: Run, labelled: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Labelled predictions of patients on whom the run can be judged, as `idc-evaluate` does.

    Returns:
        Tables by split; patients whom the run doesn't know are ``"new"``, those that it was trained
        on are left out.
    """
    split = labelled["patient_id"].map(run.seen.splits).astype(object).fillna("new")
    return {name: labelled[split == name] for name in JUDGED if (split == name).any()}


def called(predictions: pd.DataFrame) -> pd.DataFrame:
    """Patients with the share of their patches that is called IDC, the highest first.

    Returns:
        patient_id, patches, called_idc (share), probability (mean), and, if any patch has a label,
        idc (share of the labelled patches; NaN for a patient without any).
    """
    known = predictions["true"].where(predictions["true"] != NO_LABEL)
    groups = predictions.assign(known=known).groupby("patient_id")
    columns = {
        "patches": groups.size(),
        "called_idc": groups["predicted"].mean(),
        "probability": groups["proba"].mean(),
    }
    if known.notna().any():
        columns["idc"] = groups["known"].mean()
    order = ["called_idc", "probability"]
    return pd.DataFrame(columns).sort_values(order, ascending=False).reset_index()


def predicted(
    run: Run,
    config: PredictConfig,
    decision: Decision,
    predictions: pd.DataFrame,
    patients: pd.DataFrame,
    judgement: Judgement | None,
    store: Store,
    notes: list[str],
) -> Predicted:
    """What the report shows."""
    labelled = int((predictions["true"] != NO_LABEL).sum())
    return Predicted(
        predictions=predictions,
        patients=patients,
        judgement=judgement,
        store=store,
        threshold=decision.threshold,
        microns=run.data.microns_per_pixel,
        facts={
            "Checkpoint": str(run.checkpoint),
            "Input": str(config.input.expanduser().absolute()),
            "Patients": f"{len(patients):,}",
            "Patches": f"{len(predictions):,}",
            "Labelled": f"{labelled:,}",
            "Network": run.classifier.model_config.backbone,
        },
        card=model_card(run.classifier, run.data, run.patients()),
        notes=notes,
    )


def main() -> None:
    """Entry point of the command."""
    run_command(predict, PredictConfig)


if __name__ == "__main__":
    main()
