"""Slides: tissue, labels, probabilities and errors on the grid that the patches were cut from.

All pictures have their axes in pixels of the slide (x to the right, y down, both from 1) and in mm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from idc_lightning.data.grid import PATCH, cell_map, tissue_image
from idc_lightning.figures.style import CLASS_COLOURS, HEAT, IDC, Picture, drawing, shortened

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]

TINT = 0.45
"""Share of colour in the overlay."""

SHARP = 900
"""Pixels of a slide's longer side that a picture can show; larger slides are reduced before."""

REDUCTIONS = (1, 2, 5, 10)
"""Divisors of a patch's width."""

LARGEST = 40_000
"""Cells of the largest slide that is drawn, 200 x 200; the public ones have some 4,000."""

MARGIN = 1.35
"""Inches of a picture's height that titles and axes take."""

ROUND = (1, 2, 5, 10)
"""Steps between the numbers of an axis, times a power of ten."""

HEADLINE = 12
"""Size of a patient's name above all panels, in points."""

MAPS_WIDTH = 11.5
"""Inches of a picture of many slides."""

MOST_COLUMNS = 5
"""Slides beside one another in it."""


@dataclass(frozen=True)
class Slide:
    """Cells of a patient.

    Attributes:
        patient_id: The patient.
        x: Columns of the upper left pixels, int64 [n], from 1.
        y: Rows of the upper left pixels, int64 [n], from 1.
        microns: Width of a pixel in µm.
    """

    patient_id: str
    x: Ints
    y: Ints
    microns: float

    @property
    def left(self) -> int:
        """Pixels left of the first cell."""
        return int(self.x.min()) - 1

    @property
    def top(self) -> int:
        """Pixels above the first cell."""
        return int(self.y.min()) - 1

    @property
    def width(self) -> int:
        """Width of the part that holds cells, in pixels."""
        return int(self.x.max()) - 1 + PATCH - self.left

    @property
    def height(self) -> int:
        """Height of the part that holds cells, in pixels."""
        return int(self.y.max()) - 1 + PATCH - self.top

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge in the slide's pixels, as matplotlib takes them."""
        right, bottom = self.left + self.width, self.top + self.height
        return self.left + 0.5, right + 0.5, bottom + 0.5, self.top + 0.5

    @property
    def drawable(self) -> bool:
        """Whether its cells lie near enough to one another to be put together to a picture."""
        return self.width * self.height <= LARGEST * PATCH**2

    def laid(self, values: npt.ArrayLike) -> Floats:
        """Values of the cells [n] on the grid of the part that holds cells; NaN where is none."""
        return cell_map(self.x - self.left, self.y - self.top, np.asarray(values, dtype=np.float64))

    def tissue(self, pixels: Pixels) -> Pixels:
        """Patches [n, 50, 50, 3] put together, reduced to what a picture can show."""
        image = tissue_image(self.x - self.left, self.y - self.top, pixels)
        # A divisor of the patch, so that no reduced pixel belongs to two patches.
        factor = next((f for f in REDUCTIONS if max(image.shape) <= f * SHARP), 10)
        return np.asarray(Image.fromarray(image).reduce(factor))


def draw_tissue_pair(
    path: Path,
    slide: Slide,
    pixels: Pixels,
    target: Ints,
) -> Picture:
    """Draw a patient's tissue, and beside it the same in grey with IDC in colour.

    Args:
        path: The PNG file.
        slide: Where the patches lie.
        pixels: Patches, uint8 [n, 50, 50, 3].
        target: Labels [n], 0 healthy, 1 IDC.
    """
    tissue = slide.tissue(pixels)
    idc = slide.laid(target) == 1
    with drawing(path, 11, _height(slide, 5.0), columns=2) as (figure, (plain, overlaid)):
        plain.imshow(tissue, extent=slide.extent)
        plain.set_title("Tissue")
        overlaid.imshow(tint(tissue, idc), extent=slide.extent)
        overlaid.add_collection(_outline(slide, idc, "black", 0.9))
        overlaid.set_title("IDC in colour, all else in grey")
        _frame([plain, overlaid], slide, 5.0)
        _headline(figure, slide)
    share = float(np.mean(target == 1))
    return Picture(
        path,
        f"Patient {slide.patient_id}",
        f"{len(target):,} patches, {share:.1%} of them IDC. Look for colour that differs from "
        "other patients, folds, blur, holes, and IDC whose border follows no change of the tissue.",
        wide=True,
    )


def draw_target_maps(path: Path, slides: Mapping[str, tuple[Slide, Ints]]) -> Picture:
    """Draw the labels of several patients, all at one scale.

    Args:
        path: The PNG file.
        slides: Slide and labels [n] of each patient.
    """
    shown = list(slides.values())
    # The same lengths for all, so that sizes can be compared.
    height = max(slide.height for slide, _ in shown)
    width = max(height / 2, *(slide.width for slide, _ in shown))
    # A wide slide gets more room, so that the small ones beside it can still be seen.
    fitting = int(np.clip(MOST_COLUMNS * 1.5 * height / width, 1, MOST_COLUMNS))
    across = MAPS_WIDTH / fitting
    columns = min(fitting, len(shown))
    rows = -(-len(shown) // columns)
    down = across * max(1.04 * height / width, 0.1) + 0.35
    with drawing(path, across * columns + 0.4, down * rows + 0.5, rows=rows, columns=columns) as (
        figure,
        axes,
    ):
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        for axis, (slide, target) in zip(axes, shown, strict=False):
            axis.imshow(
                slide.laid(target),
                extent=slide.extent,
                cmap=ListedColormap(CLASS_COLOURS),
                vmin=0,
                vmax=1,
                interpolation="nearest",
            )
            axis.set_xlim(slide.left, slide.left + width)
            axis.set_ylim(slide.top + 1.04 * height, slide.top)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            for edge in axis.spines.values():
                edge.set_visible(False)
            share = f"  {np.mean(target == 1):.0%} IDC"
            axis.set_title(shortened(slide.patient_id, across - 0.9, 9) + share, size=9)
        length = _round_length(width * shown[0][0].microns / 1000 / 3)
        _scale_bar(axes[0], shown[0][0], height, length)
        figure.legend(
            handles=[Patch(color=colour) for colour in CLASS_COLOURS],
            labels=["healthy", "IDC"],
            loc="outside lower left",
            ncols=2,
        )
    return Picture(
        path,
        "Labels on the slide",
        f"All at one scale; the bar is {length:g} mm long. Look for holes where patches were "
        "discarded, and for labels that are scattered rather than regions.",
        wide=True,
    )


def draw_landscape(
    path: Path,
    slide: Slide,
    pixels: Pixels,
    predictions: pd.DataFrame,
    *,
    threshold: float,
) -> Picture:
    """Draw tissue, truth, probability and error of a patient side by side.

    Without labels, the decision stands in the place of truth and error.

    Args:
        path: The PNG file.
        slide: Where the patches lie.
        pixels: Patches, uint8 [n, 50, 50, 3], in the order of the slide.
        predictions: Their true (-1 without a label), predicted and proba, in the same order.
        threshold: Probability from which a patch counts as IDC.
    """
    true = predictions["true"].to_numpy()
    proba = predictions["proba"].to_numpy()
    labelled = true >= 0
    truth = np.where(labelled, true, np.nan)
    maps = {"Probability of IDC": proba}
    if labelled.any():
        maps = {"Truth": truth, **maps, "Error: |truth - probability|": np.abs(truth - proba)}
    else:
        maps[f"IDC from {threshold:.3f} on"] = predictions["predicted"].to_numpy()
    panels = 1 + len(maps)
    width = 13.5 / 4 * panels + 0.6
    with drawing(path, width, _height(slide, 3.1), columns=panels) as (figure, axes):
        axes[0].imshow(slide.tissue(pixels), extent=slide.extent)
        axes[0].set_title("Tissue")
        shown: list[AxesImage] = []
        for axis, (title, values) in zip(axes[1:], maps.items(), strict=True):
            shown.append(
                axis.imshow(
                    slide.laid(values),
                    extent=slide.extent,
                    cmap=HEAT,
                    vmin=0,
                    vmax=1,
                    interpolation="nearest",
                )
            )
            axis.set_title(title)
            # Among patches without a label there is no border to be drawn.
            if labelled.all() and title != "Truth":
                axis.add_collection(_outline(slide, slide.laid(truth) == 1, "white", 1.0))
        _frame(axes, slide, 3.1)
        bar = figure.colorbar(shown[0], ax=axes, fraction=0.02, pad=0.01, aspect=25)
        bar.outline.set_visible(False)
        _headline(figure, slide)
    return Picture(
        path,
        f"Patient {slide.patient_id}",
        _told(predictions, labelled, threshold),
        wide=True,
    )


def _told(predictions: pd.DataFrame, labelled: npt.NDArray[np.bool_], threshold: float) -> str:
    """The caption of a landscape."""
    called = float((predictions["predicted"] == 1).mean())
    if not labelled.any():
        return (
            f"{len(predictions):,} patches, {called:.1%} called IDC at the threshold "
            f"{threshold:.3f}. Look for single patches that differ from all around them."
        )
    known = predictions[labelled]
    correct = float((known["true"] == known["predicted"]).mean())
    told = (
        f"{len(predictions):,} patches, {called:.1%} called IDC at the threshold {threshold:.3f}"
        f"{'' if labelled.all() else f'; of the {len(known):,} with a label'}, "
        f"{(known['true'] == 1).mean():.1%} labelled IDC, {correct:.1%} correct. "
    )
    if not labelled.all():
        return told + (
            "Truth and error are white where a patch has no label. Look for bright errors, and "
            "for what the tissue shows there."
        )
    return told + (
        "The white line encloses what is labelled IDC. Errors along it are mostly a matter of "
        "where it was drawn; look for bright areas away from it, and for what the tissue shows "
        "there."
    )


def tint(tissue: Pixels, chosen: npt.NDArray[np.bool_]) -> Pixels:
    """Turn tissue to grey, and colour the chosen cells.

    Pink and violet tissue would hide any colour laid over it, for colour-blind people above all.

    Args:
        tissue: Uint8 [H, W, 3].
        chosen: Cells [rows, columns], which divide H and W.

    Returns:
        Uint8 [H, W, 3].
    """
    # Luma of ITU-R BT.601.
    grey = tissue @ np.array([0.299, 0.587, 0.114])
    grey = np.repeat(grey[..., None], 3, axis=2)
    scale = tissue.shape[0] // chosen.shape[0]
    mask = np.kron(chosen, np.ones((scale, scale), dtype=bool))[..., None]
    colour = 255 * np.array(to_rgb(IDC))
    return np.where(mask, (1 - TINT) * grey + TINT * colour, grey).round().astype(np.uint8)


def _outline(
    slide: Slide, chosen: npt.NDArray[np.bool_], colour: str, width: float
) -> LineCollection:
    """Lines between chosen cells and others."""
    padded = np.pad(chosen, 1)
    row, column = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = [((c, r), (c + 1, r)) for r, c in zip(row, column, strict=True)]
    row, column = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = [((c, r), (c, r + 1)) for r, c in zip(row, column, strict=True)]
    corner = np.array([slide.left + 0.5, slide.top + 0.5])
    segments = np.array(level + upright, dtype=np.float64).reshape(-1, 2, 2) * PATCH + corner
    lines = LineCollection(list(segments), colors=colour, linewidths=width, capstyle="projecting")
    if colour == "white":
        lines.set_path_effects([withStroke(linewidth=width + 1.2, foreground="black")])
    return lines


def _headline(figure: Figure, slide: Slide) -> None:
    """Write the patient above all panels."""
    name = shortened(slide.patient_id, figure.get_figwidth() - 0.3, HEADLINE, bold=True)
    figure.suptitle(name, x=0.01, ha="left", weight="bold", size=HEADLINE)


def _frame(axes: list[Axes], slide: Slide, panel: float) -> None:
    """Label axes, at most so many inches wide, in pixels below and left, in mm above and right."""
    width, height = _framed(slide)
    across, down = int(panel / 0.75), int(np.clip(panel * height / width / 0.3, 1, 5))
    mm = slide.microns / 1000
    both_ways = (lambda px: px * mm, lambda length: length / mm)
    for axis in axes:
        axis.grid(visible=False)
        axis.set_xlabel("x in px")
        axis.set_xlim(slide.left + 0.5, slide.left + width + 0.5)
        axis.set_ylim(slide.top + height + 0.5, slide.top + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(across, steps=ROUND))
        axis.yaxis.set_major_locator(MaxNLocator(down, steps=ROUND))
        above = axis.secondary_xaxis("top", functions=both_ways)
        above.xaxis.set_major_formatter("{x:g} mm")
        above.xaxis.set_major_locator(MaxNLocator(across, steps=ROUND))
    axes[0].set_ylabel("y in px")
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)
    right = axes[-1].secondary_yaxis("right", functions=both_ways)
    right.yaxis.set_major_formatter("{x:g} mm")
    right.yaxis.set_major_locator(MaxNLocator(down, steps=ROUND))


def _scale_bar(axis: Axes, slide: Slide, height: float, length: float) -> None:
    """Draw a bar of so many mm below the tissue, in axes of so many pixels."""
    start, bottom = slide.left + PATCH, slide.top + 1.03 * height
    axis.plot([start, start + 1000 * length / slide.microns], [bottom, bottom], "k", linewidth=2)


def _round_length(most: float) -> float:
    """The largest of 1, 2, 5, 10, 20 ... (and 0.1, 0.2, 0.5) that isn't above a length."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def _framed(slide: Slide) -> tuple[float, float]:
    """Width and height of axes in px: those of the slide, unless it is too narrow for a title."""
    return max(slide.width, slide.height / 2), max(slide.height, slide.width / 4)


def _height(slide: Slide, panel: float) -> float:
    """Height of a picture in inches whose panels are so wide."""
    width, height = _framed(slide)
    return max(panel * height / width, 1.5) + MARGIN
