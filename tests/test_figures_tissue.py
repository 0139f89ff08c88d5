from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from helpers_figures import (
    NAMES,
    assert_all_inside,
    assert_no_text_overlaps,
    keep_figures,
)
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from idc_lightning.data.grid import PATCH
from idc_lightning.figures import tissue
from idc_lightning.figures.style import HEALTHY, HEAT, IDC
from idc_lightning.figures.tissue import (
    Slide,
    draw_landscape,
    draw_target_maps,
    draw_tissue_pair,
    tint,
)

pytestmark = pytest.mark.filterwarnings("error")

# An L that no turn, flip or swap of x and y maps onto itself; its corner isn't that of the slide.
CELLS = ((3, 2), (4, 2), (5, 2), (6, 2), (3, 3), (3, 4))
COLUMN, ROW = (np.array(part) for part in zip(*CELLS, strict=True))
SLIDE = Slide("101", PATCH * COLUMN + 1, PATCH * ROW + 1, microns=4.0)
SHADES = np.array([20, 60, 100, 140, 180, 220], dtype=np.uint8)
PIXELS = np.repeat(SHADES, PATCH * PATCH * 3).reshape(-1, PATCH, PATCH, 3)
TARGET = np.array([0, 0, 1, 1, 0, 1])
PROBA = np.array([0.05, 0.25, 0.4, 0.6, 0.8, 0.95])


def predictions(true: np.ndarray = TARGET) -> pd.DataFrame:
    return pd.DataFrame({"true": true, "predicted": (PROBA >= 0.5).astype(int), "proba": PROBA})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return keep_figures(monkeypatch, tissue)


def colours(figure: Figure, path: Path, panel: int) -> np.ndarray:
    """Colours [n, 3] in 0 to 1 that a written picture has in the middle of each patch."""
    image = np.asarray(Image.open(path).convert("RGB")) / 255
    # A little off the middle, where no line of the grid or outline passes.
    middle = np.stack([SLIDE.x + 20, SLIDE.y + 20], axis=1)
    column, from_below = figure.axes[panel].transData.transform(middle).round().astype(int).T
    return image[len(image) - 1 - from_below, column]


def test_each_patch_of_a_landscape_lies_where_it_belongs(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    picture = draw_landscape(tmp_path / "a.png", SLIDE, PIXELS, predictions(), threshold=0.5)
    heat = mpl.colormaps[HEAT]
    for panel, values in enumerate([TARGET, PROBA, np.abs(TARGET - PROBA)], start=1):
        found = colours(drawn[0], picture.path, panel)
        np.testing.assert_allclose(found, heat(values.astype(float))[:, :3], atol=0.02)
    shades = colours(drawn[0], picture.path, 0)
    np.testing.assert_allclose(shades, np.repeat(SHADES[:, None] / 255, 3, axis=1), atol=0.02)


def test_axes_count_pixels_of_the_slide_from_one_downwards(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_landscape(tmp_path / "a.png", SLIDE, PIXELS, predictions(), threshold=0.5)
    for panel in range(4):
        axis = drawn[0].axes[panel]
        assert axis.get_xlim() == (150.5, 350.5)
        assert axis.get_ylim() == (250.5, 100.5)
    above = drawn[0].axes[0].child_axes[0]
    assert above.get_xlim() == pytest.approx((0.602, 1.402))  # 4 µm a pixel


def test_places_without_a_patch_stay_white(tmp_path: Path, drawn: list[Figure]) -> None:
    picture = draw_landscape(tmp_path / "a.png", SLIDE, PIXELS, predictions(), threshold=0.5)
    image = np.asarray(Image.open(picture.path).convert("RGB"))
    for panel in range(4):
        # A cell below the middle of the L's long arm.
        column, from_below = drawn[0].axes[panel].transData.transform((270, 220)).round()
        assert image[len(image) - 1 - int(from_below), int(column)].tolist() == [255, 255, 255]


def test_without_labels_there_is_neither_truth_nor_error(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    nothing = predictions(np.full(len(CELLS), -1))
    picture = draw_landscape(tmp_path / "a.png", SLIDE, PIXELS, nothing, threshold=0.5)
    titles = [axis.get_title("left") for axis in drawn[0].axes[:3]]
    assert titles == ["Tissue", "Probability of IDC", "IDC from 0.500 on"]
    assert "correct" not in picture.caption
    np.testing.assert_allclose(
        colours(drawn[0], picture.path, 2),
        mpl.colormaps[HEAT]((PROBA >= 0.5).astype(float))[:, :3],
        atol=0.02,
    )


def test_the_overlay_colours_idc_and_nothing_else(tmp_path: Path, drawn: list[Figure]) -> None:
    picture = draw_tissue_pair(tmp_path / "a.png", SLIDE, PIXELS, TARGET)
    plain, overlaid = (colours(drawn[0], picture.path, panel) for panel in (0, 1))
    np.testing.assert_allclose(plain[:, 0], SHADES / 255, atol=0.02)
    coloured = np.ptp(overlaid, axis=1) > 0.1
    assert coloured.tolist() == (TARGET == 1).tolist()
    expected = 0.55 * plain[TARGET == 1] + 0.45 * np.array(to_rgb(IDC))
    np.testing.assert_allclose(overlaid[TARGET == 1], expected, atol=0.02)


def test_pink_tissue_is_grey_below_the_overlay() -> None:
    pink = np.full((PATCH, 2 * PATCH, 3), (230, 130, 180), dtype=np.uint8)
    tinted = tint(pink, np.array([[True, False]]))
    assert np.ptp(tinted[0, -1]) == 0
    assert tinted[0, 0, 0] > tinted[0, 0, 2] + 50


def test_a_large_slide_is_reduced_by_whole_cells() -> None:
    column = np.arange(40)
    slide = Slide("1", PATCH * column + 1, np.ones(40, dtype=np.int64), microns=4.0)
    pixels = np.repeat(np.arange(40, dtype=np.uint8), PATCH * PATCH * 3)
    image = slide.tissue(pixels.reshape(40, PATCH, PATCH, 3))
    assert image.shape == (10, 400, 3)
    assert image[0, ::10, 0].tolist() == column.tolist()
    assert image[-1, 9::10, 2].tolist() == column.tolist()


def test_maps_of_labels_are_to_one_scale(tmp_path: Path, drawn: list[Figure]) -> None:
    small = Slide("1", np.array([1, 51]), np.array([1, 1]), microns=4.0)
    slides = {"101": (SLIDE, TARGET), "1": (small, np.array([0, 1]))}
    picture = draw_target_maps(tmp_path / "a.png", slides)
    first, second = drawn[0].axes[:2]
    assert np.ptp(first.get_xlim()) == np.ptp(second.get_xlim()) == 4 * PATCH
    assert np.ptp(first.get_ylim()) == np.ptp(second.get_ylim())
    found = colours(drawn[0], picture.path, 0)
    wanted = np.array([to_rgb((HEALTHY, IDC)[target]) for target in TARGET])
    np.testing.assert_allclose(found, wanted, atol=0.02)


def block(name: str, rows: int, columns: int) -> Slide:
    y, x = (part.ravel() for part in np.indices((rows, columns)) * PATCH + 1)
    return Slide(name, x, y, microns=4.0)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_can_be_drawn(tmp_path: Path, drawn: list[Figure], name: str) -> None:
    slide = Slide(name, SLIDE.x, SLIDE.y, microns=4.0)
    pictures = [
        draw_tissue_pair(tmp_path / "a.png", slide, PIXELS, TARGET),
        draw_landscape(tmp_path / "b.png", slide, PIXELS, predictions(), threshold=0.5),
        draw_landscape(tmp_path / "c.png", slide, PIXELS, predictions(0 * TARGET - 1), threshold=1),
    ]
    assert {picture.title for picture in pictures} == {f"Patient {name}"}
    for figure in drawn:
        assert_all_inside(figure)
        assert_no_text_overlaps(figure)


SHAPES = [(1, 1), (1, 60), (60, 1), (60, 10), (20, 60), (45, 40)]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_slides_of_any_shape_can_be_drawn(
    tmp_path: Path, drawn: list[Figure], rows: int, columns: int
) -> None:
    slide = block("1", rows, columns)
    pixels = np.zeros((len(slide.x), PATCH, PATCH, 3), dtype=np.uint8)
    table = pd.DataFrame({"true": 1, "predicted": 1, "proba": 1.0}, index=range(len(slide.x)))
    draw_landscape(tmp_path / "a.png", slide, pixels, table, threshold=0.5)
    draw_tissue_pair(tmp_path / "b.png", slide, pixels, np.ones(len(pixels), dtype=np.int64))
    for figure in drawn:
        assert_all_inside(figure)
        assert_no_text_overlaps(figure)
        assert max(figure.bbox.size) < 2000


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("count", [1, len(NAMES)])
def test_names_stand_above_their_own_labels(
    tmp_path: Path, drawn: list[Figure], rows: int, columns: int, count: int
) -> None:
    slides = {name: block(name, rows, columns) for name in NAMES[-count:]}
    maps = {name: (slide, np.ones(rows * columns, int)) for name, slide in slides.items()}
    draw_target_maps(tmp_path / "a.png", maps)
    assert_all_inside(drawn[0])
    assert_no_text_overlaps(drawn[0])
    for axes in drawn[0].axes[:count]:
        assert axes.get_title(loc="left").endswith("  100% IDC")


@pytest.mark.parametrize("large", [(20, 200), (200, 20)])
def test_small_slides_are_seen_beside_a_large_one(
    tmp_path: Path, drawn: list[Figure], large: tuple[int, int]
) -> None:
    slides = [block("large", *large), *(block(str(n), 30, 30) for n in range(8))]
    maps = {slide.patient_id: (slide, np.ones(len(slide.x), int)) for slide in slides}
    draw_target_maps(tmp_path / "a.png", maps)
    for axes in drawn[0].axes[1:9]:
        left, right = axes.transData.transform([(1, 1), (30 * PATCH, 1)])[:, 0]
        assert right - left >= 70
    assert drawn[0].bbox.width < 1400


def test_a_border_is_drawn_where_all_patches_are_labelled(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    true = TARGET.copy()
    whole = draw_landscape(tmp_path / "a.png", SLIDE, PIXELS, predictions(true), threshold=0.5)
    true[0] = -1
    part = draw_landscape(tmp_path / "b.png", SLIDE, PIXELS, predictions(true), threshold=0.5)
    lines = [[len(axes.collections) for axes in figure.axes[:4]] for figure in drawn]
    assert lines == [[0, 0, 1, 1], [0, 0, 0, 0]]
    assert "white line" in whole.caption
    assert "white line" not in part.caption
    assert "of the 5 with a label" in part.caption
