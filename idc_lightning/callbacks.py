"""What happens beside the training: lines of progress and the measure of its speed."""

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ProgressBar

SHOWN = {
    "train/loss_epoch": "train loss",
    "train/f1": "F1",
    "dev/loss": "dev loss",
    "dev/f1": "F1",
    "dev/auroc": "AUROC",
}
"""Metrics in a line of progress, and their names there."""


class EpochLines(ProgressBar):
    """One line an epoch, for logs and pipes, where a bar would draw over itself."""

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0

    def disable(self) -> None:
        """Nothing is drawn that could be switched off."""

    def enable(self) -> None:
        """Nothing is drawn that could be switched on."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Print the epoch before, whose metrics are complete only now, and start the clock."""
        if trainer.current_epoch > 0:
            self._print(trainer, trainer.current_epoch)
        self._began = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Print the last epoch."""
        self._print(trainer, trainer.current_epoch)

    def _print(self, trainer: lightning.Trainer, number: int) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [f"{label} {values[name]:.3f}" for name, label in SHOWN.items() if name in values]
        seconds = time.perf_counter() - self._began
        epoch = f"epoch {number}/{trainer.max_epochs}"
        print(f"{epoch}  {'  '.join(shown)}  {seconds:.0f} s", flush=True)


class Throughput(Callback):
    """Images a second in training, without the first batch, dev and checkpoints.

    Attributes:
        images: Images counted.
        seconds: Time they took.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._last: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """The rate, or None if there was a single batch only."""
        return self.images / self.seconds if self.seconds else None

    def on_train_epoch_start(self, *_: Any) -> None:  # noqa: ANN401
        """An epoch's first batch includes its set-up, so that it isn't timed."""
        self._last = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Count the batch and the time since the one before."""
        now = time.perf_counter()
        if self._last is not None:
            self.images += len(batch["image"])
            self.seconds += now - self._last
        self._last = now
