from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_figures import assert_all_inside, keep_figures
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import idc_lightning.figures.training as training
from idc_lightning.errors import IDCError
from idc_lightning.figures.training import (
    DEV_METRICS,
    draw_dev_metrics,
    draw_losses,
    draw_rate,
    draw_training,
    read_curves,
)

pytestmark = pytest.mark.filterwarnings("error")

F1 = [0.5, 0.7, 0.6, 0.7]
LOSS = [0.6, 0.5, 0.45, 0.4]


def write_log(
    path: Path, *, epochs: int = 4, steps: int = 10, tested: bool = True, name: str = "SGD"
) -> Path:
    """A log with the rows of Lightning's CSVLogger: rates, batches, dev and train by themselves."""
    rows: list[dict[str, float]] = []
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows.append({"step": step, f"lr-{name}": 0.01 * (step + 1)})
            rows.append({"step": step, "epoch": epoch, "train/loss": 1 / (step + 1)})
        last = {"step": (epoch + 1) * steps - 1, "epoch": epoch}
        metrics = {f"dev/{metric}": F1[epoch % 4] for metric in DEV_METRICS}
        rows.append({**last, "dev/loss": LOSS[epoch % 4], **metrics})
        rows.append({**last, "train/loss_epoch": 0.9 - 0.1 * (epoch % 4), "train/f1": 0.3})
    if tested:
        rows.append({"step": epochs * steps, "epoch": epochs, "test/loss": 0.42, "test/f1": 0.6})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    found = next(one for one in axes.lines if str(one.get_label()).startswith(label))
    return np.asarray(found.get_xdata()).tolist(), np.asarray(found.get_ydata()).tolist()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return keep_figures(monkeypatch, training)


def test_a_log_becomes_epochs_and_steps(tmp_path: Path) -> None:
    curves = read_curves(write_log(tmp_path / "metrics.csv"), monitor="dev/f1")
    assert curves.epochs.index.tolist() == [1, 2, 3, 4]
    assert curves.epochs["train"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert curves.epochs["dev"].tolist() == LOSS
    assert curves.epochs["recall"].tolist() == F1
    assert curves.steps["step"].tolist() == list(range(40))
    assert curves.steps["loss"].tolist() == pytest.approx([1 / (n + 1) for n in range(40)])
    assert curves.steps["rate"].tolist() == pytest.approx([0.01 * (n + 1) for n in range(40)])
    assert curves.test == 0.42


def test_a_log_without_the_first_epochs_names_none_as_the_best(tmp_path: Path) -> None:
    path = write_log(tmp_path / "metrics.csv")
    log = pd.read_csv(path)
    log[~(log["epoch"] < 2)].to_csv(path, index=False)  # begun with logger.csv=false
    curves = read_curves(path, monitor="dev/f1")
    assert curves.epochs.index.tolist() == [3, 4]
    assert curves.best is None
    assert len(draw_training(path, tmp_path / "figures", "dev/f1")) == 3


def test_a_log_has_three_pictures(tmp_path: Path) -> None:
    pictures = draw_training(write_log(tmp_path / "metrics.csv"), tmp_path / "figures", "dev/f1")
    assert [picture.path.name for picture in pictures] == [
        "loss.png",
        "learning_rate.png",
        "dev_metrics.png",
    ]
    assert all(picture.path.is_file() for picture in pictures)


def test_the_best_epoch_is_the_first_of_the_best(tmp_path: Path) -> None:
    path = write_log(tmp_path / "metrics.csv")
    assert read_curves(path, monitor="dev/f1").best == 2
    assert read_curves(path, monitor="dev/loss").best == 4


def test_epochs_without_the_metric_are_not_the_best(tmp_path: Path) -> None:
    path = write_log(tmp_path / "metrics.csv")
    log = pd.read_csv(path)
    log.loc[log["dev/f1"].eq(0.7) & log["epoch"].eq(1), "dev/f1"] = np.nan
    log.to_csv(path, index=False)
    assert read_curves(path, monitor="dev/f1").best == 4
    log.assign(**{"dev/f1": np.nan}).to_csv(path, index=False)
    assert read_curves(path, monitor="dev/f1").best is None


def test_any_optimizers_rate_is_read(tmp_path: Path) -> None:
    curves = read_curves(write_log(tmp_path / "metrics.csv", name="AdamW"), monitor="dev/f1")
    assert curves.steps["rate"].iloc[0] == 0.01


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "epoch,step\n0,1\n", "\x00\xff", "a,b\n1,2\n1,2,3,4\n"]
)
def test_files_that_are_no_log_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.csv").write_text(content, encoding="latin-1")
    with told("metrics.csv is no log of a run"):
        read_curves(tmp_path / "metrics.csv", monitor="dev/f1")


def without(path: Path, column: str) -> Path:
    pd.read_csv(path).drop(columns=column).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("column", ["epoch", "step", "train/loss_epoch", "dev/loss", "dev/auroc"])
def test_a_column_that_is_lacking_is_named(tmp_path: Path, column: str) -> None:
    path = without(write_log(tmp_path / "metrics.csv"), column)
    with told(f"metrics.csv is no log of a run that learned: it has no {column}"):
        read_curves(path, monitor="dev/f1")


def test_the_monitored_column_is_needed_too(tmp_path: Path) -> None:
    path = write_log(tmp_path / "metrics.csv")
    with told("it has no dev/specificity"):
        read_curves(path, monitor="dev/specificity")


def test_logs_of_runs_that_ended_before_dev_are_told(tmp_path: Path) -> None:
    path = write_log(tmp_path / "metrics.csv")
    log = pd.read_csv(path)
    header, first, no_number = log[:0], log[:15], log.copy()
    no_number.loc[no_number["dev/loss"].notna(), "epoch"] = np.nan
    for early in (header, first, no_number):
        early.to_csv(path, index=False)
        with told("metrics.csv holds no epoch of a run in which dev was judged"):
            read_curves(path, monitor="dev/f1")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("epoch", "two"),
        ("epoch", 0.5),
        ("epoch", -1.0),
        ("step", "inf"),
        ("step", 1e300),
        ("dev/f1", "0.5.1"),
        ("dev/recall", "2024-01-01"),
        ("lr-SGD", "fast"),
        ("test/loss", "x" * 1000),
    ],
)
def test_values_that_are_no_numbers_are_told(tmp_path: Path, column: str, value: object) -> None:
    path = write_log(tmp_path / "metrics.csv")
    log = pd.read_csv(path).astype({column: object})
    log.loc[7, column] = value
    log.to_csv(path, index=False)
    with told(f"metrics.csv is damaged: {column} is {str(value)[:40]!r} in line 9"):
        read_curves(path, monitor="dev/f1")


def test_rows_longer_than_the_header_are_told(tmp_path: Path) -> None:
    path = write_log(tmp_path / "metrics.csv")
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"0,{row}" for row in rows)]))
    with told("its rows have more values than its header names"):
        read_curves(path, monitor="dev/f1")


@settings(max_examples=60)
@given(cut=st.integers(0, 4000), rest=st.text(',.-0e9\n"ax', max_size=8))
def test_a_log_cut_anywhere_is_drawn_or_told(
    tmp_path_factory: pytest.TempPathFactory, cut: int, rest: str
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    path = write_log(folder / "metrics.csv")
    path.write_text(path.read_text()[:cut] + rest)
    with suppress(IDCError):  # any other exception fails the test
        curves = read_curves(path, monitor="dev/f1")
        assert curves.epochs["dev"].notna().any()
        assert curves.epochs.index.dtype == curves.steps["step"].dtype == np.int64


def test_an_absent_log_is_told(tmp_path: Path) -> None:
    with told("can't read", "metrics.csv"):
        read_curves(tmp_path / "metrics.csv", monitor="dev/f1")


def test_losses_show_train_dev_the_best_epoch_and_test_once(
    tmp_path: Path, figures: list[Figure]
) -> None:
    curves = read_curves(write_log(tmp_path / "metrics.csv"), monitor="dev/f1")
    picture = draw_losses(tmp_path / "loss.png", curves)
    by_epoch, by_step = figures[0].axes
    assert line(by_epoch, "train") == ([1, 2, 3, 4], pytest.approx([0.9, 0.8, 0.7, 0.6]))
    assert line(by_epoch, "dev") == ([1, 2, 3, 4], LOSS)
    assert line(by_epoch, "best epoch: 2,\nby F1 (IDC) of dev")[0] == [2, 2]
    assert line(by_epoch, "test") == ([2], [0.42])
    assert len(line(by_step, "batch")[0]) == 40
    smooth = line(by_step, "mean of 2")[1]
    assert smooth[1] == pytest.approx((1 + 1 / 2) / 2)
    assert "mean over 2 logged batches" in picture.caption
    assert "judged once" in picture.caption
    assert_all_inside(figures[0])


def test_a_run_without_test_shows_none(tmp_path: Path, figures: list[Figure]) -> None:
    curves = read_curves(write_log(tmp_path / "metrics.csv", tested=False), monitor="dev/loss")
    picture = draw_losses(tmp_path / "loss.png", curves)
    labels = [str(one.get_label()) for one in figures[0].axes[0].lines]
    assert not any(label.startswith("test") for label in labels)
    assert "best epoch: 4,\nby loss of dev" in labels
    assert "Test" not in picture.caption


def test_metrics_of_dev_are_told_apart(tmp_path: Path, figures: list[Figure]) -> None:
    curves = read_curves(write_log(tmp_path / "metrics.csv"), monitor="dev/f1")
    draw_dev_metrics(tmp_path / "dev.png", curves)
    (axes,) = figures[0].axes
    for label in ("F1 (IDC)", "AUROC", "balanced accuracy", "precision (IDC)", "recall (IDC)"):
        assert line(axes, label) == ([1, 2, 3, 4], F1)
    drawn = axes.lines[: len(DEV_METRICS)]
    assert len({str(one.get_color()) for one in drawn}) == len(DEV_METRICS)
    assert len({str(one.get_marker()) for one in drawn}) == len(DEV_METRICS)
    assert line(axes, "best epoch: 2")[0] == [2, 2]


def test_the_rate_is_drawn_by_step(tmp_path: Path, figures: list[Figure]) -> None:
    curves = read_curves(write_log(tmp_path / "metrics.csv", name="AdamW"), monitor="dev/f1")
    draw_rate(tmp_path / "rate.png", curves)
    (drawn,) = figures[0].axes[0].lines
    assert np.asarray(drawn.get_xdata()).tolist() == list(range(40))
    assert np.asarray(drawn.get_ydata()) == pytest.approx(0.01 * np.arange(1, 41))


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 3), (1, 200), (2, 30), (60, 5)])
def test_short_and_long_runs_can_be_seen(
    tmp_path: Path, figures: list[Figure], epochs: int, steps: int
) -> None:
    path = write_log(tmp_path / "metrics.csv", epochs=epochs, steps=steps)
    curves = read_curves(path, monitor="dev/f1")
    for draw in (draw_losses, draw_rate, draw_dev_metrics):
        assert draw(tmp_path / f"{draw.__name__}.png", curves).path.stat().st_size > 5000
    for figure in figures:
        assert_all_inside(figure)
        for axes in figure.axes:
            low, high = axes.get_xlim()
            for one in axes.lines:
                x = np.asarray(one.get_xdata())
                assert len(x) > 1 or one.get_marker() != "none"
                assert low <= x.min() <= x.max() <= high


def test_a_run_without_logged_steps_still_has_pictures(
    tmp_path: Path, figures: list[Figure]
) -> None:
    path = without(write_log(tmp_path / "metrics.csv"), "lr-SGD")
    assert len(draw_training(path, tmp_path / "rates", "dev/f1")) == 2
    loss, _ = draw_training(without(path, "train/loss"), tmp_path / "steps", "dev/f1")
    assert [len(figure.axes) for figure in figures] == [2, 1, 1, 1]
    assert line(figures[2].axes[0], "dev") == ([1, 2, 3, 4], LOSS)
    assert "logged batches" not in loss.caption
    for figure in figures:
        assert_all_inside(figure)
