"""What is timed of this project: its data path, its train step, its predictions."""

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from idc_lightning.classifier import IDCClassifier, balanced_weights
from idc_lightning.conf_folder import conf_folder
from idc_lightning.config import Config, HardwareConfig, read_config
from idc_lightning.data.augment import augment
from idc_lightning.data.batches import Batch
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.grid import PATCH
from idc_lightning.inference import predict_logits
from idc_lightning.models.network import Normalize, PatchNetwork
from idc_lightning.models.small_maps import BLOCK
from idc_lightning.optim import build_optimizer
from idc_lightning.runs import Run
from idc_lightning.trainer import MIXED, build_trainer, resolve_precision

FLIPS = ("data.augment.turns=false", "data.augment.stain_jitter=0.0", "data.augment.brightness=0.0")
"""Overrides that leave what the notebook does to its images."""

WARM_UP = 2
"""Batches of a training before the clock starts."""


def configured(*overrides: str) -> Config:
    """What ``idc-train`` would be given with these overrides."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return read_config(compose("train", overrides=list(overrides)), Config)


def ready_data(config: Config) -> IDCDataModule:
    """The patches of a configuration, indexed, split and opened."""
    data = IDCDataModule(config.data, config.split, seed=config.seed, cache=config.cache)
    data.prepare_data()
    data.setup()
    return data


def augmented(data: IDCDataModule, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
    """Images float32 [B, 3, 50, 50] in 0 to 1 and labels int64 [B] of a train batch, changed."""
    image, label, _ = augment(
        batch["image"],
        batch["label"],
        batch["cell"],
        data.data.augment,
        seed=data.seed,
        epoch=epoch,
    )
    return image, label.flatten()


def load_train(data: IDCDataModule, seconds: float) -> int:
    """Make train batches as the network's first layer sees them, for some time.

    Args:
        data: Patches and their augmentation.
        seconds: At least so long, in whole epochs.

    Returns:
        Number of images.
    """
    normalize = Normalize()
    until = time.perf_counter() + seconds
    images = epoch = 0
    while time.perf_counter() < until:
        for batch in data.train_dataloader():
            image, _ = augmented(data, batch, epoch)
            normalize(image).contiguous(memory_format=torch.channels_last)
            images += len(image)
        epoch += 1
    return images


class Stopwatch(Checkpoint):
    """Times an epoch from its first batches to its metrics.

    It is a checkpoint to Lightning, whose hooks come after those of the module, so that the
    metrics of the epoch are within the time.

    Args:
        other: Another loop, of which a step is taken after each one: what else the machine does
            meets both alike. Its time is not that of the epoch.

    Attributes:
        images: Images that were learned from.
        seconds: What that took.
        steps: Seconds of each step.
        others: Seconds of each step of the other loop.
        first_step: When the first step had ended, as of `time.time`.
    """

    def __init__(self, other: Iterator[None] | None) -> None:
        self.other = other
        self.images = 0
        self.seconds = 0.0
        self.steps: list[float] = []
        self.others: list[float] = []
        self.first_step = 0.0
        self._began = 0.0
        self._since = 0.0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Count a batch; start the clock after those that warm up."""
        ended = time.perf_counter()
        if batch_idx == 0:
            self.first_step = time.time()
        if batch_idx >= WARM_UP:
            self.images += len(batch["cell"])
            self.steps.append(ended - self._since)
        self._since = ended
        if self.other is not None:
            next(self.other)
            self._since = time.perf_counter()
            if batch_idx >= WARM_UP:
                self.others.append(self._since - ended)
        if batch_idx == WARM_UP - 1:
            self._began = self._since

    def on_train_epoch_end(self, *_: object) -> None:
        """Stop the clock."""
        self.seconds = time.perf_counter() - self._began - sum(self.others)


def train_by_framework(
    config: Config,
    data: IDCDataModule,
    folder: Path,
    batches: int,
    other: Iterator[None] | None = None,
) -> Stopwatch:
    """Train for some batches as ``idc-train`` does, with its callbacks and loggers.

    Dev and checkpoints, which come once in an epoch, are left out.

    Args:
        config: Of one epoch and a net that learns whole, so that no features are needed.
        data: Its data.
        folder: Where its logs are written.
        batches: So many, beside those that warm up.
        other: As of `Stopwatch`.
    """
    trainer = build_trainer(config, folder, interactive=False)
    trainer.limit_train_batches, trainer.limit_val_batches = WARM_UP + batches, 0
    stopwatch = Stopwatch(other)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    others = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    trainer.callbacks = [*others, stopwatch]  # type: ignore[attr-defined]
    model = IDCClassifier(config.model, config.optimizer, config.scheduler)
    try:
        trainer.fit(model, datamodule=data)
    finally:
        # Lightning sets it for the whole process; others shall run as they would alone.
        torch.use_deterministic_algorithms(False)
    return stopwatch


def bare_steps(config: Config, data: IDCDataModule) -> Iterator[None]:
    """Train the same net in a loop of a few lines, with the same precision, optimizer and batches.

    Yields:
        After each step.
    """
    network = PatchNetwork(config.model.backbone, config.model.head)
    optimizer = build_optimizer(network.parameters(), config.optimizer)
    weights = balanced_weights(data.class_counts())
    dtype = MIXED.get(resolve_precision(config.trainer, "cpu"))
    for epoch in count():
        for batch in data.train_dataloader():
            image, label = augmented(data, batch, epoch)
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = cross_entropy(network(image).flatten(0, -2), label, weight=weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield


def untrained_run(config: Config, data: IDCDataModule) -> Run:
    """A run as `idc-predict` and `idc-evaluate` read it, whose network has its first weights."""
    return Run(
        checkpoint=Path("untrained"),
        folder=None,
        classifier=IDCClassifier(config.model, config.optimizer, config.scheduler).eval(),
        data=config.data,
        splits=data.splits,
        patches={},
        seen=data.ready.seen,
        seed=config.seed,
        monitor=config.callbacks.checkpoint.monitor,
        precision=resolve_precision(config.trainer, "cpu"),
    )


def predict(run: Run, data: IDCDataModule, splits: Sequence[str]) -> int:
    """Compute the logits of whole splits; returns the number of images."""
    hardware = HardwareConfig(accelerator="cpu", precision="auto")
    rows = [data.rows(split) for split in splits]
    for of_split in rows:
        predict_logits(run, data.store, of_split, hardware)
    return sum(map(len, rows))


def flops_per_image(network: PatchNetwork) -> int:
    """Floating-point operations of a forward pass, each multiplication and addition counted."""
    # Small maps are computed for so many images at least.
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(BLOCK, 3, PATCH, PATCH))
    return int(counter.get_total_flops()) // BLOCK
