from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

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
from idc_lightning.optim import Steps, build_optimizer, build_scheduler

SGD_CONFIG = SGDConfig(name="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.0005)
ADAMW_CONFIG = AdamWConfig(name="adamw", lr=0.001, betas=(0.8, 0.99), weight_decay=0.02)


def optimizer_of(config: AnyOptimizer = SGD_CONFIG) -> Optimizer:
    return build_optimizer([nn.Parameter(torch.zeros(1))], config)


def rates(
    scheduler: AnyScheduler, steps: Steps, count: int, config: AnyOptimizer = SGD_CONFIG
) -> list[float]:
    """The learning rate of each of the first steps, as the optimizer takes them."""
    optimizer = optimizer_of(config)
    stepped = build_scheduler(optimizer, scheduler, steps)
    taken = []
    for _ in range(count):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if stepped is not None:
            stepped.step()
    return taken


def cyclic(
    half_cycle: float, unit: str, cycle_momentum: tuple[float, float] | None = None
) -> CyclicConfig:
    values: dict[str, Any] = {"half_cycle": half_cycle, "unit": unit}
    values["cycle_momentum"] = cycle_momentum
    return CyclicConfig(name="cyclic", base_lr=1e-6, max_lr=0.006, **values)


def test_optimizers_take_their_values() -> None:
    sgd, adamw = optimizer_of(), optimizer_of(ADAMW_CONFIG)
    assert isinstance(sgd, SGD)
    assert isinstance(adamw, AdamW)
    wanted: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0005}
    assert wanted.items() <= sgd.param_groups[0].items()
    wanted = {"lr": 0.001, "betas": (0.8, 0.99), "weight_decay": 0.02}
    assert wanted.items() <= adamw.param_groups[0].items()


@pytest.mark.parametrize(
    ("half_cycle", "unit", "half"),
    [(1, "epochs", 20), (0.5, "epochs", 10), (2, "epochs", 40), (30, "steps", 30), (1, "steps", 1)],
)
@pytest.mark.parametrize("optimizer", [SGD_CONFIG, ADAMW_CONFIG])
def test_cyclic_reaches_its_bounds_at_each_half_cycle(
    half_cycle: float, unit: str, half: int, optimizer: AnyOptimizer
) -> None:
    taken = rates(cyclic(half_cycle, unit), Steps(200, 20), 6 * half + 1, optimizer)
    assert taken[::half] == pytest.approx([1e-6, 0.006] * 3 + [1e-6], rel=1e-6)
    assert min(taken) == pytest.approx(1e-6, rel=1e-6)
    assert max(taken) == pytest.approx(0.006, rel=1e-6)
    between = [1e-6 + step / half * (0.006 - 1e-6) for step in range(half + 1)]
    assert taken[: half + 1] == pytest.approx(between, rel=1e-6)
    assert taken[half : 2 * half + 1] == pytest.approx(between[::-1], rel=1e-6)


@pytest.mark.parametrize("config", [SGD_CONFIG, ADAMW_CONFIG])
def test_momentum_runs_against_the_rate_or_stays(config: AnyOptimizer) -> None:
    for wanted in (None, (0.7, 0.85)):
        optimizer = optimizer_of(config)
        scheduler = build_scheduler(optimizer, cyclic(10, "steps", wanted), Steps(40, 20))
        assert scheduler is not None
        taken = []
        for _ in range(21):
            group = optimizer.param_groups[0]
            taken.append(group["betas"][0] if "betas" in group else group["momentum"])
            optimizer.step()
            scheduler.step()
        own = 0.8 if config is ADAMW_CONFIG else 0.9
        expected = [own] * 3 if wanted is None else [0.85, 0.7, 0.85]
        assert taken[::10] == pytest.approx(expected)


def test_shortest_half_cycle_is_one_step() -> None:
    taken = rates(cyclic(0.001, "epochs"), Steps(20, 10), 4)
    assert taken == pytest.approx([1e-6, 0.006, 1e-6, 0.006], rel=1e-6)


@pytest.mark.parametrize(("warmup", "peak"), [(0.25, 9), (0.5, 19), (0.9, 35)])
def test_onecycle_peaks_at_the_end_of_the_warmup(warmup: float, peak: int) -> None:
    config = OneCycleConfig(name="onecycle", max_lr=0.05, warmup=warmup)
    taken = rates(config, Steps(40, 10), 40)
    assert taken.index(max(taken)) == peak == 40 * warmup - 1
    assert taken[peak] == pytest.approx(0.05)
    assert taken[: peak + 1] == sorted(taken[: peak + 1])
    assert taken[peak:] == sorted(taken[peak:], reverse=True)
    assert taken[0] == pytest.approx(0.05 / 25)
    assert taken[-1] < 0.05 / 1e4


@pytest.mark.parametrize("warmup", [0.001, 0.25, 0.999])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 1000])
def test_onecycle_survives_short_trainings_and_extreme_warmups(warmup: float, total: int) -> None:
    config = OneCycleConfig(name="onecycle", max_lr=0.05, warmup=warmup)
    taken = rates(config, Steps(total, total), total)
    assert all(0 < rate <= 0.05 for rate in taken)


def test_onecycle_keeps_momentum_and_betas() -> None:
    config = OneCycleConfig(name="onecycle", max_lr=0.05, warmup=0.25)
    for optimizer in (optimizer_of(), optimizer_of(ADAMW_CONFIG)):
        before = {k: v for k, v in optimizer.param_groups[0].items() if k in ("momentum", "betas")}
        scheduler = build_scheduler(optimizer, config, Steps(10, 10))
        assert scheduler is not None
        for _ in range(5):
            optimizer.step()
            scheduler.step()
        assert before
        assert before.items() <= optimizer.param_groups[0].items()


def test_cosine_falls_from_the_optimizers_rate_to_the_last_one() -> None:
    config = CosineConfig(name="cosine", min_lr=0.002)
    taken = rates(config, Steps(40, 10), 41)
    assert taken[0] == pytest.approx(0.01)
    assert taken[20] == pytest.approx(0.006)
    assert taken[40] == pytest.approx(0.002)
    assert taken == sorted(taken, reverse=True)


def test_none_keeps_the_rate() -> None:
    assert rates(ConstantConfig(name="none"), Steps(40, 10), 41) == [0.01] * 41
