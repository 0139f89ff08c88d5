"""The leaderboard of a sweep as a page: ranking, folds, varied values, failed jobs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from idc_lightning.figures.leaderboard import draw_ranking, draw_varied, written
from idc_lightning.report.page import MISSING, DataTable, Section, write_report
from idc_lightning.results.leaderboard import LOWER, SPLITS, Configuration, Leaderboard, Spread
from idc_lightning.results.summary import LABELS, UNDEFINED, interval_text

SHOWN = ("f1", "balanced_accuracy", "auroc", "average_precision", "brier")
"""Metrics of the tables; leaderboard.csv has all."""


def write_leaderboard(folder: Path, board: Leaderboard) -> None:
    """Write leaderboard.html and its figures into a folder.

    Raises:
        IDCError: If a file can't be written.
    """
    write_report(
        folder / "leaderboard.html",
        title=f"Leaderboard of {folder.resolve().name}",
        facts={
            "Ranked by": f"{LABELS[board.metric]} of dev",
            "Configurations": f"{len(board.ranked):,}",
            "Failed runs": f"{len(board.failed):,}",
            "Varied": ", ".join(board.varied) or "nothing",
            "Compared to": board.base.name if board.base else "nothing",
        },
        sections=_sections(folder / "leaderboard", board),
        notes=board.notes,
    )


def _sections(figures: Path, board: Leaderboard) -> Iterator[Section]:
    if board.ranked:
        pictures = [draw_ranking(figures / "ranking.png", board)]
        if board.varied:
            pictures.append(draw_varied(figures / "varied.png", board))
        yield Section(
            "Ranking",
            "By dev, never by test: whoever picks the best of many by test has no test left. Even "
            "on dev the best of many is a little too good, and the more so the more there are.",
            [_ranking(board), *pictures],
        )
        yield Section(
            "All metrics",
            "At the threshold of each run, as its results.json says.",
            [_metrics(board, split) for split in SPLITS],
        )
        yield Section(
            f"Differences to {board.reference}",
            "Each configuration minus that one, by the paired bootstrap on the same patients, at "
            "the threshold of each run; folds are taken together. A positive difference is "
            "better, of the Brier score a negative one. An interval that holds 0 says that chance "
            "suffices to explain it.",
            [_differences(board, split) for split in SPLITS],
        )
    divided = [configuration for configuration in board.ranked if configuration.folds]
    if divided:
        yield Section(
            "Folds",
            "Mean ± standard deviation over the folds, each of which has other test patients. The "
            "deviation is that between folds, not the error of the mean.",
            [_folds(divided, board, split) for split in SPLITS],
        )
    if board.failed:
        yield Section("Failed runs", "", [_failed(board)])


def _ranking(board: Leaderboard) -> DataTable:
    rows = [
        {
            "rank": rank,
            "run": configuration.name,
            **_varied(configuration, board),
            **{
                split: interval_text(configuration.metrics[split][board.metric]) for split in SPLITS
            },
            **{
                f"{split}, minus {board.reference}": difference_text(
                    configuration, split, board, board.metric
                )
                for split in SPLITS
            },
            "minutes": configuration.seconds / 60,
        }
        for rank, configuration in enumerate(board.ranked, start=1)
    ]
    sign = "positive" if board.metric in LOWER else "negative"
    caption = (
        f"{LABELS[board.metric]} with its {board.confidence:.0%} interval over patients, and its "
        f"difference on the same patients, {sign} where {board.reference} is better."
    )
    return DataTable("Configurations", caption, pd.DataFrame(rows))


def difference_text(
    configuration: Configuration, split: str, board: Leaderboard, metric: str
) -> str:
    """A configuration's difference to the reference in a metric, as a reader sees it."""
    if configuration is board.base or split not in configuration.differences:
        return MISSING
    return interval_text(configuration.differences[split][metric], sign="+")


def _metrics(board: Leaderboard, split: str) -> DataTable:
    caption = "Value with its interval."
    return _by_metric(
        f"Metrics of {split}",
        caption,
        board,
        lambda configuration, name: interval_text(configuration.metrics[split][name]),
    )


def _differences(board: Leaderboard, split: str) -> DataTable:
    caption = "Difference with its interval."
    return _by_metric(
        f"Differences on {split}",
        caption,
        board,
        lambda configuration, name: difference_text(configuration, split, board, name),
    )


def _by_metric(
    title: str, caption: str, board: Leaderboard, text: Callable[[Configuration, str], str]
) -> DataTable:
    """A row for each configuration, with the text of each metric that is shown."""
    rows = [
        {
            "rank": rank,
            **_varied(configuration, board),
            **{LABELS[name]: text(configuration, name) for name in SHOWN},
        }
        for rank, configuration in enumerate(board.ranked, start=1)
    ]
    return DataTable(title, caption, pd.DataFrame(rows))


def _folds(divided: list[Configuration], board: Leaderboard, split: str) -> DataTable:
    rows = [
        {
            "rank": board.ranked.index(configuration) + 1,
            **_varied(configuration, board),
            "folds": f"{len(configuration.runs)} of {configuration.folds}",
            **{LABELS[name]: _spread_text(configuration.spread[split][name]) for name in SHOWN},
        }
        for configuration in divided
    ]
    return DataTable(f"Folds, {split}", "Mean ± standard deviation.", pd.DataFrame(rows))


def _spread_text(spread: Spread) -> str:
    if spread.mean is None:
        return UNDEFINED
    return f"{spread.mean:.3f}" if spread.sd is None else f"{spread.mean:.3f} ± {spread.sd:.3f}"


def _failed(board: Leaderboard) -> DataTable:
    rows = [
        {
            "run": run.name,
            "typed": " ".join(f"{key}={value}" for key, value in run.overrides.items()),
            "reason": run.problem,
        }
        for run in board.failed
    ]
    return DataTable("Runs that didn't end well", "", pd.DataFrame(rows))


def _varied(configuration: Configuration, board: Leaderboard) -> dict[str, str]:
    return {board.short[key]: written(value) for key, value in configuration.varied.items()}
