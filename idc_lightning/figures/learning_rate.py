"""The curve of a learning rate range test, with the bounds that it proposes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from idc_lightning.figures.style import HEALTHY, IDC, SPLIT_COLOURS, Picture, drawing

RAW = SPLIT_COLOURS["train"]


def draw_range_test(
    path: Path,
    curve: pd.DataFrame,
    *,
    ramp: Literal["linear", "exponential"],
    bounds: tuple[float, float] | None,
) -> Picture:
    """Draw the notebook's three figures of its search, side by side.

    Args:
        path: The PNG file.
        curve: Columns step, lr, loss and smoothed; the last losses may be huge or not finite.
        ramp: How the rate rose.
        bounds: Base and highest rate that are proposed, if any.
    """
    top, cut = _top(curve)
    with drawing(path, 13, 4.4, columns=3) as (figure, (rising, over_steps, over_rates)):
        rising.plot(curve["step"], curve["lr"], color=HEALTHY)
        rising.set(title="The rate of each step", xlabel="step", ylabel="learning rate")
        if ramp == "exponential":
            rising.set_yscale("log")
            _plain(rising, "y")
        _losses(over_steps, curve, "step", top)
        over_steps.set(title="Loss over the steps", xlabel="step")
        _losses(over_rates, curve, "lr", top)
        over_rates.set(title="Loss over the rate", xlabel="learning rate", xscale="log")
        _plain(over_rates, "x")
        if bounds is not None:
            steps = curve["step"].to_numpy()[np.searchsorted(curve["lr"], bounds).clip(0)]
            for axes, places in ((rising, steps), (over_steps, steps), (over_rates, bounds)):
                _mark(axes, places, bounds)
        handles, labels = over_rates.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return Picture(path, "Learning rate range test", _caption(bounds, cut=cut), wide=True)


def _top(curve: pd.DataFrame) -> tuple[float, bool]:
    """The highest loss that is shown, and whether higher ones are cut off."""
    finite = curve["loss"][np.isfinite(curve["loss"])]
    if finite.empty:
        return 1.0, True
    begin = finite.iloc[:10]
    fall = max(0.0, float(begin.median() - curve["smoothed"].min()))
    wanted = max(float(begin.max()), float(begin.median()) + 1.5 * fall)
    highest = float(finite.max())
    cut = fall > 0 and (highest > wanted or len(finite) < len(curve))
    return (wanted if cut else highest), cut


def _losses(axes: Axes, curve: pd.DataFrame, along: str, top: float) -> None:
    axes.plot(curve[along], curve["loss"], color=RAW, alpha=0.7, linewidth=0.8, label="batch")
    axes.plot(curve[along], curve["smoothed"], color="black", linewidth=1.6, label="smoothed")
    lowest = curve["loss"][np.isfinite(curve["loss"])].min()
    bottom = 0.0 if np.isnan(lowest) else float(lowest)
    room = 0.04 * max(top - bottom, 1e-9)
    axes.set(ylim=(bottom - room, top + room), ylabel="weighted cross-entropy")


def _mark(axes: Axes, places: Sequence[float], bounds: tuple[float, float]) -> None:
    base, highest = places
    axes.axvline(base, color=SPLIT_COLOURS["test"], linestyle="--", label=f"base {bounds[0]:.3g}")
    axes.axvline(highest, color=IDC, linestyle="-.", label=f"max {bounds[1]:.3g}")


def _plain(axes: Axes, which: Literal["x", "y"]) -> None:
    """Write the powers of a logarithmic axis as they are typed."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _caption(bounds: tuple[float, float] | None, *, cut: bool) -> str:
    """What to look for."""
    found = (
        "The base (dashed) should stand where the smoothed loss begins to fall, the maximum (dash "
        "and dot) at its lowest point, before it turns up."
        if bounds is not None
        else "No bounds are proposed: look for a stretch in which the smoothed loss falls."
    )
    above = " Losses of the divergence above the frame are cut off." if cut else ""
    lag = "The smoothed curve lags a few steps behind the batches, from which the bounds are read."
    return f"{found} {lag}{above}"
