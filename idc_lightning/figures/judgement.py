"""How good predictions are: of all patches of a split, and patient by patient.

All functions take labelled predictions by the name of their split, or the tables of patients made
from them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox, BboxBase
from scipy.special import expit, logit
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from idc_lightning.data.grid import CLASSES, PATCH
from idc_lightning.figures.style import (
    CLASS_COLOURS,
    HEALTHY,
    SPLIT_COLOURS,
    Picture,
    drawing,
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

GREY = "#555555"
MARKERS = {"dev": "o", "test": "D", "new": "s"}
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", HEALTHY])
HISTOGRAM_BINS = 40
NAMED = 6
"""The worst patients, who are named in a scatter plot."""

CROWDED = 120
"""Patients from which on their marks are smaller."""

ROWS = 60
"""Patients in one column of a long list."""

LONG = 16
"""Letters of a patient's name that are shown."""


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
        colour = "white" if share > 0.8 else "black"
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


def draw_reliability(path: Path, predictions: Predictions, *, temperature: float) -> Picture:
    """Draw observed share of IDC against probability, before and after temperature.

    Args:
        path: The PNG file.
        predictions: Labelled predictions by split; their probabilities are those after it.
        temperature: What logits were divided by.

    Raises:
        IDCError: If the file can't be written.
    """
    splits = len(predictions)
    with drawing(path, 4.3 * splits, 6.4, rows=2, columns=splits) as (_, panels):
        grid = panels[0].get_gridspec()
        grid.set_height_ratios([3.2, 1])  # type: ignore[union-attr]
        for column, (split, table) in enumerate(predictions.items()):
            true, proba = _arrays(table)
            _draw_reliability(panels[column], split, true, proba, temperature)
            _draw_patches_by_bin(panels[splits + column], split, proba)
    caption = (
        "On the diagonal a probability means what it says: of patches with 0.7, 70 % are IDC. "
        "Below it probabilities of IDC are too high, above too low. Brier score and expected "
        f"calibration error (ECE, over {BINS} bins): lower is better. The bars below say how many "
        f"patches a point stands for. The temperature, {temperature:.2f}, was fitted on dev."
    )
    return Picture(path, "Reliability of probabilities", caption, wide=splits > 1)


def _draw_reliability(
    axes: Axes, split: str, true: Labels, proba: Floats, temperature: float
) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, ls=":")
    raw = expit(logit(proba) * temperature)
    before = {"color": GREY, "marker": "o", "mfc": "white", "ls": "--", "lw": 1.0, "ms": 5.0}
    after = {"color": SPLIT_COLOURS[split], "marker": "o", "lw": 1.8, "ms": 6.0}
    if temperature != 1:
        _draw_points(axes, "before", true, raw, before)
    _draw_points(axes, "after" if temperature != 1 else split, true, proba, after)
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


def draw_patients(
    path: Path, patients: Mapping[str, pd.DataFrame], *, microns_per_pixel: float
) -> Picture:
    """Draw each patient's share of correct patches against IDC share and tissue size.

    Args:
        path: The PNG file.
        patients: Tables of `patients_table` by split.
        microns_per_pixel: Width of a pixel in µm.

    Raises:
        IDCError: If the file can't be written.
    """
    joined = pd.concat(
        [table.assign(split=split) for split, table in patients.items()], ignore_index=True
    )
    with drawing(path, 11.0, 5.4, columns=2) as (figure, (by_idc, by_size)):
        by_idc.plot([0, 1], [1, 0], color=GREY, ls=":", label="all called healthy")
        _scatter(by_idc, joined, "idc")
        by_idc.set(xlim=(-0.02, 1.02), xlabel="IDC patches (share of the patient's)")
        by_idc.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        _scatter(by_size, joined, "patches")
        by_size.set_xlim(0, 1.1 * joined["patches"].max())
        by_size.set_xlabel("tissue (patches)")
        by_size.xaxis.set_major_formatter(lambda patches, _: f"{patches:,.0f}")
        _area_axis(by_size, (PATCH * microns_per_pixel / 1000) ** 2)
        low = max(0.0, np.floor(10 * joined["correct"].min() - 0.3) / 10)
        for axes in (by_idc, by_size):
            axes.set(ylim=(low, 1.02), ylabel="correct patches (share of the patient's)")
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
        handles, _ = by_idc.get_legend_handles_labels()
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        worst = joined.nsmallest(NAMED, "correct")
        _name_points(figure, by_idc, joined, worst, "idc", np.linspace([0, 1], [1, 0], 200))
        _name_points(figure, by_size, joined, worst, "patches", np.empty((0, 2)))
    caption = (
        "Each mark is a patient; the patients with the fewest correct patches are named. On or "
        "below the dotted line, calling all of the patient's tissue healthy would have been as "
        "good. Patients with little tissue vary more by chance."
    )
    return Picture(path, "Correct patches by patient", caption, wide=True)


def _area_axis(axes: Axes, square: float) -> None:
    """A second axis above one of patches, which have an area of ``square`` mm² each."""

    def area(patches: npt.ArrayLike) -> Floats:
        return np.asarray(patches, dtype=np.float64) * square

    def patches(area: npt.ArrayLike) -> Floats:
        return np.asarray(area, dtype=np.float64) / square

    axes.secondary_xaxis("top", functions=(area, patches)).set_xlabel("tissue (mm²)")


def _scatter(axes: Axes, joined: pd.DataFrame, x: str) -> None:
    size = 36 if len(joined) <= CROWDED else 20
    for split, rows in joined.groupby("split", sort=False):
        axes.scatter(
            rows[x],
            rows["correct"],
            s=size,
            color=SPLIT_COLOURS[str(split)],
            marker=MARKERS[str(split)],
            edgecolors="white",
            linewidths=0.6,
            label=f"{split} (n={len(rows)})",
            zorder=3,
        )


def _name_points(
    figure: Figure,
    axes: Axes,
    joined: pd.DataFrame,
    worst: pd.DataFrame,
    x: str,
    line: Floats,
) -> None:
    """Write the names of patients where they cover no mark, no other name and no line [n, 2]."""
    figure.draw_without_rendering()  # places the axes, so that pixels are known
    to_pixels = axes.transData.transform
    points = to_pixels(joined[[x, "correct"]].to_numpy(dtype=np.float64))
    marks = [Bbox.from_bounds(left - 5, low - 5, 10, 10) for left, low in points]
    marks += [Bbox.from_bounds(left, low, 1, 1) for left, low in to_pixels(line)]
    names: list[Bbox] = []
    for patient, *place in worst[["patient_id", x, "correct"]].itertuples(index=False, name=None):
        name = axes.annotate(
            shortened(str(patient)),
            (place[0], place[1]),
            xytext=(0, 0),
            textcoords="offset points",
            size=8,
            va="bottom",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 3},
            zorder=2,
        )
        # Only its size matters; the constrained layout would make room for it.
        name.set_in_layout(False)
        point = to_pixels(place)
        box = _free_place(axes.bbox, point, Text.get_window_extent(name), marks, names)
        if box is None:
            name.remove()
            continue
        left, low = (box.min - point) * 72 / figure.dpi
        name.set_position((left, low))
        names.append(name.get_window_extent())  # with the line to its mark


def _free_place(
    axes: BboxBase, point: Floats, size: Bbox, marks: Sequence[Bbox], names: Sequence[Bbox]
) -> Bbox | None:
    """The nearest box of this size beside a point, all in pixels, that is free; None without one.

    It stays inside the axes and touches neither marks nor names; the line to it crosses no name.
    """
    half = np.array([size.width, size.height]) / 2
    for distance in (8, 16, 26, 38, 52, 68):
        for angle in np.deg2rad([0, 180, -45, -135, 45, 135, 90, -90]):
            way = np.array([np.cos(angle), np.sin(angle)])
            low = point + way * distance + (way - 1) * half
            box = Bbox.from_bounds(low[0], low[1], size.width, size.height)
            corners = [(box.x0, box.y0), (box.x1, box.y1)]
            line = np.linspace(point, low + half, 20)
            if (
                all(axes.contains(x, y) for x, y in corners)
                and not box.padded(2).count_overlaps([*marks, *names])
                and not any(name.contains(x, y) for name in names for x, y in line)
            ):
                return box
    return None


def shortened(name: str) -> str:
    """A patient's name, cut where it would not fit."""
    return name if len(name) <= LONG else f"{name[: LONG - 1]}…"


def draw_patient_f1(path: Path, patients: Mapping[str, pd.DataFrame]) -> Picture:
    """Draw each patient's F1, worst first, in columns of `ROWS` patients.

    Args:
        path: The PNG file.
        patients: Tables of `patients_table` by split.

    Raises:
        IDCError: If the file can't be written.
    """
    joined = pd.concat([table.assign(split=split) for split, table in patients.items()])
    joined = joined.sort_values(["f1", "balanced_accuracy", "correct"], ignore_index=True)
    columns = -(-len(joined) // ROWS)
    rows = -(-len(joined) // columns)
    width = 7.0 if columns == 1 else 3.7 * columns
    with drawing(path, width, 1.3 + 0.2 * max(rows, 4), columns=columns) as (figure, panels):
        for number, axes in enumerate(panels):
            _draw_f1_column(axes, joined.iloc[number * rows : (number + 1) * rows], rows)
            for split, table in patients.items():
                axes.axvline(table["f1"].mean(), color=SPLIT_COLOURS[split], ls="--", lw=1)
        handles = [_split_handle(split, table) for split, table in patients.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=1 if columns == 1 else 3)
    without = int(joined["f1"].isna().sum())
    caption = (
        "Each patient's F1 (IDC), worst first; beside the name the share of IDC. Dashed: the mean "
        "over the patients of a split. A low F1 with little IDC is often a few patches; one with "
        "much IDC is a tumour that was missed."
    )
    if without:
        caption += f" F1 isn't defined for the {without} without IDC, who stand at the end."
    return Picture(path, "F1 by patient", caption, wide=columns > 1)


def _split_handle(split: str, table: pd.DataFrame) -> Line2D:
    mean = table["f1"].mean()
    shown = "no F1" if np.isnan(mean) else f"mean F1 {mean:.3f}"
    return Line2D(
        [],
        [],
        color=SPLIT_COLOURS[split],
        marker=MARKERS[split],
        ls="--",
        label=f"{split}, {shown}",
    )


def _draw_f1_column(axes: Axes, patients: pd.DataFrame, rows: int) -> None:
    names = []
    columns = ["patient_id", "split", "idc", "correct", "f1"]
    for place, (patient, split, idc, correct, f1) in enumerate(
        patients[columns].itertuples(index=False, name=None)
    ):
        names.append(f"{shortened(str(patient))}  {idc:.0%}")
        if np.isnan(f1):
            shown = f"no IDC; {correct:.0%} correct"
            axes.text(0.02, place, shown, va="center", size=8, color=GREY)
            continue
        colour = SPLIT_COLOURS[split]
        axes.plot([0, f1], [place, place], color=colour, lw=1, alpha=0.6)
        axes.plot([f1], [place], color=colour, marker=MARKERS[split], ms=5.5, clip_on=False)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(max(rows, 4) - 0.4, -0.6), xlabel="F1 (IDC)")
    axes.text(
        -0.015,
        1.0,
        "patient, IDC",
        size=8,
        color=GREY,
        ha="right",
        va="bottom",
        transform=axes.transAxes,
    )
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
