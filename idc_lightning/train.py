"""``idc-train``: fit, take the best checkpoint, judge it once on test, write the run folder."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger

from idc_lightning.callbacks import Throughput
from idc_lightning.classifier import IDCClassifier
from idc_lightning.cli import run_command
from idc_lightning.config import Config
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.split import write_splits
from idc_lightning.results.predictions import predictions_table, write_predictions
from idc_lightning.results.summary import (
    Metrics,
    console,
    data_table,
    judge,
    metrics_table,
    versions,
    write_results,
)
from idc_lightning.trainer import build_trainer

JUDGED = ("dev", "test")


def train(config: Config, folder: Path) -> dict[str, Any]:
    """Run an experiment.

    Args:
        config: All of its values.
        folder: Where its checkpoints, logs, predictions and results are written.

    Returns:
        The content of results.json.

    Raises:
        IDCError: If the configuration, the data or the hardware don't allow it, or training
            diverges.
    """
    began = time.perf_counter()
    out = console()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    trainer = build_trainer(config, folder, interactive=sys.stdout.isatty())
    model = IDCClassifier(config.model, config.optimizer, config.scheduler)
    data = IDCDataModule(config.data, config.split, seed=config.seed, cache=config.cache)
    data.prepare_data()
    data.setup()
    out.print(data_table(data.summary()))
    for note in data.notes():
        out.print(note, highlight=False)
    write_splits(data.splits, folder / "splits.csv")

    trainer.fit(model, datamodule=data, weights_only=True)
    trainer.validate(model, datamodule=data, ckpt_path="best", verbose=False, weights_only=True)
    trainer.test(model, datamodule=data, ckpt_path="best", verbose=False, weights_only=True)

    metrics = {}
    for split in JUDGED:
        table = predictions_table(
            data.table, *model.outputs[split], threshold=config.results.threshold
        )
        write_predictions(table, folder / "predictions" / f"{split}.csv")
        metrics[split] = judge(table, config.results, seed=config.seed)
    facts = run_facts(config, data, trainer, seconds=time.perf_counter() - began)
    results = write_results(folder / "results.json", metrics, facts)
    log_hyperparameters(trainer, config, metrics)
    if config.trainer.profiler is not None:
        out.print(trainer.profiler.summary(), highlight=False)  # type: ignore[attr-defined]
    out.print(metrics_table(metrics, config.results))
    out.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return results


def run_facts(
    config: Config, data: IDCDataModule, trainer: lightning.Trainer, *, seconds: float
) -> dict[str, Any]:
    """What results.json says beside the metrics."""
    summary = data.summary()
    speed = next(c for c in trainer.callbacks if isinstance(c, Throughput))  # type: ignore[attr-defined]
    return {
        "patients": dict(zip(summary["split"], summary["patients"].tolist(), strict=True)),
        "patches": dict(zip(summary["split"], summary["patches"].tolist(), strict=True)),
        "edge_patches": int(data.table["edge"].sum()) + data.store.dropped,
        "notes": data.notes(),
        "threshold": config.results.threshold,
        "epochs": trainer.current_epoch,
        "seconds": round(seconds, 1),
        "images_per_second": speed.images_per_second,
        "precision": trainer.precision,
        "versions": versions(),
        "config_hash": config.digest(),
        "split_hash": data.split_hash(),
    }


def log_hyperparameters(
    trainer: lightning.Trainer, config: Config, metrics: dict[str, Metrics]
) -> None:
    """Show the run's configuration with its final metrics of dev and test in TensorBoard."""
    values = {
        f"final/{split}_{name}": interval.value
        for split, of_split in metrics.items()
        for name, interval in of_split.items()
    }
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(
                config.deciding_values(),
                {name: v for name, v in values.items() if v is not None},
            )
            logger.finalize("success")


def main() -> None:
    """Entry point of the command."""
    run_command(train, Config)


if __name__ == "__main__":
    main()
