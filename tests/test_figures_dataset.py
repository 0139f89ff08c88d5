"""Pictures of a data set: which numbers they show, and that odd data is drawn too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_figures import NAMES, assert_all_inside, assert_no_text_overlaps, keep_figures
from matplotlib.axes import Axes
from PIL import Image

import idc_lightning.figures.dataset as dataset
import idc_lightning.figures.patches as patches
from idc_lightning.data.grid import PATCH
from idc_lightning.figures.dataset import draw_overview, draw_splits
from idc_lightning.figures.patches import Gallery, Tile, draw_augmentation, draw_gallery

pytestmark = pytest.mark.filterwarnings("error")

Drawn = Callable[[], list[Axes]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The axes of the picture that was drawn last."""
    kept = keep_figures(monkeypatch, dataset, patches)
    return lambda: kept[-1].axes


def table(*rows: tuple[str, str | None, int, int]) -> pd.DataFrame:
    """Patients from name, split, patches and IDC patches."""
    made = pd.DataFrame(rows, columns=["patient_id", "split", "patches", "idc_patches"])
    return made.assign(idc=made["idc_patches"] / made["patches"].where(made["patches"] > 0))


USUAL = table(
    ("1", "train", 100, 20),
    ("2", "train", 300, 30),
    ("3", "dev", 60, 60),
    ("4", "test", 140, 0),
    ("5", None, 200, 90),
    ("6", "train", 0, 0),
)


def heights(axes: Axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]


def test_histograms_count_each_patient_with_patches_once(tmp_path: Path, drawn: Drawn) -> None:
    picture = draw_overview(tmp_path / "overview.png", USUAL)
    sizes, idc, classes = drawn()
    assert sum(heights(sizes)) == sum(heights(idc)) == 5
    assert heights(classes) == [600, 200]
    texts = [text.get_text() for axes in (sizes, idc, classes) for text in axes.texts]
    assert texts == ["median 140", "median 20%", "600\n75.0%", "200\n25.0%"]
    with Image.open(picture.path) as image:
        assert image.size == (12 * 110, 4 * 110)


def test_an_idc_share_of_all_is_inside_the_histogram(tmp_path: Path, drawn: Drawn) -> None:
    draw_overview(tmp_path / "overview.png", table(("1", None, 5, 5)))
    assert heights(drawn()[1])[-1] == 1


def test_splits_show_classes_and_patients(tmp_path: Path, drawn: Drawn) -> None:
    draw_splits(tmp_path / "splits.png", USUAL)
    classes, idc, sizes = drawn()
    assert heights(classes) == [350, 0, 140, 50, 60, 0]
    assert [text.get_text() for text in classes.texts] == [
        "350\n88%",
        "0\n0%",
        "140\n100%",
        "50\n12%",
        "60\n100%",
        "0\n0%",
    ]
    points = [np.sort(line.get_ydata()) for line in idc.lines if line.get_marker() == "o"]
    assert [list(values) for values in points] == [[0.1, 0.2], [1.0], [0.0]]
    means = [line.get_ydata()[0] for line in idc.lines if line.get_marker() != "o"]
    assert means == [50 / 400, 1.0, 0.0, 110 / 600]
    means = [line.get_ydata()[0] for line in sizes.lines if line.get_marker() != "o"]
    assert means == [200, 60, 140, 150]


def test_a_split_without_readable_patches_is_drawn_empty(tmp_path: Path, drawn: Drawn) -> None:
    draw_splits(
        tmp_path / "s.png", table(("1", "train", 0, 0), ("2", "dev", 5, 1), ("3", "test", 5, 1))
    )
    labels = [label.get_text() for label in drawn()[1].get_xticklabels()]
    assert labels == ["train\n0 patients", "dev\n1 patient", "test\n1 patient"]


def tile(number: int) -> Tile:
    pixels = np.full((PATCH, PATCH, 3), number % 256, np.uint8)
    return Tile(pixels, (f"$patient_{number}^ of a very long name", f"x {number}"))


@pytest.mark.parametrize("count", [0, 1, 13, 150])
def test_a_gallery_holds_each_patch_once_above_its_lines(
    tmp_path: Path, drawn: Drawn, count: int
) -> None:
    gallery = Gallery("title", "caption", [tile(number) for number in range(count)])
    picture = draw_gallery(tmp_path / "gallery.png", gallery)
    (axes,) = drawn()
    assert (picture.title, picture.caption) == ("title", "caption")
    assert len(axes.images) == count
    for number, (image, text) in enumerate(zip(axes.images, axes.texts, strict=False)):
        left, right, bottom, top = image.get_extent()
        x, y = text.get_position()
        assert image.get_array().max() == number % 256  # type: ignore[union-attr]
        assert left == x < right
        assert top < bottom < y
        assert text.get_text().endswith(f"x {number}")
    with Image.open(picture.path) as image:
        assert max(image.size) < 3000


def test_patches_are_magnified_exactly_twice(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (PATCH, PATCH, 3), dtype=np.uint8)
    path = draw_gallery(tmp_path / "one.png", Gallery("t", "c", [Tile(noise)])).path
    with Image.open(path) as image:
        seen = np.asarray(image.convert("RGB"))
    twice = noise.repeat(2, axis=0).repeat(2, axis=1)[4:-4, 4:-4]  # beside the frame
    rows, columns = (side - 2 * PATCH for side in seen.shape[:2])
    assert any(
        (seen[r + 4 : r + 96, c + 4 : c + 96] == twice).all()
        for r in range(rows)
        for c in range(columns)
    )


def test_the_preview_shows_edge_patches_at_their_own_size(tmp_path: Path, drawn: Drawn) -> None:
    edge, whole = np.zeros((20, 50, 3), np.uint8), np.zeros((50, 50, 3), np.uint8)
    views = {"file": [edge, whole], "train": [whole, whole]}
    draw_augmentation(tmp_path / "views.png", views, [("a",), ("b",)])
    (axes,) = drawn()
    sizes = []
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        sizes.append((round(55 * (right - left)), round(55 * (bottom - top))))
    assert sizes == [(50, 20), (50, 50), (50, 50), (50, 50)]
    assert [text.get_text() for text in axes.texts] == ["a", "b", "file", "train"]


def test_names_stay_below_and_above_their_own_patch(tmp_path: Path, drawn: Drawn) -> None:
    lines = [(name, "x 4,451, y 4,401", "p = 0.123") for name in NAMES]
    pixels = np.zeros((PATCH, PATCH, 3), np.uint8)
    draw_gallery(tmp_path / "a.png", Gallery("t", "c", [Tile(pixels, line) for line in lines * 2]))
    figures = [drawn()[0].figure]
    draw_augmentation(tmp_path / "b.png", {"train, epoch 0": [pixels] * len(lines)}, lines)
    figures.append(drawn()[0].figure)
    for figure in figures:
        assert_all_inside(figure)
        assert_no_text_overlaps(figure)
