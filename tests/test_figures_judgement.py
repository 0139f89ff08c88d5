from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score
from test_bootstrap import cohort

import idc_lightning.figures.judgement as judgement
from idc_lightning.decision import Decision
from idc_lightning.figures.judgement import (
    draw_confusion,
    draw_patient_f1,
    draw_patients,
    draw_probabilities,
    draw_ranking,
    draw_reliability,
    shortened,
)
from idc_lightning.figures.style import SPLIT_COLOURS, drawing
from idc_lightning.results.bootstrap import pooled_metrics
from idc_lightning.results.patients import patients_table

pytestmark = pytest.mark.filterwarnings("error")


def keep_figures(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Figure]:
    """The figures that a module draws, in their order."""
    kept: list[Figure] = []

    @contextmanager
    def keeping(*args: Any, **kwargs: Any) -> Iterator[tuple[Figure, list[Axes]]]:
        with drawing(*args, **kwargs) as (figure, axes):
            kept.append(figure)
            yield figure, axes

    monkeypatch.setattr(module, "drawing", keeping)
    return kept


def assert_all_inside(figure: Figure) -> None:
    """Nothing that is drawn is cut off by the edge of the picture."""
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.02
    assert drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return keep_figures(monkeypatch, judgement)


def table_of(seed: int, patients: int = 12) -> pd.DataFrame:
    true, proba, names = cohort(seed, patients)
    return pd.DataFrame({"patient_id": names, "true": true, "proba": proba})


@pytest.fixture
def splits() -> dict[str, pd.DataFrame]:
    return {"dev": table_of(0), "test": table_of(1)}


def handmade(patient: str, true: list[int], proba: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": patient, "true": true, "proba": proba})


def label_of(axes: Axes, start: str) -> str:
    _, labels = axes.get_legend_handles_labels()
    return next(label for label in labels if label.startswith(start))


def marks(axes: Axes) -> dict[str, tuple[float, float]]:
    """Operating points by split."""
    names = {colour: split for split, colour in SPLIT_COLOURS.items()}
    return {
        names[str(line.get_color())]: (
            float(np.asarray(line.get_xdata())[0]),
            float(np.asarray(line.get_ydata())[0]),
        )
        for line in axes.lines
        if len(np.asarray(line.get_xdata())) == 1
    }


def test_the_confusion_matrix_has_counts_and_shares_of_rows(
    tmp_path: Path, figures: list[Figure]
) -> None:
    true = [0] * 2000 + [1] * 8
    proba = [0.2] * 1500 + [0.4] * 500 + [0.1] * 2 + [0.9] * 6
    only = handmade("a", [0, 0, 0], [0.1, 0.2, 0.3])
    picture = draw_confusion(
        tmp_path / "c.png", {"dev": handmade("a", true, proba), "test": only}, threshold=0.4
    )
    texts = [[text.get_text() for text in axes.texts] for axes in figures[0].axes]
    assert texts[0] == ["75.0%", "1,500", "25.0%", "500", "25.0%", "2", "75.0%", "6"]
    assert texts[1] == ["100.0%", "3", "0.0%", "0", "none", "0", "none", "0"]
    first = figures[0].axes[0]
    # Text j stands in row i of true classes; its x is the predicted class.
    assert [text.get_position()[0] for text in first.texts[2:4]] == [1, 1]
    assert [text.get_position()[1] for text in first.texts[4:5]] == [1]
    assert (first.get_xlabel(), first.get_ylabel()) == ("predicted", "true")
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["dev", "test"]
    assert "0.400" in picture.caption


def test_curves_have_their_areas_and_operating_points(
    tmp_path: Path, figures: list[Figure], splits: dict[str, pd.DataFrame]
) -> None:
    draw_ranking(tmp_path / "r.png", splits, threshold=0.35)
    roc, pr = figures[0].axes
    for split, table in splits.items():
        true, proba = table["true"].to_numpy(), table["proba"].to_numpy()
        metrics = pooled_metrics(true, proba, threshold=0.35)
        assert label_of(roc, split) == f"{split}: AUROC {metrics['auroc']:.3f}"
        assert f"AP {metrics['average_precision']:.3f}, {true.mean():.1%} IDC" in label_of(
            pr, split
        )
        predicted = proba >= 0.35
        recall, precision = recall_score(true, predicted), precision_score(true, predicted)
        fall_out = 1 - recall_score(true, predicted, pos_label=0)
        assert marks(roc)[split] == pytest.approx((fall_out, recall))
        assert marks(pr)[split] == pytest.approx((recall, precision))
        assert any(
            np.asarray(line.get_ydata()).tolist() == pytest.approx([true.mean()] * 2)
            for line in pr.lines
            if line.get_linestyle() == ":" and line.get_color() == SPLIT_COLOURS[split]
        )
    assert_all_inside(figures[0])


def test_the_area_below_the_drawn_steps_is_average_precision(
    tmp_path: Path, figures: list[Figure], splits: dict[str, pd.DataFrame]
) -> None:
    draw_ranking(tmp_path / "r.png", splits, threshold=0.5)
    curve = next(
        line for line in figures[0].axes[1].lines if str(line.get_label()).startswith("test: AP")
    )
    assert curve.get_drawstyle() == "steps-post"
    recall, precision = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
    area = (-np.diff(recall) * precision[:-1]).sum()
    assert f"AP {area:.3f}" in str(curve.get_label())
    assert precision[-1] == precision[-2]


def test_histograms_add_up_to_each_class(
    tmp_path: Path, figures: list[Figure], splits: dict[str, pd.DataFrame]
) -> None:
    draw_probabilities(tmp_path / "p.png", splits, threshold=0.35)
    for axes, table in zip(figures[0].axes, splits.values(), strict=True):
        heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
        assert heights == pytest.approx([1, 1])
        healthy = int((table["true"] == 0).sum())
        assert label_of(axes, "healthy") == f"healthy: {healthy}"
        threshold = next(line for line in axes.lines if line.get_linestyle() == "--")
        assert np.asarray(threshold.get_xdata()).tolist() == [0.35, 0.35]
        assert axes.get_ylim()[0] < 1 / len(table)


def test_reliability_shows_what_calibration_changed(tmp_path: Path, figures: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20_000)
    true = (rng.random(len(margin)) < 1 / (1 + np.exp(-margin))).astype(np.int64)
    table = pd.DataFrame({"patient_id": "a", "true": true, "proba": 1 / (1 + np.exp(-margin))})
    draw_reliability(tmp_path / "r.png", {"test": table}, Decision(3.0, -0.5, 0.5))
    axes = figures[0].axes[0]
    raw = 1 / (1 + np.exp(-3 * (margin + 0.5)))
    before = float(label_of(axes, "before").split("Brier ")[1].split(",")[0])
    assert before == pytest.approx(np.square(raw - true).mean(), abs=6e-4)
    assert float(label_of(axes, "after").split("ECE ")[1]) < 0.02
    assert float(label_of(axes, "before").split("ECE ")[1]) > 0.1
    after = next(line for line in axes.lines if str(line.get_label()).startswith("after"))
    assert np.asarray(after.get_xdata()) == pytest.approx(np.asarray(after.get_ydata()), abs=0.05)
    bars = figures[0].axes[1].containers[0]
    assert sum(bar.get_height() for bar in bars) == 20_000


def test_without_calibration_there_is_one_curve(
    tmp_path: Path, figures: list[Figure], splits: dict[str, pd.DataFrame]
) -> None:
    draw_reliability(tmp_path / "r.png", splits, Decision(1.0, 0.0, 0.3))
    _, labels = figures[0].axes[0].get_legend_handles_labels()
    assert [label.split(":")[0] for label in labels] == ["dev"]


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
        assert all(text.get_text() in {shortened(name) for name in names[:6]} for text in texts)
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


STRANGE = {
    "three patches": {"test": handmade("a", [0, 1, 0], [0.2, 0.7, 0.6])},
    "one patch": {"test": handmade("a", [1], [0.4])},
    "healthy only": {"dev": handmade("a", [0] * 5, [0.0, 0.2, 0.5, 0.9, 1.0])},
    "IDC only": {"dev": handmade("a", [1] * 5, [0.0, 0.2, 0.5, 0.9, 1.0])},
    "all equal": {"new": handmade("a", [0, 1, 0, 0], [0.5] * 4)},
    "all right": {"dev": handmade("a", [0, 1], [0.0, 1.0])},
    "names": {
        "dev": handmade("<script>alert(1)</script>", [0, 1], [0.4, 0.3]),
        "test": handmade("$x^{2", [0, 1, 1], [0.4, 0.6, 0.1]),
        "new": handmade("W" * 200, [0, 1, 1], [0.4, 0.6, 0.7]),
    },
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_strange_splits_have_pictures(
    tmp_path: Path, figures: list[Figure], name: str, threshold: float
) -> None:
    splits = STRANGE[name]
    patients = {split: patients_table(table, threshold) for split, table in splits.items()}
    pictures = [
        draw_confusion(tmp_path / "a.png", splits, threshold=threshold),
        draw_ranking(tmp_path / "b.png", splits, threshold=threshold),
        draw_probabilities(tmp_path / "c.png", splits, threshold=threshold),
        draw_reliability(tmp_path / "d.png", splits, Decision(1.7, 0.2, threshold)),
        draw_patients(tmp_path / "e.png", patients, microns_per_pixel=4.0),
        draw_patient_f1(tmp_path / "f.png", patients),
    ]
    for picture, figure in zip(pictures, figures, strict=True):
        assert_all_inside(figure)
        with Image.open(picture.path) as image:
            assert len(set(image.convert("L").resize((200, 200)).tobytes())) > 10
        assert picture.title
        assert picture.caption.endswith(".")
