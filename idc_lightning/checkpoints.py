"""Checkpoints of a run: the best epoch, and the last state, from which the run can go on.

``last.ckpt`` is never ahead of what was logged: loggers are flushed first, then it takes its name.
"""

import time
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.progress import _ProcessedTracker

from idc_lightning import termination
from idc_lightning.loggers import flush
from idc_lightning.metrics import better
from idc_lightning.torch_files import read_checkpoint, write_checkpoint

FOLDER = "checkpoints"
"""Folder of the checkpoints in the run folder."""

PRETRAINING = "pretraining"
"""Folder in the run folder of a training that came first, laid out in the same way."""

GRACE = 5.0
"""Seconds that the rest of an epoch may take after SIGTERM; Slurm kills after 30 by default."""


def last_checkpoint(folder: Path) -> Path:
    """Where the state lies from which the run of a folder can go on, if there is one."""
    return folder / FOLDER / "last.ckpt"


def has_begun(folder: Path) -> bool:
    """Whether the run of a folder, or the pretraining that comes first, can be gone on with."""
    return any(last_checkpoint(place).is_file() for place in (folder, folder / PRETRAINING))


def holds_run(folder: Path) -> bool:
    """Whether a run, or its pretraining, has begun in a folder, even if it has saved nothing."""
    return any((folder / name).exists() for name in (FOLDER, PRETRAINING))


def has_learned(folder: Path) -> bool:
    """Whether there is a checkpoint of the run of a folder, or of its pretraining."""
    return any(any((place / FOLDER).glob("*.ckpt")) for place in (folder, folder / PRETRAINING))


def first_step(folder: Path) -> int:
    """The first step that the run of a folder has to take, 0 if it has no checkpoint.

    Raises:
        IDCError: If its checkpoint can't be read.
    """
    last = last_checkpoint(folder)
    return int(read_checkpoint(last)["global_step"]) if last.is_file() else 0


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint under another name first, in the same folder; reads whole ones only."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401
    ) -> None:
        """Write it.

        Raises:
            IDCError: If the folder can't be written.
        """
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read it to the CPU, whatever Lightning asks for, and run no code that it may hold.

        Raises:
            IDCError: If it is absent, damaged or holds anything but tensors and plain values.
        """
        return read_checkpoint(Path(path))


class Checkpoints(ModelCheckpoint):
    """``best.ckpt`` of the best epoch, and ``last.ckpt`` of what was done so far.

    The last one is written between two batches or two epochs, and at the end; also on SIGTERM,
    after which the training ends. Its state at the end of an epoch is taken before Lightning logs
    the metrics of that epoch, so that it gets its name only later.

    Args:
        folder: The run folder.
        monitor: Name of a metric that says which epoch is the best.
        last_every: Seconds between two times that the last is written during training.
        course: Hash of what decides the course of the training, kept in the checkpoints.
    """

    def __init__(self, folder: Path, *, monitor: str, last_every: float, course: str) -> None:
        super().__init__(
            folder / FOLDER,
            filename="best",
            monitor=monitor,
            mode=better(monitor),
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self._last = last_checkpoint(folder)
        self._next = self._last.with_name(".next.ckpt")
        self.last_model_path = str(self._last)
        self._last_every = last_every
        self._last_written = time.monotonic()
        self._course = course
        self._ended_for: int | None = None

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Train no further if that was stopped early before, for the same number of epochs."""
        if trainer.is_global_zero:
            self._next.unlink(missing_ok=True)  # of a process that was killed
        self._last_written = time.monotonic()
        if self._ended_for == trainer.max_epochs:
            trainer.should_stop = True

    def on_train_batch_start(self, *_: Any) -> None:  # noqa: ANN401
        """From here on there is something to save before the training ends."""
        termination.defer()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Write the last one within an epoch, after whose last batch dev comes first."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not last and self._is_due(trainer):
            self._save_next(trainer)
            self._take_next(trainer)

    def on_validation_batch_end(self, *_: Any) -> None:  # noqa: ANN401
        """Don't wait for the end of a long epoch if the command is to end."""
        if (termination.waited() or 0) > GRACE:
            termination.end_if_received()

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write the epoch, first as the best if it is, so that the last knows of it."""
        super().on_train_epoch_end(trainer, pl_module)
        # Lightning runs checkpoints after all other callbacks, one of which may have ended it.
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if ends:
            self._ended_for = trainer.max_epochs
        if ends or self._is_due(trainer):
            self._save_next(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Give the state after the epoch before its name."""
        self._take_next(trainer)

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Likewise after the last epoch."""
        self._take_next(trainer)
        termination.end_if_received()

    def on_fit_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Count the last epoch, which Lightning leaves out if a resumed run had none left.

        Without any epoch the best is what the training began with.
        """
        if trainer.max_epochs == 0:
            self.best_model_path = str(self._last.with_name("best.ckpt"))
            trainer.save_checkpoint(self.best_model_path)
            self._save_next(trainer)
            self._take_next(trainer)
        progress = trainer.fit_loop.epoch_progress.current
        assert isinstance(progress, _ProcessedTracker)
        progress.completed = progress.processed

    def on_exception(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Leave no state that has no name yet."""
        if trainer.is_global_zero:
            self._next.unlink(missing_ok=True)

    def _is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether it is time to write the last one, in all processes if it is in one."""
        waits = time.monotonic() - self._last_written < self._last_every
        due = not waits or termination.waited() is not None
        return trainer.strategy.reduce_boolean_decision(due, all=False)

    def _save_next(self, trainer: lightning.Trainer) -> None:
        self._last_written = time.monotonic()
        trainer.save_checkpoint(self._next)

    def _take_next(self, trainer: lightning.Trainer) -> None:
        """Let the state that was saved be the last one, after all that was logged before."""
        if trainer.is_global_zero and self._next.is_file():
            flush(trainer.loggers)
            self._next.replace(self._last)
            if termination.waited() is not None:
                termination.end_if_received()

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Keep what a run must have in common with the one that it resumes."""
        checkpoint["course"] = self._course

    def state_dict(self) -> dict[str, Any]:
        """Which epoch was the best, and whether the training has ended."""
        return {**super().state_dict(), "ended_for": self._ended_for}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a run, whose folder may have moved."""
        best = str(self._last.with_name("best.ckpt"))
        here = {
            "dirpath": self.dirpath,
            "last_model_path": str(self._last),
            "best_model_path": best if state_dict["best_model_path"] else "",
            "kth_best_model_path": best if state_dict["kth_best_model_path"] else "",
            "best_k_models": dict.fromkeys([best], *state_dict["best_k_models"].values())
            if state_dict["best_k_models"]
            else {},
        }
        super().load_state_dict({**state_dict, **here})
        self._ended_for = state_dict["ended_for"]
