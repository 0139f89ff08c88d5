"""Optimizers and learning-rate schedulers by name; each is one function, registered below."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LRScheduler, OneCycleLR

from idc_lightning.config import (
    AdamWConfig,
    AnyOptimizer,
    AnyScheduler,
    ConstantConfig,
    CosineConfig,
    CyclicConfig,
    OneCycleConfig,
    SGDConfig,
)


@dataclass(frozen=True)
class Steps:
    """How long the training is, in batches."""

    total: int
    per_epoch: int


def build_optimizer(parameters: Iterable[nn.Parameter], config: AnyOptimizer) -> Optimizer:
    """Make the optimizer of a configuration."""
    weights = list(parameters)
    # A CPU would pass each weight several times, where a GPU takes all of them together.
    fused = all(weight.device.type == "cpu" for weight in weights) or None
    return OPTIMIZERS[config.name](weights, config, fused)


def build_scheduler(optimizer: Optimizer, config: AnyScheduler, steps: Steps) -> LRScheduler | None:
    """Make the scheduler of a configuration, to be stepped with each batch; None is constant."""
    return SCHEDULERS[config.name](optimizer, config, steps)


def _sgd(weights: list[nn.Parameter], config: SGDConfig, fused: bool | None) -> Optimizer:
    return SGD(
        weights,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _adamw(weights: list[nn.Parameter], config: AdamWConfig, fused: bool | None) -> Optimizer:
    return AdamW(
        weights,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _cyclic(optimizer: Optimizer, config: CyclicConfig, steps: Steps) -> LRScheduler:
    """Triangular cycles (L. Smith, "Cyclical learning rates ...", WACV 2017)."""
    unit = steps.per_epoch if config.unit == "epochs" else 1
    lowest, highest = config.cycle_momentum or (0.0, 0.0)
    return CyclicLR(
        optimizer,
        base_lr=config.base_lr,
        max_lr=config.max_lr,
        step_size_up=max(1, round(config.half_cycle * unit)),
        mode="triangular",
        cycle_momentum=config.cycle_momentum is not None,
        base_momentum=lowest,
        max_momentum=highest,
    )


def _onecycle(optimizer: Optimizer, config: OneCycleConfig, steps: Steps) -> LRScheduler:
    """One cycle (L. Smith and N. Topin, "Super-convergence ...", 2018), momentum constant."""
    return OneCycleLR(
        optimizer,
        max_lr=config.max_lr,
        total_steps=max(2, steps.total),
        # OneCycleLR divides by zero if the warmup takes just one step.
        pct_start=max(config.warmup, 1.01 / max(2, steps.total)),
        cycle_momentum=False,
    )


def _cosine(optimizer: Optimizer, config: CosineConfig, steps: Steps) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=max(1, steps.total), eta_min=config.min_lr)


def _constant(optimizer: Optimizer, config: ConstantConfig, steps: Steps) -> None:
    return None


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], Any, bool | None], Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}

SCHEDULERS: dict[str, Callable[[Optimizer, Any, Steps], LRScheduler | None]] = {
    "cyclic": _cyclic,
    "onecycle": _onecycle,
    "cosine": _cosine,
    "none": _constant,
}
