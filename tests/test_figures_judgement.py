from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_figures import (
    STRANGE,
    assert_all_inside,
    assert_shown,
    handmade,
    keep_figures,
    table_of,
)
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.metrics import precision_score, recall_score

import idc_lightning.figures.judgement as judgement
from idc_lightning.decision import Decision
from idc_lightning.figures.judgement import (
    draw_confusion,
    draw_probabilities,
    draw_ranking,
    draw_reliability,
)
from idc_lightning.figures.style import SPLIT_COLOURS
from idc_lightning.results.bootstrap import pooled_metrics

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return keep_figures(monkeypatch, judgement)


@pytest.fixture
def splits() -> dict[str, pd.DataFrame]:
    return {"dev": table_of(0), "test": table_of(1)}


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


def luminance(colour: object) -> float:
    """Of a colour, as WCAG 2.1 defines it."""
    rgb = np.array(to_rgb(colour))  # type: ignore[arg-type]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_numbers_of_any_share_can_be_read(tmp_path: Path, figures: list[Figure]) -> None:
    # 11 matrices of four cells, whose shares are 0, 0.025 ... 1.
    tables = {}
    for twentieth in range(11):
        called = [50 * twentieth, 50 * twentieth + 25]
        proba = [p for n in called for p in [0.9] * n + [0.1] * (1000 - n)]
        tables[str(twentieth)] = handmade("a", [0] * 1000 + [1] * 1000, proba)
    draw_confusion(tmp_path / "c.png", tables, threshold=0.5)
    seen = set()
    for axes in figures[0].axes:
        (image,) = axes.images
        shares = np.asarray(image.get_array())
        seen.update(shares.ravel().round(3).tolist())
        for text in axes.texts:
            column, row = (int(place) for place in text.get_position())
            behind = luminance(image.to_rgba(shares)[row, column, :3])
            darker, lighter = sorted([behind, luminance(text.get_color())])
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5
    assert seen >= {0.0, 0.025, 0.775, 0.8, 0.825, 0.85, 0.875, 0.9, 0.925, 0.975, 1.0}


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


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_strange_splits_have_pictures(
    tmp_path: Path, figures: list[Figure], name: str, threshold: float
) -> None:
    splits = STRANGE[name]
    pictures = [
        draw_confusion(tmp_path / "a.png", splits, threshold=threshold),
        draw_ranking(tmp_path / "b.png", splits, threshold=threshold),
        draw_probabilities(tmp_path / "c.png", splits, threshold=threshold),
        draw_reliability(tmp_path / "d.png", splits, Decision(1.7, 0.2, threshold)),
    ]
    for picture, figure in zip(pictures, figures, strict=True):
        assert_shown(picture, figure)
