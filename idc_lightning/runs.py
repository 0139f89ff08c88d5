"""A finished run read back from its checkpoint: the network, its data and its patients' splits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from idc_lightning.classifier import IDCClassifier, load_classifier
from idc_lightning.config import AnyData, Seed, parse
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.seen import Seen, by_patient
from idc_lightning.data.split import NAMES
from idc_lightning.decision import Decision
from idc_lightning.errors import IDCError
from idc_lightning.results.run_folders import REASON
from idc_lightning.torch_files import read_checkpoint

JUDGED = ("dev", "test", "new")
"""Splits on which a run is judged again; patients whom it doesn't know are new."""

Splits = dict[str, Literal["train", "dev", "test"]]


@dataclass(frozen=True)
class Run:
    """What a checkpoint says of its run.

    Attributes:
        checkpoint: The file.
        folder: The run folder that the file lies in; None if it lies elsewhere.
        classifier: With its decision, ready for evaluation.
        data: The data that it was trained on.
        splits: ``"train"``, ``"dev"`` or ``"test"`` by patient_id.
        patches: Number of patches by split, when it was trained.
        seen: What its weights have learned from, also before the run.
        seed: The run's seed.
        monitor: The metric by which its best epoch was taken, such as ``"dev/f1"``.
        precision: In which it computed, such as ``"32-true"``; None if the checkpoint doesn't say.
    """

    checkpoint: Path
    folder: Path | None
    classifier: IDCClassifier
    data: AnyData
    splits: pd.Series
    patches: dict[str, int]
    seen: Seen
    seed: int
    monitor: str
    precision: str | None

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return self.checkpoint.stem if self.folder is None else self.folder.name

    @property
    def decision(self) -> Decision:
        """How its logits are turned to calls."""
        return self.classifier.decision

    def patients(self) -> dict[str, int]:
        """Number of its patients by split."""
        counts = self.splits.value_counts()
        return {name: int(counts.get(name, 0)) for name in NAMES}

    def notes(self) -> list[str]:
        """One line on each thing that a finished run has and this one lacks."""
        notes = []
        if self.folder is not None and (self.folder / REASON).is_file():
            notes.append(f"the run {self.folder.name} failed, its {REASON} says why")
        if not self.classifier.decided:
            notes.append(
                f"{self.checkpoint.name} holds no temperature, bias and threshold fitted on dev, "
                "as the best.ckpt of a finished run does: its probabilities aren't calibrated, and "
                "its own threshold is 0.5"
            )
        return notes


class _SeenMemory(BaseModel):
    """What `Seen.to_plain` leaves in it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    splits: Splits
    images: Tensor

    def read(self) -> Seen:
        return Seen.from_plain({"splits": self.splits, "images": self.images})


class _Memory(BaseModel):
    """What `IDCDataModule.state_dict` leaves in a checkpoint, as far as it is needed."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    data: AnyData
    splits: Splits
    patches: dict[str, int]
    seen: _SeenMemory
    seed: Seed


def read_run(path: Path, *, named: str | None = None) -> Run:
    """Read a run.

    Args:
        path: A run folder, whose best checkpoint is taken, or a checkpoint.
        named: How it was typed; None if by ``run=``.

    Raises:
        IDCError: If there is no checkpoint, or it isn't of this project.
    """
    checkpoint = _checkpoint(path.expanduser(), named or f"run={path}").resolve()
    classifier = load_classifier(checkpoint)
    content = read_checkpoint(checkpoint)
    memory, monitor = _memory(content, checkpoint)
    inside = checkpoint.parent.name == "checkpoints"
    return Run(
        checkpoint=checkpoint,
        folder=checkpoint.parent.parent if inside else None,
        classifier=classifier,
        data=memory.data,
        splits=by_patient(memory.splits),
        patches=memory.patches,
        seen=memory.seen.read(),
        seed=memory.seed,
        monitor=monitor,
        precision=content.get("precision"),
    )


def seen_by(weights: Path) -> Seen | None:
    """What a file of weights has learned from; None if it is no checkpoint of this project.

    Raises:
        IDCError: If it can't be read.
    """
    content = read_checkpoint(weights.expanduser())
    if IDCDataModule.__qualname__ not in content:
        return None
    memory, _ = _memory(content, weights)
    return memory.seen.read()


def _memory(content: dict[str, Any], checkpoint: Path) -> tuple[_Memory, str]:
    """What a checkpoint says of its data, and the metric by which it was taken."""
    try:
        return parse(_Memory, content.get(IDCDataModule.__qualname__), ""), _monitor(content)
    except (IDCError, LookupError, AttributeError, TypeError) as error:
        raise IDCError(
            f"{checkpoint} doesn't say on which patients it was trained, or in another way than "
            "this version writes it: train again"
        ) from error


def _monitor(content: dict[str, Any]) -> str:
    """The metric that Lightning's callback says it has watched."""
    callbacks = content["callbacks"].values()
    found = [callback["monitor"] for callback in callbacks if "best_model_path" in callback]
    return str(found[0])


def _checkpoint(path: Path, named: str) -> Path:
    if path.is_file():
        return path
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        return best
    if path.is_dir():
        raise IDCError(f"{named} holds no checkpoints/best.ckpt: give a run folder of idc-train")
    raise IDCError(f"{named} doesn't exist: give a run folder or a checkpoint")
