"""A finished run read back from its checkpoint: the network, its data and its patients' splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from idc_lightning.classifier import IDCClassifier, load_classifier
from idc_lightning.config import AnyData, parse
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.errors import IDCError
from idc_lightning.models.backbone import read_checkpoint


@dataclass(frozen=True)
class Run:
    """What a checkpoint says of its run.

    Attributes:
        checkpoint: The file.
        folder: The run folder that the file lies in; None if it lies elsewhere.
        classifier: With its temperature and threshold, ready for evaluation.
        data: The data that it was trained on.
        splits: ``"train"``, ``"dev"`` or ``"test"`` by patient_id.
        seed: The run's seed.
    """

    checkpoint: Path
    folder: Path | None
    classifier: IDCClassifier
    data: AnyData
    splits: pd.Series
    seed: int


def read_run(path: Path) -> Run:
    """Read a run.

    Args:
        path: A run folder, whose best checkpoint is taken, or a checkpoint.

    Raises:
        IDCError: If there is no checkpoint, or it isn't of this project.
    """
    path = path.expanduser()
    checkpoint = _checkpoint(path)
    classifier = load_classifier(checkpoint)
    state = read_checkpoint(checkpoint).get(IDCDataModule.__qualname__)
    if not isinstance(state, Mapping) or not {"data", "splits", "seed"} <= set(state):
        raise IDCError(
            f"{checkpoint} doesn't say which patients it was trained on: it was written by an "
            "older version; train again"
        )
    inside = checkpoint.parent.name == "checkpoints"
    data: Any = parse(AnyData, state["data"], "data")
    return Run(
        checkpoint=checkpoint,
        folder=checkpoint.parent.parent if inside else None,
        classifier=classifier,
        data=data,
        splits=pd.Series(dict(state["splits"]), name="split").rename_axis("patient_id"),
        seed=int(state["seed"]),
    )


def _checkpoint(path: Path) -> Path:
    if path.is_file():
        return path
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    if path.is_dir():
        raise IDCError(f"run={path} holds no checkpoints/best.ckpt: give a run folder of idc-train")
    raise IDCError(f"run={path} doesn't exist: give a run folder or a checkpoint")
