"""Configurations, tiny tissue and comparisons for the tests of network, training and results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from idc_lightning.conf_folder import conf_folder
from idc_lightning.config import Config, read_config
from idc_lightning.data.grid import PATCH, file_name
from idc_lightning.errors import IDCError

PATIENTS = {"101": "train", "102": "train", "103": "train", "104": "dev", "105": "dev", "9": "test"}

TINY = (
    "data=idc",
    "data.batch_size=8",
    "data.eval_batch_size=10",
    "data.augment.stain_jitter=0",
    "split=file",
    "model.backbone=shufflenet_v2_x0_5",
    "model.head.hidden=[8]",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.epochs=2",
    "trainer.log_every_n_steps=1",
    "logger=none",
    "callbacks.progress=none",
)
"""A small net on the CPU, without logs."""


def composed(*overrides: str, command: str = "train") -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


def config_of(*overrides: str) -> Config:
    return read_config(composed(*overrides), Config)


def write_tissue(folder: Path, *, healthy: int = 6, idc: int = 3) -> tuple[str, ...]:
    """Make six patients whose IDC patches are darker; returns the overrides that name them."""
    rng = np.random.default_rng(0)
    for patient in PATIENTS:
        for number, target in enumerate([0] * healthy + [1] * idc):
            colour = rng.integers(150, 220, 3) - 80 * target
            pixels = colour + rng.integers(-20, 20, (PATCH, PATCH, 3))
            path = folder / "tissue" / patient / str(target)
            path.mkdir(parents=True, exist_ok=True)
            name = file_name(patient, PATCH * (number % 4) + 1, PATCH * (number // 4) + 1, target)
            Image.fromarray(pixels.astype(np.uint8)).save(path / name)
    rows = "".join(f"{patient},{split}\n" for patient, split in PATIENTS.items())
    (folder / "own.csv").write_text(f"patient_id,split\n{rows}")
    return f"data.root={folder}/tissue", f"split.path={folder}/own.csv"


@contextmanager
def told(*parts: str) -> Iterator[None]:
    """Expect an error of one line that holds these parts."""
    with pytest.raises(IDCError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
