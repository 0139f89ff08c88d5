"""How a run learned: loss, learning rate and metrics of dev, from its metrics.csv."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from idc_lightning.errors import IDCError, listed
from idc_lightning.figures.style import SPLIT_COLOURS, Picture, drawing
from idc_lightning.metrics import better
from idc_lightning.results.summary import LABELS

DEV_METRICS = {
    "f1": ("#D55E00", "o"),
    "auroc": ("#0072B2", "s"),
    "balanced_accuracy": ("#009E73", "D"),
    "precision": ("#CC79A7", "^"),
    "recall": ("#56B4E9", "v"),
}
"""Metrics of dev that are drawn, each in a colour and with a marker of its own."""

SMOOTHED = 20
"""The smoothed loss is the mean over one of so many parts of the run."""

LAST = 2**53
"""No epoch or step has a larger number; up to here float64 holds whole numbers exactly."""

MARKER = 5.0
CROWDED = 40
"""Epochs from which on lines have no markers."""


@dataclass(frozen=True)
class Curves:
    """What was logged while a run learned.

    Attributes:
        epochs: One row for each epoch, by its number from 1: train, dev (losses) and the metrics of
            dev by their names.
        steps: One row for each logged step: step, loss, rate (of learning); NaN where one wasn't
            logged.
        monitor: The metric by which the best epoch was taken, such as ``"dev/f1"``.
        best: Number of the best epoch; None if the metric was never defined, or the log lacks
            epochs, one of which may have been better.
        test: Loss of the best epoch on test; None if test wasn't judged.
    """

    epochs: pd.DataFrame
    steps: pd.DataFrame
    monitor: str
    best: int | None
    test: float | None


def draw_training(log: Path, folder: Path, monitor: str) -> list[Picture]:
    """Draw all pictures of this module; of the rate there is none if no step was logged.

    Args:
        log: metrics.csv of Lightning's CSVLogger.
        folder: Where the PNG files are written.
        monitor: The metric by which the best epoch was taken, such as ``"dev/f1"``.

    Raises:
        IDCError: If the log can't be read, is none or holds no epoch, or the files can't be
            written.
    """
    curves = read_curves(log, monitor=monitor)
    pictures = [draw_losses(folder / "loss.png", curves)]
    if curves.steps["rate"].notna().any():
        pictures.append(draw_rate(folder / "learning_rate.png", curves))
    return [*pictures, draw_dev_metrics(folder / "dev_metrics.png", curves)]


def read_curves(path: Path, *, monitor: str) -> Curves:
    """Read the log of a run.

    Args:
        path: metrics.csv of Lightning's CSVLogger.
        monitor: The metric by which the best epoch was taken, such as ``"dev/f1"``.

    Raises:
        IDCError: If it can't be read, is no such log or holds no epoch.
    """
    log = _read_log(path, monitor)
    names = {"train/loss_epoch": "train", "dev/loss": "dev"}
    names |= {f"dev/{name}": name for name in LABELS}
    log["epoch"] += 1
    epochs = _last_of(log, "epoch", names)
    if epochs["dev"].isna().all():
        raise IDCError(f"{path} holds no epoch of a run in which dev was judged")
    rates = [name for name in log.columns if name.startswith("lr-")]
    log["rate"] = log[rates].bfill(axis=1).iloc[:, 0] if rates else float("nan")
    if "train/loss" not in log:  # a run of fewer steps than lie between two that are logged
        log["train/loss"] = float("nan")
    steps = _last_of(log, "step", {"train/loss": "loss", "rate": "rate"}).reset_index()
    test = log["test/loss"].dropna() if "test/loss" in log else pd.Series(dtype=float)
    return Curves(
        epochs=epochs,
        steps=steps,
        monitor=monitor,
        best=_best_epoch(epochs[names[monitor]], monitor),
        test=float(test.iloc[-1]) if len(test) else None,
    )


def _read_log(path: Path, monitor: str) -> pd.DataFrame:
    """The columns that are drawn, float64; epochs and steps are whole or NaN."""
    try:
        log = pd.read_csv(path, low_memory=False)
    except OSError as error:
        raise IDCError(f"can't read {path}: {error.strerror}") from error
    except ValueError as error:  # also of pandas, over several lines
        raise IDCError(f"{path} is no log of a run: {' '.join(str(error).split())}") from error
    needed = ["epoch", "step", "train/loss_epoch", "dev/loss", monitor]
    needed += [f"dev/{name}" for name in DEV_METRICS]
    lacks = [name for name in dict.fromkeys(needed) if name not in log]
    if lacks:
        raise IDCError(f"{path} is no log of a run that learned: it has no {listed(lacks)}")
    if not isinstance(log.index, pd.RangeIndex):  # what pandas makes of a surplus of values
        raise IDCError(f"{path} is damaged: its rows have more values than its header names")
    return pd.DataFrame(
        {name: _numbers(path, log[name]) for name in log if _is_drawn(str(name), needed)}
    )


def _is_drawn(column: str, needed: list[str]) -> bool:
    named = column in needed or column in ("train/loss", "test/loss")
    return named or column.startswith(("dev/", "lr-"))


def _numbers(path: Path, column: pd.Series) -> pd.Series:
    """A column as float64.

    Raises:
        IDCError: If it holds anything else, or an epoch or step that isn't a whole number.
    """
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    wrong = numbers.isna() & column.notna()
    if column.name in ("epoch", "step"):
        wrong |= numbers.notna() & ~(numbers.between(0, LAST) & (numbers % 1 == 0))
    if wrong.any():
        raise IDCError(
            f"{path} is damaged: {column.name} is {str(column[wrong].iloc[0])[:40]!r} in line "
            f"{int(wrong.argmax()) + 2}"
        )
    return numbers


def _last_of(log: pd.DataFrame, key: str, names: dict[str, str]) -> pd.DataFrame:
    """Join the rows of each epoch or step; of a value that was logged again, take the last one."""
    found = log[[key, *(name for name in names if name in log)]].rename(columns=names)
    found = found.groupby(key).last().dropna(how="all")
    found.index = found.index.astype(int)
    return found


def _best_epoch(values: pd.Series, monitor: str) -> int | None:
    """The first of the best epochs, which is the one that is kept."""
    defined = values.dropna()
    if defined.empty or values.index.tolist() != list(range(1, len(values) + 1)):
        return None
    best = defined.argmin() if better(monitor) == "min" else defined.argmax()
    return int(defined.index.to_numpy()[best])


def draw_losses(path: Path, curves: Curves) -> Picture:
    """Draw loss by epoch and, if any was logged, by step.

    Args:
        path: The PNG file.
        curves: What was logged.

    Raises:
        IDCError: If the file can't be written.
    """
    steps = curves.steps.dropna(subset="loss")
    smoothed = None
    rows = 1 if steps.empty else 2
    with drawing(path, 8.0, 3.5 * rows, rows=rows) as (_, (by_epoch, *below)):
        _draw_epoch_losses(by_epoch, curves)
        for by_step in below:
            smoothed = _draw_step_losses(by_step, steps)
    parts = ["Weighted cross-entropy; lower is better."]
    if len(curves.epochs) > 1:
        parts.append(
            "Train should fall and dev follow it. Where dev rises while train still falls, the "
            "network learns its train patients by heart."
        )
    parts.append("Train's is taken from augmented patches while the weights still changed.")
    if curves.test is not None:
        parts.append(
            "Test was judged once, after training and by all networks and views that judge "
            "together, so that it is a point and no curve."
        )
    if smoothed:
        parts.append(f"Thick line below: mean over {smoothed} logged batches.")
    return Picture(path, "Loss", " ".join(parts))


def _draw_epoch_losses(axes: Axes, curves: Curves) -> None:
    epochs = curves.epochs
    marker = _marker(epochs)
    for split in ("train", "dev"):
        axes.plot(
            epochs[split].dropna(),
            color=SPLIT_COLOURS[split],
            marker=marker,
            markersize=MARKER,
            label=split,
        )
    if curves.test is not None:
        axes.plot(
            [epochs.index[-1] if curves.best is None else curves.best],
            [curves.test],
            color=SPLIT_COLOURS["test"],
            marker="*",
            markersize=13,
            markeredgecolor="white",
            linestyle="none",
            label="test, once",
            zorder=3,
        )
    _mark_best(axes, curves)
    _epoch_axis(axes, epochs)
    axes.set(title="By epoch", ylabel="loss")
    _legend_beside(axes)


def _draw_step_losses(axes: Axes, steps: pd.DataFrame) -> int | None:
    """Draw the loss of logged batches; returns the width of the mean, None if none is drawn."""
    window = len(steps) // SMOOTHED
    colour = SPLIT_COLOURS["train"]
    single = "o" if len(steps) == 1 else "none"
    if window < 2:
        axes.plot(steps["step"], steps["loss"], color=colour, marker=single, label="batch")
    else:
        smooth = steps["loss"].rolling(window, center=True, min_periods=1).mean()
        axes.plot(steps["step"], steps["loss"], color=colour, alpha=0.5, lw=0.8, label="batch")
        axes.plot(steps["step"], smooth, color="#0072B2", lw=2, label=f"mean of {window}")
    _step_axis(axes)
    axes.set(title="By step, train", ylabel="loss")
    _legend_beside(axes)
    return window if window >= 2 else None


def draw_rate(path: Path, curves: Curves) -> Picture:
    """Draw the learning rate by step.

    Args:
        path: The PNG file.
        curves: What was logged.

    Raises:
        IDCError: If the file can't be written.
    """
    steps = curves.steps.dropna(subset="rate")
    with drawing(path, 8.0, 3.2) as (_, (axes,)):
        marker = "o" if len(steps) < CROWDED else "none"
        axes.plot(steps["step"], steps["rate"], color="#0072B2", marker=marker, markersize=3)
        axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
        axes.set_ylim(bottom=0)
        _step_axis(axes)
        axes.set(ylabel="learning rate")
    caption = (
        "The rate that the optimizer used, at the steps that were logged. It should have the shape "
        "of the configured scheduler; compare its peaks with unrest in the loss."
    )
    return Picture(path, "Learning rate", caption)


def draw_dev_metrics(path: Path, curves: Curves) -> Picture:
    """Draw metrics of dev by epoch.

    Args:
        path: The PNG file.
        curves: What was logged.

    Raises:
        IDCError: If the file can't be written.
    """
    epochs = curves.epochs
    with drawing(path, 8.0, 4.2) as (_, (axes,)):
        for name, (colour, marker) in DEV_METRICS.items():
            axes.plot(
                epochs[name].dropna(),
                color=colour,
                marker=marker if _marker(epochs) == "o" else "none",
                markersize=MARKER,
                label=LABELS[name],
            )
        _mark_best(axes, curves)
        _epoch_axis(axes, epochs)
        axes.set(ylabel="metric of dev")
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))
        _legend_beside(axes)
    caption = (
        "Patches of dev, called IDC from a probability of 0.5 on, by the network that learns, "
        "alone, before temperature and threshold were fitted. Precision and recall move against "
        "each other; AUROC doesn't depend on the threshold. If the best epoch is the "
        "last one, more epochs may help."
    )
    return Picture(path, "Metrics of dev by epoch", caption)


def _marker(epochs: pd.DataFrame) -> str:
    return "o" if len(epochs) < CROWDED else "none"


def _mark_best(axes: Axes, curves: Curves) -> None:
    """A dashed line at the best epoch, named in the legend."""
    if curves.best is None:
        return
    by = LABELS.get(curves.monitor.removeprefix("dev/"), "loss")
    label = f"best epoch: {curves.best},\nby {by} of dev"
    axes.axvline(curves.best, color="#555555", linestyle="--", lw=1, zorder=0, label=label)


def _epoch_axis(axes: Axes, epochs: pd.DataFrame) -> None:
    """Whole numbers, with room at both ends, so that a single epoch stands in the middle."""
    room = max(0.5, 0.02 * (epochs.index[-1] - epochs.index[0]))
    axes.set_xlim(epochs.index[0] - room, epochs.index[-1] + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _step_axis(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.set_xlabel("step (batches of train)")


def _legend_beside(axes: Axes) -> None:
    """Right of the axes, where it hides no curve."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
