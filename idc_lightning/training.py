"""A training of a run: its classifier, its data, and the fit, also where it was interrupted."""

import sys
from pathlib import Path

import lightning
import pandas as pd

from idc_lightning import ranks
from idc_lightning.checkpoints import first_step, last_checkpoint
from idc_lightning.classifier import IDCClassifier
from idc_lightning.config import Config
from idc_lightning.data.datamodule import IDCDataModule, Ready, lacking_classes
from idc_lightning.errors import IDCError
from idc_lightning.frozen import block_steps
from idc_lightning.trainer import build_trainer


def build_model(config: Config) -> IDCClassifier:
    """The untrained classifier of a run, the same in all of its processes."""
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    return IDCClassifier(config.model, config.optimizer, config.scheduler)


def build_data(config: Config, place: ranks.Place, ready: Ready | None = None) -> IDCDataModule:
    """The data module of a run; nothing is read yet."""
    return IDCDataModule(
        config.data,
        config.split,
        seed=config.seed,
        cache=config.cache,
        on_features=config.learns_on_features,
        block=block_steps(config, place.world),
        ready=ready,
    )


def check_monitors(config: Config, table: pd.DataFrame) -> None:
    """Raise an IDCError if dev can't tell by a monitored metric which epoch is the best.

    Args:
        config: Of the run.
        table: The table of the store.
    """
    lacking = lacking_classes(table, "dev")
    if not lacking or config.trainer.epochs == 0:
        return
    monitors = {"callbacks.checkpoint.monitor": config.callbacks.checkpoint.monitor}
    if config.callbacks.early_stopping is not None:
        monitors["callbacks.early_stopping.monitor"] = config.callbacks.early_stopping.monitor
    for key, metric in monitors.items():
        if metric != "dev/loss":
            raise IDCError(
                f"dev has no {lacking[0]} patch, so {metric} doesn't tell which epoch is the best: "
                f"take another split, or {key}=dev/loss"
            )
    if config.sweep.study is not None and config.sweep.metric != "brier":
        raise IDCError(
            f"dev has no {lacking[0]} patch, so its {config.sweep.metric} doesn't tell which job "
            "is the best: take another split, or sweep.metric=brier"
        )


def fit(
    config: Config,
    folder: Path,
    data: IDCDataModule,
    model: IDCClassifier,
    place: ranks.Place,
) -> lightning.Trainer:
    """Train, from the last checkpoint in the folder if there is one, in each process."""
    begin, interactive = first_step(folder), sys.stdout.isatty()
    trainer = build_trainer(config, folder, interactive=interactive, first_step=begin, place=place)
    if data.block > 1:
        model.learn_in_blocks(gradient_clip=config.trainer.gradient_clip)
    last = last_checkpoint(folder)
    begun = last if last.is_file() else None
    trainer.fit(model, datamodule=data, ckpt_path=begun, weights_only=True)
    return trainer
