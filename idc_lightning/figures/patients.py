"""How good predictions are, patient by patient.

All functions take the tables of patients by the name of their split.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from idc_lightning.data.grid import PATCH
from idc_lightning.figures.labels import name_points
from idc_lightning.figures.style import (
    GREY,
    MARKERS,
    SPLIT_COLOURS,
    Picture,
    drawing,
    shortened,
)

Floats = npt.NDArray[np.float64]

NAMED = 6
"""The worst patients, who are named in a scatter plot."""

CROWDED = 120
"""Patients from which on their marks are smaller."""

ROWS = 60
"""Patients in one column of a long list."""

SIZE = 8
"""Of the letters of a list, in points."""

WIDEST = 1.1
"""Inches that a name of the list takes at most."""


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
        names = worst["patient_id"].astype(str).tolist()
        all_healthy = np.linspace([0, 1], [1, 0], 200)
        for axes, x, line in (
            (by_idc, "idc", all_healthy),
            (by_size, "patches", np.empty((0, 2))),
        ):
            at, marks = (rows[[x, "correct"]].to_numpy(float) for rows in (worst, joined))
            name_points(figure, axes, names, at, marks, line)
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
        names.append(f"{shortened(str(patient), WIDEST, SIZE)}  {idc:.0%}")
        if np.isnan(f1):
            shown = f"no IDC; {correct:.0%} correct"
            axes.text(0.02, place, shown, va="center", size=SIZE, color=GREY)
            continue
        colour = SPLIT_COLOURS[split]
        axes.plot([0, f1], [place, place], color=colour, lw=1, alpha=0.6)
        axes.plot([f1], [place], color=colour, marker=MARKERS[split], ms=5.5, clip_on=False)
    axes.set_yticks(range(len(names)), names, size=SIZE)
    axes.set(xlim=(-0.02, 1.02), ylim=(max(rows, 4) - 0.4, -0.6), xlabel="F1 (IDC)")
    axes.text(
        -0.015,
        1.0,
        "patient, IDC",
        size=SIZE,
        color=GREY,
        ha="right",
        va="bottom",
        transform=axes.transAxes,
    )
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
