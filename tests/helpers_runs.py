"""Finished runs of idc-train for the tests of the commands that read them."""

from pathlib import Path

from helpers_model import TINY, composed, config_of, write_tissue

from idc_lightning.config import EvaluateConfig, PredictConfig, read_config
from idc_lightning.train import train

QUICK = ("report=none", "results.draws=50")


def trained(folder: Path, *overrides: str) -> Path:
    """Train one tiny epoch on the tissue that `write_tissue` makes; returns the run folder."""
    run = folder / "run"
    run.mkdir(parents=True)
    train(config_of(*TINY, *write_tissue(folder), "trainer.epochs=1", *QUICK, *overrides), run)
    return run


def evaluation(run: Path, *overrides: str) -> EvaluateConfig:
    """The configuration of ``idc-evaluate`` for a run, without figures."""
    given = (f"run={run}", "trainer.accelerator=cpu", *QUICK, *overrides)
    return read_config(composed(*given, command="evaluate"), EvaluateConfig)


def prediction(run: Path, new: Path, *overrides: str) -> PredictConfig:
    """The configuration of ``idc-predict`` for a run, without figures."""
    given = (f"run={run}", f'input="{new}"', "trainer.accelerator=cpu", *QUICK, *overrides)
    return read_config(composed(*given, command="predict"), PredictConfig)
