"""Learning rates of a range test, and the bounds that its curve of losses proposes.

L. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST = 10
"""Steps below which a curve says nothing."""

NEAR = 1.25
"""Losses at rates within this factor are averaged, as what matters of a rate is its magnitude."""

SIGMAS = 5.0
"""Standard errors by which the loss has to fall or rise to do so beyond its noise.

So many, since the lowest of many averages is compared: with 4, noise alone was taken for a fall in
one or two of a hundred curves.
"""

BACK = 1 / 3
"""Part of a fall that the loss has to rise again for its lowest point to be the end of the fall."""

TURN = 3.0
"""Standard errors by which the loss has to rise again after a fall to have turned up."""


@dataclass(frozen=True)
class Proposal:
    """Bounds that a curve proposes.

    Attributes:
        base_lr: The last rate before the loss starts to fall; None without a proposal.
        max_lr: The last rate before it turns up, above ``base_lr``; None without a proposal.
        note: What is doubtful, or why there is no proposal, with how to mend it; may be empty.
    """

    base_lr: float | None
    max_lr: float | None
    note: str = ""


def ramp_rates(start: float, end: float, kind: Literal["linear", "exponential"], n: int) -> Floats:
    """The rates of a test's steps, rising from start to end, float64 [n]."""
    return np.linspace(start, end, n) if kind == "linear" else np.geomspace(start, end, n)


def blend(last: float | None, loss: float, weight: float) -> float:
    """The next point of the notebook's smoothed curve.

    Args:
        last: The point before; None at the first step.
        loss: Of this step.
        weight: Of the new loss, above 0 to 1.
    """
    return loss if last is None else weight * loss + (1 - weight) * last


def propose_bounds(rates: npt.ArrayLike, losses: npt.ArrayLike) -> Proposal:
    """Read the bounds off a curve.

    Raw losses are averaged around each rate, without the lag of the smoothed curve. The highest
    bound is where this average is lowest before it first turns up. The base is the bend of the
    best fit of a level and then a falling line to the losses up to where four fifths of the fall
    are done.

    Args:
        rates: Of each step, rising, [n].
        losses: Of each step, raw, [n]; the last ones may be huge or not finite.
    """
    rate = np.asarray(rates, dtype=np.float64)
    raw = np.asarray(losses, dtype=np.float64)
    if int(np.isfinite(raw).sum()) < FEWEST:
        return _nothing(
            f"{len(raw)} steps are too few: set callbacks.lr_range_test.steps to 100 or more, or "
            "lower its start if the loss diverged"
        )
    loss = _capped(raw)
    first, last = _windows(rate)
    curve = _means(loss, first, last)
    uncapped = np.where(loss == raw, raw, np.nan)
    low, turned = _valley(curve, last - first, uncapped)
    noise = _noise(uncapped[: max(low + 1, 5 * FEWEST)])
    error = noise / np.sqrt(last[low] - first[low])
    fall, level = _height(loss[: first[low]], curve[low], error, noise)
    rise, _ = _height(loss[last[low] :][::-1], curve[low], error, noise)
    if fall <= SIGMAS:
        return _nothing(
            "the loss rose without having fallen: lower callbacks.lr_range_test.start"
            if rise > SIGMAS
            else "the loss did not fall beyond its noise: raise callbacks.lr_range_test.end or "
            "steps, or data.batch_size"
        )
    fallen = last[0] + int(np.argmax(curve[last[0] :] <= curve[low] + (level - curve[low]) / 5))
    base = _onset(loss[: fallen + 1])
    # What can't be told from the first step is the first.
    base = 0 if base <= last[0] else base
    note = "the loss had not turned up at the last rate: raise callbacks.lr_range_test.end"
    return Proposal(float(rate[base]), float(rate[low]), "" if turned or rise > TURN else note)


def _valley(curve: Floats, counts: Ints, uncapped: Floats) -> tuple[int, bool]:
    """The lowest point before the curve first turns up, which it may do only to fall once more.

    Args:
        curve: Averaged losses [n].
        counts: Losses that each of its points is the average of [n].
        uncapped: Single losses [n]; NaN where they were cut off.

    Returns:
        Its step, and whether the curve turned up clearly after it. Where it never does, the lowest
        of all.
    """
    low = 0
    for step in range(len(curve)):
        if curve[step] < curve[low]:
            low = step
            continue
        noise = _noise(uncapped[: max(low + 1, 5 * FEWEST)])
        clear = SIGMAS * noise * np.sqrt(1 / counts[low] + 1 / counts[step])
        fall, rise = curve[: low + 1].max() - curve[low], curve[step] - curve[low]
        if fall > clear and rise > max(clear, BACK * fall):
            return low, True
    return int(curve.argmin()), False


def _nothing(why: str) -> Proposal:
    return Proposal(None, None, why)


def _height(loss: Floats, low: float, error: float, noise: float) -> tuple[float, float]:
    """How clearly losses begin above the lowest point.

    Args:
        loss: Single losses, those farthest from the lowest point first, [n].
        low: The lowest point of the averaged curve.
        error: Its standard error.
        noise: Standard deviation of single losses.

    Returns:
        The height in standard errors, and the mean of the first losses that says it most clearly.
    """
    if len(loss) == 0:
        return 0.0, low
    number = np.arange(1, len(loss) + 1)
    means = np.cumsum(loss) / number
    heights = (means - low) / np.hypot(noise / np.sqrt(number), error)
    # One or two losses may be outliers.
    least = min(2, len(loss) - 1)
    best = least + int(heights[least:].argmax())
    return float(heights[best]), float(means[best])


def _windows(rate: Floats) -> tuple[Ints, Ints]:
    """For each step the first step, and the one after the last, that are averaged for it."""
    step = np.arange(len(rate))
    half = max(3, len(rate) // 60)
    first = np.minimum(np.searchsorted(rate, rate / NEAR), step - half)
    last = np.maximum(np.searchsorted(rate, rate * NEAR, side="right"), step + half + 1)
    return first.clip(0), last.clip(max=len(rate))


def _onset(loss: Floats) -> int:
    """The step from which losses fall: the bend of the best fit of a level and then a line."""
    step = np.arange(len(loss))
    bends = np.unique(np.linspace(0, max(0, len(loss) - 3), 200).astype(int))
    beyond = np.maximum(step - bends[:, None], 0).astype(np.float64)
    beyond -= beyond.mean(axis=1, keepdims=True)
    fit = beyond @ (loss - loss.mean())
    # What the fit explains of the variance, by least squares.
    explained = np.where(fit < 0, fit**2 / (beyond**2).sum(axis=1), 0.0)
    return int(bends[explained.argmax()])


def _means(loss: Floats, first: Ints, last: Ints) -> Floats:
    total = np.concatenate([[0.0], np.cumsum(loss)])
    means: Floats = (total[last] - total[first]) / (last - first)
    return means


def _noise(loss: Floats) -> float:
    """Standard deviation of single losses, from the differences of neighbours; NaN is left out."""
    steps = np.abs(np.diff(loss))
    steps = steps[np.isfinite(steps)]
    # 0.6745: the median of the absolute value of a standard normal variable.
    found = float(np.median(steps)) / (0.6745 * np.sqrt(2)) if len(steps) else 0.0
    # Losses are float32, so that even equal ones aren't exact.
    return max(found, 1e-6 * float(np.nanmax(np.abs(loss))), 1e-12)


def _capped(raw: Floats) -> Floats:
    """Losses cut off above, so that those of the divergence don't outweigh their neighbours."""
    loss = np.where(np.isfinite(raw), raw, raw[np.isfinite(raw)].max())
    starts = float(np.median(loss[:FEWEST]))
    groups = np.array_split(loss, len(loss) // FEWEST)
    lowest = min(float(np.median(group)) for group in groups)
    cap = starts + max(starts - lowest, 0.0) + 3 * _noise(loss[: 2 * FEWEST])
    return np.minimum(loss, cap)
