"""How good predictions are, over all patches of a split.

All functions take labelled predictions by the name of their split.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import NullFormatter
from scipy.special import expit, logit
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from idc_lightning.data.grid import CLASSES
from idc_lightning.decision import Decision
from idc_lightning.figures.style import (
    CLASS_COLOURS,
    GREY,
    HEALTHY,
    MARKERS,
    SPLIT_COLOURS,
    Picture,
    drawing,
    text_colour,
)
from idc_lightning.results.bootstrap import pooled_metrics
from idc_lightning.results.calibration import (
    BINS,
    brier_score,
    expected_calibration_error,
    reliability,
)

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Predictions = Mapping[str, pd.DataFrame]

SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", HEALTHY])
HISTOGRAM_BINS = 40


def _arrays(predictions: pd.DataFrame) -> tuple[Labels, Floats]:
    """Labels and probabilities of a table."""
    true = predictions["true"].to_numpy(dtype=np.int64)
    return true, predictions["proba"].to_numpy(dtype=np.float64)


def draw_confusion(path: Path, predictions: Predictions, *, threshold: float) -> Picture:
    """Draw a confusion matrix for each split: patches, and their share of the true class.

    Args:
        path: The PNG file.
        predictions: Labelled predictions by split.
        threshold: Probability from which a patch counts as IDC.

    Raises:
        IDCError: If the file can't be written.
    """
    splits = len(predictions)
    with drawing(path, 3.9 * splits, 4.1, columns=splits) as (_, panels):
        for axes, (split, table) in zip(panels, predictions.items(), strict=True):
            true, proba = _arrays(table)
            counts = confusion_matrix(true, proba >= threshold, labels=[0, 1])
            _draw_matrix(axes, counts.astype(np.float64))
            axes.set_title(split)
    caption = (
        f"Patches at threshold {threshold:.3f}. The shares of a row add up to 100 %: at its upper "
        "left the specificity, at its lower right the recall. Lower left: IDC that was missed; "
        "upper right: healthy tissue that was called IDC."
    )
    return Picture(path, "Confusion matrix", caption, wide=splits > 2)


def _draw_matrix(axes: Axes, counts: Floats) -> None:
    """Counts [2, 2], true class by predicted class."""
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = text_colour(SHARES(float(share)))
        shown = f"{share:.1%}" if total[row, 0] else "none"
        axes.text(column, row, shown, ha="center", va="bottom", size=17, color=colour)
        number = f"{counts[row, column]:,.0f}"
        axes.text(column, row + 0.06, number, ha="center", va="top", size=11, color=colour)
    axes.set_xticks([0, 1], CLASSES)
    axes.set_yticks([0, 1], CLASSES, rotation=90, va="center")
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)


def draw_ranking(path: Path, predictions: Predictions, *, threshold: float) -> Picture:
    """Draw the ROC and the precision-recall curves with the operating points.

    Args:
        path: The PNG file.
        predictions: Labelled predictions by split.
        threshold: Probability from which a patch counts as IDC.

    Raises:
        IDCError: If the file can't be written.
    """
    with drawing(path, 9.6, 5.0 + 0.2 * max(2, len(predictions)), columns=2) as (_, (roc, pr)):
        roc.plot([0, 1], [0, 1], color=GREY, ls=":")
        for split, table in predictions.items():
            _draw_ranking(roc, pr, split, *_arrays(table), threshold)
        roc.set(
            title="ROC",
            xlabel="1 - specificity (healthy called IDC)",
            ylabel="recall (IDC found)",
        )
        pr.set(
            title="Precision-recall",
            xlabel="recall (IDC found)",
            ylabel="precision (called IDC and is)",
        )
        for axes in (roc, pr):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.plot([], [], "o", color=GREY, mec="black", label=f"threshold {threshold:.3f}")
            axes.plot([], [], color=GREY, ls=":", label="guessing")
            axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.14), borderaxespad=0.0, ncols=2)
    caption = (
        "Each point of a curve is a threshold; the nearer to the corner (ROC: upper left; "
        "precision-recall: upper right) the better. "
        "Marks: the threshold in use. Dotted: what guessing reaches; for precision that is the "
        "share of IDC, so that precision and average precision (AP) can't be compared between "
        "splits of different shares."
    )
    return Picture(path, "ROC and precision-recall", caption, wide=True)


def _draw_ranking(
    roc: Axes, pr: Axes, split: str, true: Labels, proba: Floats, threshold: float
) -> None:
    if len(np.unique(true)) < 2:
        for axes in (roc, pr):
            axes.plot([], [], color=SPLIT_COLOURS[split], label=f"{split}: one class only")
        return
    metrics = pooled_metrics(true, proba, threshold=threshold)
    colour = SPLIT_COLOURS[split]
    fall_out, recall, _ = roc_curve(true, proba)
    roc.plot(fall_out, recall, color=colour, label=f"{split}: AUROC {metrics['auroc']:.3f}")
    _operating_point(roc, split, 1 - metrics["specificity"], metrics["recall"])
    precision, recall, _ = precision_recall_curve(true, proba, drop_intermediate=True)
    share = true.mean()
    # The last point is no threshold's; at 1, as the convention has it, it would draw a spike.
    precision[-1] = precision[-2]
    pr.plot(
        recall,
        precision,
        color=colour,
        drawstyle="steps-post",
        label=f"{split}: AP {metrics['average_precision']:.3f}, {share:.1%} IDC",
    )
    pr.axhline(share, color=colour, ls=":")
    if not np.isnan(metrics["precision"]):
        _operating_point(pr, split, metrics["recall"], metrics["precision"])


def _operating_point(axes: Axes, split: str, x: float, y: float) -> None:
    axes.plot(
        [x],
        [y],
        marker=MARKERS[split],
        markersize=9,
        color=SPLIT_COLOURS[split],
        markeredgecolor="black",
        clip_on=False,
        zorder=4,
    )


def draw_probabilities(path: Path, predictions: Predictions, *, threshold: float) -> Picture:
    """Draw histograms of the probability of IDC by class, one panel for each split.

    Args:
        path: The PNG file.
        predictions: Labelled predictions by split.
        threshold: Probability from which a patch counts as IDC.

    Raises:
        IDCError: If the file can't be written.
    """
    splits = len(predictions)
    with drawing(path, 8.0, 0.6 + 2.6 * splits, rows=splits) as (_, panels):
        for axes, (split, table) in zip(panels, predictions.items(), strict=True):
            _draw_histograms(axes, *_arrays(table), threshold)
            axes.set_title(split)
            axes.set_xlabel("probability of IDC")
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    caption = (
        "How many of the healthy and of the IDC patches got which probability; each class adds up "
        "to 100 %, and the axis is logarithmic, so that few patches are seen as well. The less the "
        "two overlap, the better. Healthy patches right of the threshold and IDC patches left of "
        "it are wrong; those at the far ends are wrong with confidence."
    )
    return Picture(path, "Probabilities by class", caption)


def _draw_histograms(axes: Axes, true: Labels, proba: Floats, threshold: float) -> None:
    bins = np.linspace(0, 1, HISTOGRAM_BINS + 1).tolist()
    for label, (name, colour) in enumerate(zip(CLASSES, CLASS_COLOURS, strict=True)):
        chosen = proba[true == label]
        if len(chosen):
            each = np.full(len(chosen), 1 / len(chosen))
            axes.hist(chosen, bins, weights=each, color=colour, alpha=0.25)
            axes.hist(chosen, bins, weights=each, color=colour, histtype="step", lw=1.6)
        axes.plot([], [], color=colour, lw=5, label=f"{name}: {len(chosen):,}")
    axes.axvline(threshold, color="black", ls="--", lw=1.2, label=f"threshold {threshold:.3f}")
    _log_axis(axes, lambda share, _: f"{100 * share:g}%")
    axes.set(xlim=(0, 1), ylim=(min(0.5 / len(true), 0.008), 1.5), ylabel="share of the class")


def _log_axis(axes: Axes, label: Callable[[float, float], str]) -> None:
    """Make the y axis logarithmic, with labels at powers of ten only."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(label)
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_reliability(path: Path, predictions: Predictions, decision: Decision) -> Picture:
    """Draw observed share of IDC against probability, before and after calibration.

    Args:
        path: The PNG file.
        predictions: Labelled predictions by split; their probabilities are those after it.
        decision: By which the predictions were made.

    Raises:
        IDCError: If the file can't be written.
    """
    splits = len(predictions)
    with drawing(path, 4.3 * splits, 6.4, rows=2, columns=splits) as (_, panels):
        grid = panels[0].get_gridspec()
        grid.set_height_ratios([3.2, 1])  # type: ignore[union-attr]
        for column, (split, table) in enumerate(predictions.items()):
            true, proba = _arrays(table)
            _draw_reliability(panels[column], split, true, proba, decision)
            _draw_patches_by_bin(panels[splits + column], split, proba)
    caption = (
        "On the diagonal a probability means what it says: of patches with 0.7, 70 % are IDC. "
        "Below it probabilities of IDC are too high, above too low. Brier score and expected "
        f"calibration error (ECE, over {BINS} bins): lower is better. The bars below say how many "
        "patches a point stands for."
    )
    if decision.calibrates:
        caption += (
            f" Before and after the temperature {decision.temperature:.2f} and the bias "
            f"{decision.bias:+.2f}, which were fitted on dev."
        )
    return Picture(path, "Reliability of probabilities", caption, wide=splits > 1)


def _draw_reliability(
    axes: Axes, split: str, true: Labels, proba: Floats, decision: Decision
) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, ls=":")
    raw = expit((logit(proba) - decision.bias) * decision.temperature)
    before = {"color": GREY, "marker": "o", "mfc": "white", "ls": "--", "lw": 1.0, "ms": 5.0}
    after = {"color": SPLIT_COLOURS[split], "marker": "o", "lw": 1.8, "ms": 6.0}
    if decision.calibrates:
        _draw_points(axes, "before", true, raw, before)
    _draw_points(axes, "after" if decision.calibrates else split, true, proba, after)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share that is IDC")
    axes.legend(
        title=split,
        title_fontsize=11,
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0.0, 1.02),
        borderaxespad=0.0,
    )


def _draw_points(
    axes: Axes, name: str, true: Labels, proba: Floats, style: Mapping[str, Any]
) -> None:
    points = reliability(true, proba)
    error = expected_calibration_error(true, proba)
    label = f"{name}: Brier {brier_score(true, proba):.3f}, ECE {error:.3f}"
    axes.plot(points["proba"], points["observed"], label=label, **style)


def _draw_patches_by_bin(axes: Axes, split: str, proba: Floats) -> None:
    axes.hist(proba, np.linspace(0, 1, BINS + 1).tolist(), color=SPLIT_COLOURS[split], rwidth=0.9)
    _log_axis(axes, lambda number, _: f"{number:,.0f}")
    axes.set(xlim=(-0.02, 1.02), ylim=(0.7, max(2 * len(proba), 150)))
    axes.set(xlabel="probability of IDC", ylabel="patches")
