from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_figures import (
    NAMES,
    STRANGE,
    assert_all_inside,
    assert_no_text_overlaps,
    assert_shown,
    handmade,
    keep_figures,
    table_of,
)
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from sklearn.metrics import f1_score

import idc_lightning.figures.patients as patients
from idc_lightning.figures.labels import SIZE, WIDEST
from idc_lightning.figures.patients import draw_patient_f1, draw_patients
from idc_lightning.figures.style import SPLIT_COLOURS, shortened
from idc_lightning.results.patients import patients_table

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return keep_figures(monkeypatch, patients)


@pytest.fixture
def splits() -> dict[str, pd.DataFrame]:
    return {"dev": table_of(0), "test": table_of(1)}


def names_of(axes: Axes) -> dict[str, tuple[float, float]]:
    return {
        text.get_text(): (float(text.xy[0]), float(text.xy[1]))
        for text in axes.texts
        if isinstance(text, Annotation)
    }


def test_patients_stand_where_their_shares_are(tmp_path: Path, figures: list[Figure]) -> None:
    dev = pd.concat(
        [
            handmade("a", [1, 0, 0, 0], [0.9, 0.1, 0.1, 0.1]),
            handmade("b", [1, 1], [0.1, 0.9]),
        ]
    )
    tables = {"dev": patients_table(dev, 0.5)}
    draw_patients(tmp_path / "p.png", tables, microns_per_pixel=4.0)
    by_idc, by_size = figures[0].axes[:2]
    assert names_of(by_idc) == {"a": (0.25, 1.0), "b": (1.0, 0.5)}
    assert names_of(by_size) == {"a": (4.0, 1.0), "b": (2.0, 0.5)}
    dots = [one for one in by_idc.collections if isinstance(one, PathCollection)]
    assert sorted(np.asarray(dots[0].get_offsets()).tolist()) == [[0.25, 1.0], [1.0, 0.5]]
    (upper,) = by_size.child_axes
    assert upper.get_xlim()[1] / by_size.get_xlim()[1] == pytest.approx(0.04)  # mm² of a patch
    assert "mm²" in upper.get_xlabel()


@pytest.mark.parametrize("seed", range(3))
def test_names_of_the_worst_cover_nothing(tmp_path: Path, figures: list[Figure], seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"patient {number} of many" for number in range(60)]
    table = pd.DataFrame(
        {
            "patient_id": names,
            "patches": rng.integers(900, 1000, 60),
            "idc": rng.uniform(0.3, 0.35, 60),
            "correct": np.sort(rng.uniform(0.6, 0.9, 60) ** 0.2),
        }
    )
    draw_patients(tmp_path / "p.png", {"new": table}, microns_per_pixel=4.0)
    figures[0].canvas.draw()  # type: ignore[attr-defined]
    for axes, x in zip(figures[0].axes, ("idc", "patches"), strict=False):
        texts = [text for text in axes.texts if isinstance(text, Annotation)]
        assert len(texts) >= 3
        assert all(
            text.get_text() in {shortened(name, WIDEST, SIZE) for name in names[:6]}
            for text in texts
        )
        boxes = [Text.get_window_extent(text) for text in texts]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        points = axes.transData.transform(table[[x, "correct"]].to_numpy())
        assert not any(box.contains(*point) for box in boxes for point in points)
        assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)
        for text, own in zip(texts, boxes, strict=True):
            line = np.linspace(axes.transData.transform(text.xy), np.add(own.min, own.max) / 2, 30)
            others = [box for box in boxes if box is not own]
            assert not any(box.contains(*spot) for box in others for spot in line)


def test_f1_of_patients_is_listed_worst_first(
    tmp_path: Path, figures: list[Figure], splits: dict[str, pd.DataFrame]
) -> None:
    splits["dev"]["patient_id"] = "dev " + splits["dev"]["patient_id"]
    healthy = handmade("without", [0, 0, 0, 0], [0.1, 0.2, 0.3, 0.9])
    splits["test"] = pd.concat([splits["test"], healthy])
    tables = {split: patients_table(table, 0.5) for split, table in splits.items()}
    picture = draw_patient_f1(tmp_path / "f.png", tables)
    (axes,) = figures[0].axes
    dots = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 1]
    values = [float(np.asarray(line.get_xdata())[0]) for line in dots]
    assert values == sorted(values)
    assert len(values) == 24
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[-1] == "without  0%"
    assert any(text.get_text() == "no IDC; 75% correct" for text in axes.texts)
    for split, dot_split in ((split, SPLIT_COLOURS[split]) for split in splits):
        name, *_ = tables[split]["patient_id"]
        place = next(n for n, label in enumerate(labels) if label.startswith(f"{name}  "))
        rows = splits[split][splits[split]["patient_id"] == name]
        assert dots[place].get_color() == dot_split
        assert values[place] == pytest.approx(f1_score(rows["true"], rows["proba"] >= 0.5))
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == [f"{s}, mean F1 {tables[s]['f1'].mean():.3f}" for s in splits]
    assert "the 1 without IDC" in picture.caption
    # From top to bottom.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_279_patients_are_listed_in_columns(tmp_path: Path, figures: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "patient_id": [f"{number}" for number in range(279)],
            "idc": rng.random(279),
            "correct": rng.random(279),
            "balanced_accuracy": rng.random(279),
            "f1": rng.random(279),
        }
    )
    picture = draw_patient_f1(tmp_path / "f.png", {"new": table})
    assert picture.wide
    labels = [label.get_text() for axes in figures[0].axes for label in axes.get_yticklabels()]
    order = table.sort_values("f1")["patient_id"].tolist()
    assert [label.split()[0] for label in labels] == order
    for axes in figures[0].axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(boxes[n].overlaps(boxes[n + 1]) for n in range(len(boxes) - 1))


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_strange_splits_have_pictures(
    tmp_path: Path, figures: list[Figure], name: str, threshold: float
) -> None:
    tables = {split: patients_table(table, threshold) for split, table in STRANGE[name].items()}
    pictures = [
        draw_patients(tmp_path / "a.png", tables, microns_per_pixel=4.0),
        draw_patient_f1(tmp_path / "b.png", tables),
    ]
    for picture, figure in zip(pictures, figures, strict=True):
        assert_shown(picture, figure)


def test_any_names_can_be_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    rows = [handmade(name, [0, 0, 1, 1], rng.random(4).tolist()) for name in NAMES]
    tables = {"new": patients_table(pd.concat(rows), 0.5)}
    draw_patients(tmp_path / "a.png", tables, microns_per_pixel=4.0)
    draw_patient_f1(tmp_path / "b.png", tables)
    for figure in figures:
        assert_all_inside(figure)
        assert_no_text_overlaps(figure)
