"""What a data set and its splits hold: patches per patient, shares of IDC, classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from idc_lightning.data.grid import CLASSES
from idc_lightning.data.split import NAMES
from idc_lightning.figures.style import CLASS_COLOURS, GREY, IDC, SPLIT_COLOURS, Picture, drawing

Floats = npt.NDArray[np.float64]

BARS = 20
"""Bars of a histogram, at most."""

GOLDEN = (5**0.5 - 1) / 2


def draw_overview(path: Path, patients: pd.DataFrame) -> Picture:
    """Draw patches per patient, share of IDC per patient, and patches of each class.

    Args:
        path: The PNG file.
        patients: One row for each patient, with patches, idc_patches and idc.

    Raises:
        IDCError: If the file can't be written.
    """
    patients = patients[patients["patches"] > 0]
    patches, shares = (patients[name].to_numpy(dtype=np.float64) for name in ("patches", "idc"))
    with drawing(path, 12, 4, columns=3) as (_, (sizes, idc, classes)):
        edges = MaxNLocator(BARS, integer=True).tick_values(0, max(float(patches.max()), 2.0))
        _histogram(sizes, patches, edges, GREY, f"median {np.median(patches):,.0f}")
        sizes.set(title="Patches per patient", xlabel="patches")
        sizes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        sizes.xaxis.set_major_formatter("{x:,.0f}")
        _histogram(
            idc,
            shares,
            np.linspace(0, 1, BARS + 1).tolist(),
            IDC,
            f"median {np.median(shares):.0%}",
        )
        idc.set(title="IDC share per patient", xlabel="IDC patches (share of the patient's)")
        idc.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        positive = int(patients["idc_patches"].sum())
        _class_bars(classes, np.array([patches.sum() - positive, positive]))
        classes.set(title="Patches of each class", ylabel="patches")
    return Picture(
        path,
        "What the data holds",
        "Look for patients with very little tissue, whose numbers mean little, and very much, who "
        "dominate all counts; and for tissue that is nearly all IDC, of which perhaps only the "
        "tumour was cut. Unequal classes are why F1 is used and class weights are set.",
        wide=True,
    )


def _histogram(axes: Axes, values: Floats, edges: Sequence[float], colour: str, label: str) -> None:
    axes.hist(values, edges, color=colour, edgecolor="white", linewidth=0.8)
    axes.axvline(float(np.median(values)), color="black", linestyle="--", linewidth=1.2)
    axes.annotate(
        label,
        (float(np.median(values)), 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2) if np.median(values) < edges[-1] / 2 else (-4, -2),
        textcoords="offset points",
        ha="left" if np.median(values) < edges[-1] / 2 else "right",
        va="top",
    )
    axes.margins(y=0.15)
    axes.set_ylabel("patients")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="x")


def _class_bars(axes: Axes, counts: Floats) -> None:
    """One bar for each class, with its number and share."""
    bars = axes.bar(CLASSES, counts, color=CLASS_COLOURS, width=0.65)
    axes.bar_label(bars, [f"{n:,.0f}\n{n / counts.sum():.1%}" for n in counts], padding=2)
    axes.margins(x=0.1, y=0.2)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="x")


def draw_splits(path: Path, patients: pd.DataFrame) -> Picture:
    """Draw what each split holds, by class and by patient.

    Args:
        path: The PNG file.
        patients: One row for each patient, with split, patches, idc_patches and idc; those
            without a split are left out.

    Raises:
        IDCError: If the file can't be written.
    """
    patients = patients[patients["split"].notna() & (patients["patches"] > 0)]
    whole = patients["idc_patches"].sum() / patients["patches"].sum()
    with drawing(path, 12.5, 4.6, columns=3) as (figure, (classes, idc, sizes)):
        _split_bars(classes, patients)
        classes.set(title="Patches of each class", ylabel="patches")
        _points(idc, patients, "idc")
        idc.axhline(whole, color=GREY, linestyle=":")
        idc.set(title="IDC share of each patient", ylabel="IDC patches (share of the patient's)")
        idc.set_ylim(-0.03, 1.03)
        idc.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _points(sizes, patients, "patches")
        sizes.axhline(patients["patches"].mean(), color=GREY, linestyle=":", label="all splits")
        sizes.set(title="Patches of each patient", ylabel="patches")
        sizes.set_ylim(0, 1.05 * patients["patches"].max())
        sizes.yaxis.set_major_formatter("{x:,.0f}")
        named = [axes.get_legend_handles_labels() for axes in (classes, sizes)]
        figure.legend(
            [handle for handles, _ in named for handle in handles],
            [name for _, names in named for name in names],
            loc="outside lower center",
            ncols=5,
        )
    return Picture(
        path,
        "What each split holds",
        "Each split should look like the others: points spread over the same range, black lines "
        "near the dotted one. The black line of the IDC share counts patches, so that patients "
        "with much tissue pull it. Where dev and test differ, their metrics can't be compared.",
        wide=True,
    )


def _split_bars(axes: Axes, patients: pd.DataFrame) -> None:
    """Two bars for each split, healthy beside IDC."""
    sums = patients.groupby("split")[["patches", "idc_patches"]].sum().reindex(NAMES, fill_value=0)
    counts = np.stack([sums["patches"] - sums["idc_patches"], sums["idc_patches"]])
    for target, numbers in enumerate(counts):
        bars = axes.bar(
            np.arange(len(NAMES)) + 0.4 * target - 0.2,
            numbers,
            width=0.38,
            color=CLASS_COLOURS[target],
            label=CLASSES[target],
        )
        labels = [
            f"{number:,.0f}\n{number / max(1, whole):.0%}"
            for number, whole in zip(numbers, sums["patches"], strict=True)
        ]
        axes.bar_label(bars, labels, padding=2, size=8.5)
    axes.set_xticks(range(len(NAMES)), NAMES)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="x")


def _points(axes: Axes, patients: pd.DataFrame, column: str) -> None:
    """One point for each patient, and a line for each split as a whole."""
    labels = []
    for place, name in enumerate(NAMES):
        rows = patients[patients["split"] == name].sort_values(column)
        values = rows[column].to_numpy(dtype=np.float64)
        # Neighbours in value stand far apart, without chance.
        beside = 0.55 * ((0.5 + GOLDEN * np.arange(len(values))) % 1 - 0.5)
        axes.plot(
            place + beside,
            values,
            "o",
            color=SPLIT_COLOURS[name],
            markeredgecolor="white",
            markeredgewidth=0.6,
            markersize=7 if len(patients) <= 100 else 5,
            label="a patient" if place == 0 else None,
        )
        labels.append(f"{name}\n{len(values)} patient{'s' * (len(values) != 1)}")
        if not len(values):
            continue
        mean = np.average(values, weights=rows["patches"] if column == "idc" else None)
        label = "the split as a whole" if place == 0 else None
        axes.plot([place - 0.4, place + 0.4], [mean, mean], color="black", label=label)
    axes.set_xticks(range(len(NAMES)), labels)
    axes.set_xlim(-0.5, len(NAMES) - 0.5)
    axes.grid(visible=False, axis="x")
