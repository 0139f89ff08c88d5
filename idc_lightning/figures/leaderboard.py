"""Configurations of a sweep side by side: their ranking, and a metric against what was varied."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from idc_lightning.figures.style import (
    GREY,
    MARKERS,
    SPLIT_COLOURS,
    Picture,
    drawing,
    shortened,
)
from idc_lightning.results.leaderboard import LOWER, SPLITS, Configuration, Leaderboard
from idc_lightning.results.summary import LABELS

ROWS = 40
"""Configurations that are drawn, the best ones."""

COLUMNS = 3
"""Panels side by side."""

SIZE = 8
"""Of the letters of names, in points."""

WIDEST = 4.0
"""Inches that a name takes at most."""

TICKS = 7
"""Values that an axis names at most."""

SPREAD_OUT = 10
"""Ratio of the largest to the smallest of positive values from which their axis is logarithmic."""


def described(configuration: Configuration, board: Leaderboard) -> str:
    """What tells a configuration from the others, in one line; its name if nothing does."""
    values = [f"{board.short[key]}={written(value)}" for key, value in configuration.varied.items()]
    return ", ".join(values) or configuration.name


def written(value: object) -> str:
    """A value as it is typed in an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def draw_ranking(path: Path, board: Leaderboard) -> Picture:
    """Draw dev and test of each configuration with intervals, the best on top.

    Args:
        path: The PNG file.
        board: At least one configuration.

    Raises:
        IDCError: If the file can't be written.
    """
    shown = board.ranked[:ROWS]
    with drawing(path, 10.0, 1.4 + 0.36 * max(len(shown), 3)) as (_, (axes,)):
        for place, configuration in enumerate(shown):
            for shift, split in ((-0.14, "dev"), (0.14, "test")):
                _draw_interval(axes, configuration, split, board.metric, place + shift)
        names = [shortened(described(each, board), WIDEST, SIZE) for each in shown]
        axes.set_yticks(range(len(shown)), names, size=SIZE)
        axes.set(ylim=(max(len(shown), 3) - 0.4, -0.6), xlabel=LABELS[board.metric])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        handles = [_handle(split) for split in SPLITS]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(SPLITS))
    caption = (
        f"Each configuration with its {board.confidence:.0%} interval over patients, ranked by "
        "dev. The intervals are wide because patients differ, which all configurations share: "
        "whether two differ is said by the difference on the same patients, in the table."
    )
    if len(board.ranked) > ROWS:
        caption += f" The {len(board.ranked) - ROWS:,} others are in the table."
    return Picture(path, f"{LABELS[board.metric]} of the configurations", caption, wide=True)


def _draw_interval(
    axes: Axes, configuration: Configuration, split: str, metric: str, place: float
) -> None:
    interval, colour = configuration.metrics[split][metric], SPLIT_COLOURS[split]
    if interval.value is None:
        return
    if interval.low is not None and interval.high is not None:
        axes.plot([interval.low, interval.high], [place, place], color=colour, lw=1.6, alpha=0.6)
    axes.plot([interval.value], [place], color=colour, marker=MARKERS[split], ms=5.5)


def _handle(split: str) -> Line2D:
    return Line2D([], [], color=SPLIT_COLOURS[split], marker=MARKERS[split], label=split)


def draw_varied(path: Path, board: Leaderboard) -> Picture:
    """Draw the metric against each value that was varied, a panel for each.

    Args:
        path: The PNG file.
        board: At least one configuration and one varied key.

    Raises:
        IDCError: If the file can't be written.
    """
    columns = min(COLUMNS, len(board.varied))
    rows = math.ceil(len(board.varied) / columns)
    size = (max(4.2 * columns, 6.0), 0.5 + 3.3 * rows)
    with drawing(path, *size, rows=rows, columns=columns) as (figure, panels):
        for axes, key in zip(panels, board.varied, strict=False):
            _draw_key(axes, board, key)
        for axes in panels[len(board.varied) :]:
            axes.set_axis_off()
        figure.legend(
            handles=[_handle(split) for split in SPLITS],
            loc="outside upper left",
            ncols=len(SPLITS),
        )
    better = "lower" if board.metric in LOWER else "higher"
    caption = (
        f"Each mark is a configuration; lines join the means over the others' values ({better} is "
        "better). Marks that scatter more at one value than the line rises say that the value "
        "matters less than the others do."
    )
    return Picture(path, f"{LABELS[board.metric]} against each varied value", caption, wide=True)


def _draw_key(axes: Axes, board: Leaderboard, key: str) -> None:
    values = [configuration.varied[key] for configuration in board.ranked]
    places, ticks = _places(values)
    for shift, split in ((-1, "dev"), (1, "test")):
        found = np.array(
            [_number(each.metrics[split][board.metric].value) for each in board.ranked]
        )
        x = places + 0.04 * shift if ticks else places
        colour = SPLIT_COLOURS[split]
        axes.scatter(x, found, s=26, alpha=0.6, lw=0, color=colour, marker=MARKERS[split])
        levels = np.unique(places[np.isfinite(found)])
        means = [np.mean(found[(places == level) & np.isfinite(found)]) for level in levels]
        axes.plot(levels, means, color=colour, lw=1.4)
    if ticks:
        names = [shortened(name, 1.2, SIZE) for name in ticks]
        axes.set_xticks(range(len(ticks)), names, size=SIZE)
        axes.set_xlim(-0.5, len(ticks) - 0.5)
    else:
        if places.min() > 0 and places.max() >= SPREAD_OUT * places.min():
            axes.set_xscale("log")
        levels = np.unique(places)
        shown = levels[:: math.ceil(len(levels) / TICKS)]
        axes.set_xticks(shown, [f"{level:g}" for level in shown])
        axes.set_xticks([], minor=True)
        axes.margins(x=0.08)
    axes.set_xlabel(shortened(key, 3.4, 10))
    axes.set_ylabel(LABELS[board.metric])
    axes.tick_params(axis="x", colors=GREY)


def _places(values: Sequence[object]) -> tuple[np.ndarray, list[str]]:
    """Where values stand on an axis: numbers at themselves, others in a row under their names."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values) and not any(isinstance(value, bool) for value in values):
        return np.array(numbers, dtype=np.float64), []
    names = list(dict.fromkeys(map(written, values)))
    return np.array([names.index(written(value)) for value in values], dtype=np.float64), names


def _number(value: float | None) -> float:
    return math.nan if value is None else value
