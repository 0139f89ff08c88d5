import math
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from idc_lightning.lr_bounds import FEWEST, Proposal, blend, propose_bounds, ramp_rates

Ramp = Literal["linear", "exponential"]
Floats = NDArray[np.float64]


def bent(rates: Floats, base: float, highest: float) -> Floats:
    """Level 1 up to the base, down to 0.5 at the highest rate, then up; along the log of rates."""
    down = np.clip(np.log(rates / base) / np.log(highest / base), 0, 1)
    up = np.maximum(np.log10(rates / highest), 0)
    return np.asarray(1 - 0.5 * down + 11 * up**2)


def learning(rates: Floats) -> Floats:
    """Falls from the first step, as fast as the rates are high, and turns up at about 0.006."""
    learnt = np.exp(-np.cumsum(rates) / (2e-5 * len(rates)))
    return np.asarray(0.45 + 0.3 * learnt + 0.3 * np.maximum(np.log(rates / 0.006), 0) ** 2)


def noisy(losses: Floats, noise: float, seed: int) -> Floats:
    return np.abs(losses + noise * np.random.default_rng(seed).standard_normal(len(losses)))


def found(proposal: Proposal) -> tuple[float, float]:
    assert proposal.base_lr is not None
    assert proposal.max_lr is not None
    return proposal.base_lr, proposal.max_lr


# Ramp and smoothing


def test_linear_ramp_rises_by_equal_steps() -> None:
    rates = ramp_rates(1e-6, 0.1, "linear", 50)
    assert (len(rates), rates[0], rates[-1]) == (50, 1e-6, 0.1)
    assert np.diff(rates) == pytest.approx((0.1 - 1e-6) / 49)


def test_exponential_ramp_rises_by_equal_factors() -> None:
    rates = ramp_rates(1e-6, 0.1, "exponential", 50)
    assert (len(rates), rates[0], rates[-1]) == (50, 1e-6, 0.1)
    assert rates[1:] / rates[:-1] == pytest.approx(1e5 ** (1 / 49))


def test_smoothing_is_the_notebooks() -> None:
    losses = [0.9, 0.7, 0.8, 0.2, 0.5]
    smoothed: list[float] = []
    for loss in losses:
        smoothed.append(blend(smoothed[-1] if smoothed else None, loss, 0.2))
    assert smoothed[:2] == [0.9, pytest.approx(0.2 * 0.7 + 0.8 * 0.9)]
    assert smoothed == pytest.approx(pd.Series(losses).ewm(alpha=0.2, adjust=False).mean().tolist())


# Bounds of curves whose bends are known


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("steps", "noise", "base_factor", "max_factor"),
    [(50, 0.025, 2, 2), (175, 0.1, 3, 2.5), (600, 0.2, 3.5, 2.5), (2000, 0.2, 2, 2.2)],
)
def test_bends_along_an_exponential_ramp(
    steps: int, noise: float, base_factor: float, max_factor: float, seed: int
) -> None:
    rates = ramp_rates(1e-6, 0.1, "exponential", steps)
    proposal = propose_bounds(rates, noisy(bent(rates, 1e-4, 1e-2), noise, seed))
    base, highest = found(proposal)
    assert 1 / base_factor < base / 1e-4 < base_factor
    assert 1 / max_factor < highest / 1e-2 < 1.3
    assert proposal.note == ""


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("steps", "noise", "max_factor"),
    [(50, 0.05, 1.5), (175, 0.1, 1.3), (600, 0.2, 1.3), (2000, 0.2, 1.3)],
)
def test_bends_along_a_linear_ramp(steps: int, noise: float, max_factor: float, seed: int) -> None:
    rates = ramp_rates(1e-6, 0.1, "linear", steps)
    base, highest = found(propose_bounds(rates, noisy(bent(rates, 8e-3, 5e-2), noise, seed)))
    # A base that can't be told from the first step is the first.
    assert base == rates[0] or 8e-3 / 4 < base < 8e-3 * 1.6
    assert 1 / max_factor < highest / 5e-2 < max_factor


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_a_loss_that_falls_from_the_first_step_on(noise: float, seed: int) -> None:
    rates = ramp_rates(1e-6, 0.1, "linear", 2000)
    base, highest = found(propose_bounds(rates, noisy(learning(rates), noise, seed)))
    assert base == 1e-6
    assert 0.006 / 1.8 < highest < 0.006 * 1.4


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
@pytest.mark.parametrize("tail", [[], [50.0], [5.0, 1e30], [math.inf], [3.0, math.nan]])
def test_a_divergence_does_not_move_the_bounds(ramp: Ramp, tail: list[float]) -> None:
    rates = ramp_rates(1e-4, 0.1, ramp, 150)
    losses = noisy(bent(rates, 5e-3, 3e-2), 0.05, 0)
    kept = int(np.searchsorted(rates, 4e-2))
    wanted = found(propose_bounds(rates[:kept], losses[:kept]))
    cut = kept + len(tail)
    bounds = found(propose_bounds(rates[:cut], [*losses[:kept], *tail]))
    assert bounds == pytest.approx(wanted, rel=0.15)


def test_the_scale_of_the_losses_does_not_matter() -> None:
    rates = ramp_rates(1e-6, 0.1, "exponential", 300)
    losses = noisy(bent(rates, 1e-4, 1e-2), 0.05, 0)
    assert propose_bounds(rates, 1000 * losses) == propose_bounds(rates, losses)


# Curves that are no help


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
@pytest.mark.parametrize(("steps", "seeds"), [(20, 50), (50, 50), (300, 50), (2000, 10)])
def test_noise_is_no_fall(ramp: Ramp, steps: int, seeds: int) -> None:
    rates = ramp_rates(1e-6, 0.1, ramp, steps)
    proposals = [propose_bounds(rates, noisy(np.ones(steps), 0.2, seed)) for seed in range(seeds)]
    assert all(p.base_lr is None and p.max_lr is None for p in proposals)
    told = "did not fall beyond its noise: raise callbacks.lr_range_test.end"
    assert sum(told in p.note for p in proposals) >= 0.9 * seeds


def test_a_constant_loss_does_not_fall() -> None:
    assert propose_bounds(ramp_rates(1e-6, 0.1, "linear", 50), [0.7] * 50).base_lr is None


def test_a_loss_that_only_rises_is_told() -> None:
    rates = ramp_rates(0.1, 10, "exponential", 100)
    proposal = propose_bounds(rates, noisy(np.linspace(1, 3, 100), 0.05, 0))
    assert proposal.max_lr is None
    assert "rose without having fallen: lower callbacks.lr_range_test.start" in proposal.note


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_a_loss_that_still_falls_at_the_end_is_told(ramp: Ramp) -> None:
    rates = ramp_rates(1e-6, 0.1, ramp, 300)
    losses = noisy(bent(rates, 1e-3, 1.0), 0.02, 0)
    proposal = propose_bounds(rates, losses)
    assert 0.06 < found(proposal)[1] <= 0.1
    assert "had not turned up at the last rate: raise callbacks.lr_range_test.end" in proposal.note


def test_few_steps_are_no_curve() -> None:
    rates = ramp_rates(1e-6, 0.1, "linear", FEWEST)
    losses = np.linspace(1, 0.1, FEWEST)
    short = propose_bounds(rates[:-1], losses[:-1])
    assert short.base_lr is None
    assert f"{FEWEST - 1} steps are too few: set callbacks.lr_range_test.steps" in short.note
    assert propose_bounds(rates, [*losses[:-1], math.nan]).base_lr is None


@settings(max_examples=200)
@given(
    losses=st.lists(st.floats(0, 1e6, width=32), min_size=FEWEST, max_size=120),
    last=st.sampled_from([0.0, 1.0, 3e38, math.inf, math.nan]),
    ramp=st.sampled_from(["linear", "exponential"]),
    end=st.sampled_from([1.1e-6, 0.1, 1e3]),
)
def test_any_curve_has_ordered_bounds_or_none(
    losses: list[float], last: float, ramp: Ramp, end: float
) -> None:
    rates = ramp_rates(1e-6, end, ramp, len(losses) + 1)
    proposal = propose_bounds(rates, [*losses, last])
    if proposal.base_lr is None:
        assert proposal.max_lr is None
        assert proposal.note
    else:
        base, highest = found(proposal)
        assert 1e-6 <= base < highest <= end * (1 + 1e-9)
        assert type(base) is type(highest) is float


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["linear", "exponential"])
def test_a_second_fall_does_not_count(kind: Literal["linear", "exponential"], seed: int) -> None:
    # After a high rate has thrown the net off, its loss may fall below that of the first valley.
    rates = ramp_rates(1e-5, 0.1, kind, 500)
    place = np.linspace(0, 1, 500)
    clean = np.interp(place, [0, 0.1, 0.3, 0.5, 0.9, 1], [1.5, 1.5, 0.7, 2.0, 0.5, 0.5])
    noise = np.random.default_rng(seed).normal(0, 0.15, 500)
    found = propose_bounds(rates, clean + noise)
    assert found.max_lr is not None
    assert rates[int(0.2 * 500)] < found.max_lr < rates[int(0.36 * 500)]
    assert found.note == ""
