"""``idc-compare``: the leaderboard over the runs of a sweep, as a table, a CSV and a page."""

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from idc_lightning.cli import run_command
from idc_lightning.conf_folder import override
from idc_lightning.config import CompareConfig, parse
from idc_lightning.figures.leaderboard import written
from idc_lightning.files import write_text
from idc_lightning.report.leaderboard import difference_text, write_leaderboard
from idc_lightning.results.leaderboard import SPLITS, Leaderboard, rank_runs
from idc_lightning.results.summary import LABELS, console, interval_text

PRINTED = 20
"""Configurations in the printed table."""


def compare(config: CompareConfig, _: Path) -> Leaderboard:
    """Rank the runs below a folder; write leaderboard.csv and leaderboard.html into it.

    Args:
        config: Which runs, and how they are judged.

    Raises:
        IDCError: If there are no runs, the reference is none of them, their files can't be read or
            the leaderboard not be written.
    """
    folder = config.folder.expanduser()
    board = rank_runs(
        folder, config.metric, config.results, seed=config.seed, reference=config.reference
    )
    table = board.table().to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(folder / "leaderboard.csv", table)
    write_leaderboard(folder, board)
    out = console()
    if board.ranked:
        out.print(printed(board))
    for run in board.failed:
        out.print(f"{run.name}: {run.problem}", highlight=False, markup=False)
    for note in board.notes:
        out.print(note, highlight=False, markup=False)
    shown = f"written to: {folder / 'leaderboard.html'}"
    out.print(shown, highlight=False, markup=False, soft_wrap=True)
    return board


def compare_sweep(config: DictConfig, folder: Path) -> None:
    """Write the leaderboard of a sweep.

    Args:
        config: What its jobs of idc-train share.
        folder: Of the sweep.

    Raises:
        IDCError: As `compare` does.
    """
    values = {
        "folder": folder,
        "metric": config.sweep.metric,
        "reference": None,
        "results": {name: config.results[name] for name in ("draws", "confidence")},
        "seed": config.seed,
    }
    compare(parse(CompareConfig, values, ""), folder)


def printed(board: Leaderboard) -> Table:
    """The first configurations, for printing."""
    table = Table(
        title=f"{LABELS[board.metric]}, ranked by dev ({board.confidence:.0%} interval over "
        "patients)",
        title_justify="left",
    )
    for name in ("rank", "run", *board.short.values()):
        table.add_column(Text(name), justify="right" if name == "rank" else "left")
    for name in (*SPLITS, f"dev, minus\n{board.reference}"):
        table.add_column(Text(name), justify="right")
    for rank, configuration in enumerate(board.ranked[:PRINTED], start=1):
        table.add_row(
            str(rank),
            Text(configuration.name),
            *[Text(written(value)) for value in configuration.varied.values()],
            *[interval_text(configuration.metrics[split][board.metric]) for split in SPLITS],
            difference_text(configuration, "dev", board, board.metric),
        )
    if len(board.ranked) > PRINTED:
        table.caption = f"and {len(board.ranked) - PRINTED:,} more, see leaderboard.csv"
    return table


def main() -> None:
    """Entry point of the command, whose folder is typed without a key."""
    sys.argv = [
        word if number == 0 or word.startswith("-") or "=" in word else override("folder", word)
        for number, word in enumerate(sys.argv)
    ]
    run_command(compare, CompareConfig)


if __name__ == "__main__":
    main()
