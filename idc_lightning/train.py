"""``idc-train``: fit, take the best checkpoint, judge it once on test, write the run folder."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from idc_lightning import ranks
from idc_lightning.callbacks import Throughput
from idc_lightning.checkpoints import last_checkpoint
from idc_lightning.classifier import IDCClassifier, write_decision
from idc_lightning.cli import prepare_process, resume_command, run_command
from idc_lightning.compare import compare_sweep
from idc_lightning.config import Config
from idc_lightning.data.datamodule import IDCDataModule, Ready
from idc_lightning.data.split import write_splits
from idc_lightning.figures.style import Picture
from idc_lightning.figures.training import draw_training
from idc_lightning.files import remove_partials
from idc_lightning.frozen import features_note
from idc_lightning.leaks import check_start
from idc_lightning.lr_range_test import LRRangeTest
from idc_lightning.pretraining import (
    pretrain,
    read_start,
    seconds_of_pretraining,
)
from idc_lightning.pruning import Pruning
from idc_lightning.report.card import model_card
from idc_lightning.report.run import Judged, write_run_report
from idc_lightning.report.sections import check_patients, too_scattered
from idc_lightning.report.tensorboard import log_judgement, log_pictures, log_values
from idc_lightning.results.judgement import Judgement, decide, judge_splits
from idc_lightning.results.predictions import predictions_table
from idc_lightning.results.run_folders import RESULTS, varied_in_sweep
from idc_lightning.results.sealed import write_results
from idc_lightning.results.summary import (
    comparison_table,
    console,
    data_table,
    metrics_table,
    versions,
)
from idc_lightning.resume import WORD
from idc_lightning.trainer import resolve_accelerator, resolve_precision
from idc_lightning.training import build_data, build_model, check_monitors, fit

JUDGED = ("dev", "test")


def train(config: Config, folder: Path) -> dict[str, Any]:
    """Run an experiment, or go on with it where its last checkpoint was written.

    Of the processes of a training this is what the leader does.

    Args:
        config: All of its values.
        folder: Where its checkpoints, logs, predictions, results and figures are written.

    Returns:
        The content of results.json, which is written last: where it is, nothing is left to do.

    Raises:
        IDCError: If the configuration, the data or the hardware don't allow it, or training
            diverges.
    """
    out = console()
    remove_partials(folder)
    accelerator = resolve_accelerator(config.trainer)
    resolve_precision(config.trainer, accelerator)
    place = ranks.place_of(config.trainer, accelerator)
    # First, so that a wrong name of a network is told before a large data set is made ready.
    model = build_model(config)
    begun = last_checkpoint(folder).is_file()
    start = None if begun else read_start(config)
    data = build_data(config, place)
    data.prepare_data()
    data.setup()
    check_patients(config.report, data.table)
    if not begun:
        check_monitors(config, data.table)
    out.print(data_table(data.summary()))
    for note in [*data.notes(), *features_note(config)]:
        out.print(note, highlight=False, markup=False)
    if start is not None:
        check_start(start.named, start.seen, data.table)
        data.begin_with(start.seen)
        if start.classifier is not None:
            model.begin_with(start.named, start.classifier, learns=config.trainer.epochs > 0)
    write_splits(data.splits, folder / "splits.csv")

    with ranks.leading(place, config, folder, data.ready):
        trainer = fit_and_test(config, folder, data, model, place)
    decision = model.decision

    predictions = {
        split: predictions_table(data.table, *model.outputs[split], decision) for split in JUDGED
    }
    judgement = judge_splits(predictions, decision, config.results, seed=config.seed)
    judgement.write_tables(folder)
    pictures: list[Picture] = []
    if config.report.enabled:
        judged = judged_run(config, folder, judgement, data, model, trainer)
        pictures = write_run_report(folder, judged, config.report)
    log_end(trainer, model, config, folder, judgement, pictures)
    results = judgement.values() | run_facts(config, folder, data, trainer)
    write_results(folder / RESULTS, results)
    if config.trainer.profiler is not None:
        out.print(trainer.profiler.summary(), highlight=False)  # type: ignore[attr-defined]
    out.print(metrics_table(judgement.metrics, decision.threshold, config.results.confidence))
    out.print(comparison_table(judgement.at_half, judgement.means, decision.threshold))
    out.print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
    return results


def take_part(config: Config, folder: Path, ready: Ready) -> None:
    """What the other processes of a training do."""
    place = ranks.started()
    fit_and_test(config, folder, build_data(config, place, ready), build_model(config), place)


def fit_and_test(
    config: Config, folder: Path, data: IDCDataModule, model: IDCClassifier, place: ranks.Place
) -> lightning.Trainer:
    """Train, decide by dev, and compute test, in each process of a training.

    Returns:
        The trainer; the classifier has the decision and the outputs of dev and test.
    """
    first = config.pretraining
    begun = last_checkpoint(folder).is_file()
    if first.name == "patches" and first.run is None and not begun:
        model.start = pretrain(config, first, folder, data.ready, place)
    trainer = fit(config, folder, data, model, place)
    trainer.validate(model, datamodule=data, ckpt_path="best", verbose=False, weights_only=True)
    smoothing = config.model.context.name == "smooth"
    decision = decide(
        data.table,
        *model.outputs["dev"],
        config.results,
        bandwidth=config.model.context.bandwidth if smoothing else 0.0,
    )
    model.decide_by(decision)
    if place.leads:
        write_decision(folder / "checkpoints" / "best.ckpt", decision)
    trainer.test(model, datamodule=data, ckpt_path="best", verbose=False, weights_only=True)
    return trainer


def run_facts(
    config: Config, folder: Path, data: IDCDataModule, trainer: lightning.Trainer
) -> dict[str, Any]:
    """What results.json says beside the metrics."""
    search, throughput = _callback(trainer, LRRangeTest), _callback(trainer, Throughput)
    pruning = _callback(trainer, Pruning)
    assert throughput is not None
    return {
        "patients": counted(data, "patients"),
        "patches": counted(data, "patches"),
        "edge_patches": int(data.table["edge"].sum()) + data.store.dropped,
        "notes": [*data.notes(), *features_note(config)],
        "epochs": trainer.current_epoch,
        "pruned_after": pruning.pruned_after if pruning else None,
        "lr_range_test": asdict(search.result) if search and search.result else None,
        "seconds": round(throughput.elapsed + seconds_of_pretraining(folder), 1),
        "images_per_second": throughput.images_per_second,
        "precision": trainer.precision,
        "versions": versions(),
        "config_hash": config.digest(),
        "split_hash": data.split_hash(),
    }


def counted(data: IDCDataModule, what: str) -> dict[str, int]:
    """Number of ``"patients"`` or ``"patches"`` by split."""
    summary = data.summary()
    return dict(zip(summary["split"], summary[what].tolist(), strict=True))


AnyCallback = TypeVar("AnyCallback", bound=Callback)


def _callback(trainer: lightning.Trainer, kind: type[AnyCallback]) -> AnyCallback | None:
    """The callback of a kind, if there is one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def judged_run(
    config: Config,
    folder: Path,
    judgement: Judgement,
    data: IDCDataModule,
    model: IDCClassifier,
    trainer: lightning.Trainer,
) -> Judged:
    """What the report of a run shows."""
    patients = counted(data, "patients")
    search = _callback(trainer, LRRangeTest)
    log = folder / "metrics.csv"
    monitor = config.callbacks.checkpoint.monitor
    drawn = config.logger.csv and log.is_file()  # else it may be of fewer epochs
    training = draw_training(log, folder / "figures", monitor) if drawn else []
    if search is not None and search.picture is not None:
        training = [search.picture, *training]
    return Judged(
        title=f"Run {folder.name}",
        judgement=judgement,
        store=data.store,
        microns=config.data.microns_per_pixel,
        facts={
            "Data": f"{'demo' if config.data.is_synthetic else 'idc'}, "
            f"{len(data.splits):,} patients",
            "Split": f"{config.split.name}: "
            + ", ".join(f"{count:,} {split}" for split, count in patients.items()),
            "Network": config.model.backbone,
            "Epochs": str(trainer.current_epoch),
            "Seed": str(config.seed),
            "Configuration": config.digest()[:12],
        },
        card=model_card(model, config.data, patients),
        notes=[*data.notes(), *too_scattered(data.table, config.data.microns_per_pixel)],
        training=training,
    )


def log_end(
    trainer: lightning.Trainer,
    model: IDCClassifier,
    config: Config,
    folder: Path,
    judgement: Judgement,
    pictures: list[Picture],
) -> None:
    """Show decisions, pictures and the configuration with its final metrics in TensorBoard."""
    # The search for the learning rate may have changed the rates.
    used = config.model_copy(
        update={"optimizer": model.optimizer_config, "scheduler": model.scheduler_config}
    )
    final = {
        f"final/{split}_{name}": interval.value
        for split, of_split in judgement.metrics.items()
        for name, interval in of_split.items()
        if interval.value is not None
    }
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            log_judgement(logger.experiment, judgement, step=trainer.global_step)
            log_pictures(logger.experiment, pictures, step=trainer.global_step)
            values = used.deciding_values()
            logger.log_hyperparams(values)
            varied = varied_in_sweep(folder)
            log_values(logger.experiment, values, final, varied, step=trainer.global_step)
            logger.finalize("success")


def main() -> None:
    """Entry point of the command."""
    words = sys.argv[1:]
    if not ranks.started().leads:
        prepare_process()
        ranks.follow(take_part)
        return
    with ranks.meeting():
        if any(word.startswith(WORD) for word in words):
            resume_command(train, words)
        else:
            run_command(train, Config, after_sweep=compare_sweep)


if __name__ == "__main__":
    main()
