"""The learning rate range test: steps at rising rates before training, all of them undone after.

L. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3; as in the
notebook, but the bounds that its curve proposes reach the scheduler.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from idc_lightning.classifier import IDCClassifier, inputs_of, judged_cells
from idc_lightning.config import LRRangeTestConfig
from idc_lightning.data.batches import Batch, split_block
from idc_lightning.figures.learning_rate import draw_range_test
from idc_lightning.figures.style import Picture
from idc_lightning.files import write_text
from idc_lightning.lr_bounds import blend, propose_bounds, ramp_rates
from idc_lightning.progress import watched

TABLE = "learning_rate_search.csv"
"""The curve, in the run folder."""


@dataclass(frozen=True)
class RangeTestResult:
    """What a range test found.

    Attributes:
        base_lr: Proposed lowest rate; None without a proposal.
        max_lr: Proposed highest rate, above ``base_lr``; None without a proposal.
        applied: Whether the run trains with them.
        note: What is doubtful, or why there is no proposal, with how to mend it; may be empty.
    """

    base_lr: float | None
    max_lr: float | None
    applied: bool
    note: str


class LRRangeTest(Callback):
    """Find the learning rate before the first step of training.

    The steps are those of the training: its batches, augmentation, precision, gradient clipping
    and processes. Afterwards weights, statistics and the state of all random numbers are what they
    were, and optimizer and scheduler are made anew; so a run that doesn't apply the proposal has
    the same weights as one without the test. Hooks of callbacks on gradients and optimizer steps
    are called in the test too.

    Writes ``learning_rate_search.csv`` (step, lr, loss, smoothed) and
    ``figures/learning_rate_search.png``. It must stand before callbacks that ask the scheduler
    for its rates when training starts.

    Args:
        config: How the rate rises, and whether the proposal is applied.
        folder: The run folder.
        bar: Whether a bar shows how far the test has come.

    Attributes:
        result: What was found, in this run or in the one that is resumed; None before.
        picture: The curve, in the first process; None before.
    """

    def __init__(self, config: LRRangeTestConfig, folder: Path, *, bar: bool) -> None:
        self.config = config
        self.folder = folder
        self.bar = bar
        self.result: RangeTestResult | None = None
        self.picture: Picture | None = None

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take what was found before a run was resumed, which may have nothing left to train."""
        assert isinstance(pl_module, IDCClassifier)
        if trainer.ckpt_path is None:
            return
        _say(trainer, "left out, since a resumed training keeps the rates of its checkpoint")
        if self.result is None:
            return
        if self.result.applied:
            _set_rates(trainer, pl_module, self.result)
        table = self.folder / TABLE
        if trainer.is_global_zero and table.is_file():
            self._draw(pd.read_csv(table), self.result)

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Make the test, write and print what it found, and apply it.

        Raises:
            IDCError: If its files can't be written, or the proposed rates don't fit the scheduler.
        """
        assert isinstance(pl_module, IDCClassifier)
        if trainer.ckpt_path is not None:
            return
        with _undone(trainer, pl_module):
            curve = self._search(trainer, pl_module)
        proposal = propose_bounds(curve["lr"], curve["loss"])
        applied = self.config.apply and proposal.max_lr is not None
        self.result = RangeTestResult(**asdict(proposal), applied=applied)
        if applied:
            _set_rates(trainer, pl_module, self.result)
        # Also without a proposal: the test has left its momentum.
        trainer.strategy.setup_optimizers(trainer)
        if trainer.is_global_zero:
            self._write(curve, self.result)
        _say(trainer, _line(self.result, pl_module))

    def _search(self, trainer: lightning.Trainer, module: IDCClassifier) -> pd.DataFrame:
        """Step at each rate until the last one or until the loss diverges, one row each."""
        config = self.config
        steps = config.steps or _steps_per_epoch(trainer, module)
        rates = ramp_rates(config.start, config.end, config.ramp, steps).tolist()
        if self.bar and trainer.is_global_zero:
            rates = watched(rates, "searching for the learning rate")
        rows: list[tuple[int, float, float, float]] = []
        smoothed, lowest = None, math.inf
        for rate, batch in zip(rates, _batches(trainer, module), strict=False):
            loss = _step(trainer, module, batch, rate)
            smoothed = blend(smoothed, loss, config.smoothing)
            rows.append((len(rows), rate, loss, smoothed))
            lowest = min(lowest, smoothed)
            if not math.isfinite(loss) or smoothed > config.stop_factor * lowest:
                break
        return pd.DataFrame(rows, columns=["step", "lr", "loss", "smoothed"])

    def _write(self, curve: pd.DataFrame, result: RangeTestResult) -> None:
        """Write table and picture."""
        text = curve.to_csv(index=False, float_format="%.9g", na_rep="nan", lineterminator="\n")
        write_text(self.folder / TABLE, text)
        self._draw(curve, result)

    def _draw(self, curve: pd.DataFrame, result: RangeTestResult) -> None:
        self.picture = draw_range_test(
            self.folder / "figures" / "learning_rate_search.png",
            curve,
            ramp=self.config.ramp,
            bounds=_bounds(result),
        )

    def state_dict(self) -> dict[str, Any]:
        """What was found, as plain values."""
        return {} if self.result is None else asdict(self.result)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what the run that is resumed has found."""
        if state_dict:
            self.result = RangeTestResult(**state_dict)


def _bounds(result: RangeTestResult) -> tuple[float, float] | None:
    if result.base_lr is None or result.max_lr is None:
        return None
    return result.base_lr, result.max_lr


@contextmanager
def _undone(trainer: lightning.Trainer, module: IDCClassifier) -> Iterator[None]:
    """Give weights, buffers, loss scale and random numbers their values back at the end."""
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    scale = dict(trainer.precision_plugin.state_dict())
    with isolate_rng():
        yield
    module.load_state_dict(weights)
    trainer.precision_plugin.load_state_dict(scale)
    module.zero_grad(set_to_none=True)


def _steps_per_epoch(trainer: lightning.Trainer, module: IDCClassifier) -> int:
    if module.automatic_optimization:
        return int(trainer.num_training_batches)
    return module.data.steps_per_epoch()


def _batches(trainer: lightning.Trainer, module: IDCClassifier) -> Iterator[Batch]:
    """The train batches of this process on its device, augmented, epoch after epoch.

    The loader is another one, since the trainer has begun to fetch from its own.
    """
    own = trainer.train_dataloader
    assert isinstance(own, DataLoader)
    loader = DataLoader(
        own.dataset,
        batch_sampler=own.batch_sampler,
        collate_fn=own.collate_fn,
        num_workers=own.num_workers,
        pin_memory=own.pin_memory,
    )
    # The trainer sets the epoch again when its own first one begins.
    sampler = getattr(own.batch_sampler, "sampler", None)
    set_epoch = getattr(sampler, "set_epoch", lambda epoch: None)
    for epoch in count(trainer.current_epoch):
        set_epoch(epoch)
        for batch in islice(loader, int(trainer.num_training_batches)):
            given = trainer.precision_plugin.convert_input(batch)
            yield from split_block(trainer.strategy.batch_to_device(given), module.data.batch_size)


def _step(trainer: lightning.Trainer, module: IDCClassifier, batch: Batch, rate: float) -> float:
    """Learn from a batch at a rate; returns its loss, the mean over all processes."""
    strategy, network = trainer.strategy, trainer.strategy.model
    assert network is not None
    (optimizer,) = trainer.optimizers
    for group in optimizer.param_groups:
        group["lr"] = rate

    def forward() -> Tensor:
        logits = network(**inputs_of(batch)).flatten(0, -2)
        return module.train_loss(logits, judged_cells(batch)[1])

    def closure() -> Tensor:
        optimizer.zero_grad()
        with trainer.precision_plugin.train_step_context():
            loss = forward()
        strategy.backward(loss, optimizer)
        losses.append(loss.detach())
        return loss

    losses: list[Tensor] = []
    if module.automatic_optimization:
        strategy.optimizer_step(optimizer, closure)
    else:
        losses.append(forward())
        module.descend(optimizer, losses[0])
    return float(strategy.reduce(losses[0].detach(), reduce_op="mean"))


def _set_rates(trainer: lightning.Trainer, module: IDCClassifier, result: RangeTestResult) -> None:
    """Give the rates to the module and to what the loggers say of it."""
    bounds = _bounds(result)
    assert bounds is not None
    module.set_rates(*bounds)
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(module.hparams))
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            # It writes them only where no such file is yet.
            Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
        logger.save()


def _say(trainer: lightning.Trainer, what: str) -> None:
    if trainer.is_global_zero:
        print(f"learning rate range test: {what}", flush=True)


def _line(result: RangeTestResult, module: IDCClassifier) -> str:
    """The proposal, and what becomes of it."""
    if result.base_lr is None:
        return f"no proposal, the configured rates stay: {result.note}"
    found = f"base {result.base_lr:.3g}, max {result.max_lr:.3g}"
    name = module.scheduler_config.name
    taker = {"cyclic": "both bounds of the cycle", "onecycle": "the maximum of the one cycle"}
    applied = (
        f"applied as {taker.get(name, 'the rate of the optimizer')}"
        if result.applied
        else "not applied (callbacks.lr_range_test.apply=false)"
    )
    return f"{found}, {applied}" + (f"; {result.note}" if result.note else "")
