"""What happens beside the training: curves, averaged weights, progress and its speed."""

import math
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ProgressBar, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle

from idc_lightning import ranks
from idc_lightning.data.batches import count_patches
from idc_lightning.models.network import PatchNetwork

SHOWN = {
    "train/loss_epoch": "train loss",
    "train/f1": "F1",
    "dev/loss": "dev loss",
    "dev/f1": "F1",
    "dev/auroc": "AUROC",
}
"""Metrics in a line of progress, and their names there."""


class Curves(Callback):
    """Logs loss and learning rate of every few steps, before a checkpoint of them is written.

    Lightning's own entries come after that, so that a run which is killed would have a gap; and of
    a block of steps they would show the last one only.
    """

    def __init__(self) -> None:
        self._rate = math.nan

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Keep the rate, which the scheduler changes with the step."""
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Log what falls on the step or on the block of steps."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        losses = outputs["losses"] if "losses" in outputs else outputs["loss"].reshape(1)
        rates = outputs.get("rates", [self._rate])
        name = f"lr-{type(trainer.optimizers[0]).__name__}"
        first = trainer.global_step - len(losses)
        due = [place for place in range(len(losses)) if (first + place + 1) % every == 0]
        for place in due:
            entry = {
                "train/loss": float(ranks.total(losses[place])) / ranks.world(),
                name: rates[place],
                "epoch": trainer.current_epoch,
            }
            for logger in trainer.loggers:
                logger.log_metrics(entry, step=first + place)


class SingleThreadHead(Callback):
    """Train the head on a frozen backbone by one thread; the backbone takes all of them.

    Threads that share out a step of a small head wait for each other about as long as they compute,
    and many times as long beside other work. Sums that are shared out also round otherwise, so that
    a head on stored features would learn other weights than one on images.
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._hooks: list[RemovableHandle] = []

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin with it, after what is computed for training."""
        network = pl_module.network
        assert isinstance(network, PatchNetwork)
        self._all = torch.get_num_threads()
        # An image is normalised first; a hook on the backbone itself would be compiled with it.
        self._hooks = [
            network.normalize.register_forward_pre_hook(
                lambda *_: torch.set_num_threads(self._all)
            ),
            network.head.register_forward_pre_hook(lambda *_: torch.set_num_threads(1)),
        ]
        torch.set_num_threads(1)

    def on_train_end(self, *_: Any) -> None:  # noqa: ANN401
        """Take as many threads as before."""
        self._restore()

    def on_exception(self, *_: Any) -> None:  # noqa: ANN401
        """Likewise, if training is stopped."""
        self._restore()

    def _restore(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        torch.set_num_threads(self._all)


class AveragedWeights(WeightAveraging):
    """Dev, test and checkpoints take a moving average of the weights, which varies less.

    B. Polyak and A. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J.
    Control Optim. 30, 1992. Statistics of BatchNorm are averaged along with the weights.

    Args:
        decay: Share of the average that a step keeps, 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        # `EMAWeightAveraging` would round a weight that doesn't learn; this leaves it as it is.
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(multi_avg_fn=average)

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Begin an average when training begins; else forget it.

        Lightning's own callback keeps it after training and would judge it in place of the best
        checkpoint, which holds an average already.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            self._average_model = None


class EpochLines(ProgressBar):
    """One line an epoch, for logs and pipes, where a bar would draw over itself."""

    def __init__(self) -> None:
        super().__init__()
        self._began: float | None = None

    def disable(self) -> None:
        """Nothing is drawn that could be switched off."""

    def enable(self) -> None:
        """Nothing is drawn that could be switched on."""

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Print the epoch before, whose metrics are complete only now, and start the clock."""
        if self._began is not None:
            self._print(trainer, self._began)
        self._began = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:  # noqa: ANN401
        """Start the clock in an epoch that a resumed run goes on with."""
        if self._began is None:
            self._began = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, *_: Any) -> None:  # noqa: ANN401
        """Print the last epoch."""
        if self._began is not None:
            self._print(trainer, self._began)

    def _print(self, trainer: lightning.Trainer, began: float) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [f"{label} {values[name]:.3f}" for name, label in SHOWN.items() if name in values]
        seconds = time.perf_counter() - began
        epoch = f"epoch {trainer.current_epoch}/{trainer.max_epochs}"
        if trainer.is_global_zero:  # torchrun shows what each process prints
            print(f"{epoch}  {'  '.join(shown)}  {seconds:.0f} s", flush=True)


class OfTraining(Callback):
    """A callback that goes on in a resumed training, with the state that its checkpoint holds.

    Lightning also gives callbacks the state of a checkpoint that is only to be judged, as the best
    one is after training, which would take them back to its epoch.
    """

    def on_load_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Take up the state in order to train."""
        state = checkpoint["callbacks"].get(self.state_key)
        if state is not None and trainer.state.fn == TrainerFn.FITTING:
            self.go_on(state)

    def go_on(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        raise NotImplementedError


class Throughput(OfTraining):
    """Patches a second in training, without the first batch, dev and checkpoints.

    Attributes:
        images: Patches counted.
        seconds: Time they took.
        elapsed_before: Seconds of the whole run before this process resumed it.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.elapsed_before = 0.0
        self._began = time.perf_counter()
        self._last: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """The rate, or None if there was a single batch only."""
        return self.images / self.seconds if self.seconds else None

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run so far."""
        return self.elapsed_before + time.perf_counter() - self._began

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
            self.images += count_patches(batch) * ranks.world()
            self.seconds += now - self._last
        self._last = now

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far."""
        return {"images": self.images, "seconds": self.seconds, "elapsed": self.elapsed}

    def go_on(self, state: dict[str, Any]) -> None:
        """As `OfTraining.go_on`."""
        self.images, self.seconds = state["images"], state["seconds"]
        self.elapsed_before = state["elapsed"]
