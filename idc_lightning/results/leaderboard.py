"""Which configuration of several runs is better, and whether that is more than chance.

Configurations are ranked by dev, never by test. Runs that differ in nothing but the fold of
``split=kfold`` are one configuration: its predictions of all folds are pooled, so that each patient
counts once.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from idc_lightning.config import JudgeConfig, deciding
from idc_lightning.errors import IDCError, listed
from idc_lightning.results.bootstrap import Drawn, Interval, drawn_metrics
from idc_lightning.results.calibration import expected_calibration_error
from idc_lightning.results.run_folders import RunFolder, find_runs
from idc_lightning.results.summary import LABELS, Metrics

SPLITS = ("dev", "test")

FOLD = "split.fold"

LOWER = ("brier", "expected_calibration_error")
"""Metrics of which a lower value is the better one."""


@dataclass(frozen=True)
class Spread:
    """A metric over folds: mean and standard deviation (that of a sample); None if undefined."""

    mean: float | None
    sd: float | None


@dataclass(frozen=True)
class Configuration:
    """Runs that share all values that decide, but for the fold.

    Attributes:
        runs: One, or one for each fold, in their order.
        folds: Number of folds that there are; 0 if it isn't divided into folds.
        varied: Values that not all configurations share, by key.
        metrics: By split, those of its run, or of the pooled predictions of its folds.
        spread: By split, those over its folds; empty without folds.
        differences: By split, its metrics minus those of the reference, on the same patients; none
            of a split that they were judged on different ones of.
    """

    runs: tuple[RunFolder, ...]
    folds: int
    varied: dict[str, object]
    metrics: dict[str, Metrics]
    spread: dict[str, dict[str, Spread]]
    differences: dict[str, Metrics]

    @property
    def name(self) -> str:
        """Names of its runs."""
        return listed([run.name for run in self.runs], limit=6)

    @property
    def missing(self) -> list[int]:
        """Folds that no run has ended well of."""
        there = {fold_of(run) for run in self.runs}
        return [fold for fold in range(self.folds) if fold not in there]

    @property
    def seconds(self) -> float:
        """That its runs took together."""
        return sum(float(run.results["seconds"]) for run in self.runs if run.results)


@dataclass(frozen=True)
class Leaderboard:
    """Configurations, the best first.

    Attributes:
        metric: Of dev, by which they are ranked.
        confidence: Share of the bootstrap's draws inside an interval.
        varied: Keys whose values differ.
        reference: What all are compared to, as a reader sees it.
        base: The configuration of that; None if there is none at all.
        ranked: Those of which all folds ended well, then the others.
        failed: Runs that didn't end well.
        notes: Lines on what can't be compared.
    """

    metric: str
    confidence: float
    varied: list[str]
    reference: str
    base: Configuration | None
    ranked: list[Configuration]
    failed: list[RunFolder]
    notes: list[str]

    @property
    def short(self) -> dict[str, str]:
        """The varied keys by name, without their groups where no two would be called alike."""
        last = {key: key.rpartition(".")[2] for key in self.varied}
        alike = len(set(last.values())) < len(last)
        return {key: key if alike else name for key, name in last.items()}

    def table(self) -> pd.DataFrame:
        """One row for each configuration, then one for each run that failed.

        Columns: rank, runs, the varied keys, folds (number of those that ended well, if there are
        folds), each metric by split as ``dev_f1``, ``dev_f1_low`` and ``dev_f1_high`` (with folds
        also ``dev_f1_mean`` and ``dev_f1_sd``), its difference to the reference as
        ``dev_f1_difference`` with its interval, compared_to (runs of the reference), seconds,
        problem.
        """
        divided = any(configuration.folds for configuration in self.ranked)
        rows = [
            {
                "rank": rank,
                "runs": configuration.name,
                **configuration.varied,
                **({"folds": len(configuration.runs)} if divided else {}),
                **dict(_cells(configuration)),
                "compared_to": self.base.name if self.base else None,
                "seconds": round(configuration.seconds, 1),
                "problem": _problem(configuration),
            }
            for rank, configuration in enumerate(self.ranked, start=1)
        ]
        rows += [
            {"runs": run.name, **values_of(run, self.varied), "problem": run.problem}
            for run in self.failed
        ]
        table = pd.DataFrame(rows)
        last = ["seconds", "problem"]
        table = table[
            [*table.columns.drop(last, errors="ignore"), *table.columns.intersection(last)]
        ]
        return table.astype({"rank": "Int64"}) if "rank" in table else table


def rank_runs(
    folder: Path, metric: str, config: JudgeConfig, *, seed: int, reference: Path | None = None
) -> Leaderboard:
    """Compare the runs below a folder.

    Args:
        folder: Such as that of a sweep.
        metric: Of dev, by which they are ranked.
        config: Number of bootstrap draws, and the share of them inside an interval.
        seed: Seed of the bootstrap.
        reference: A run, by its name or folder, to whose configuration the others are compared;
            None for the best.

    Raises:
        IDCError: If there are no runs, their files can't be read, or the reference is none of them
            or lacks folds.
    """
    runs = find_runs(folder)
    if not runs:
        raise IDCError(f"{folder} holds no run of idc-train: give the folder of a sweep or of runs")
    varied = varied_keys(runs)
    pooled = [
        _Pooled(of_configuration, config, seed)
        for of_configuration in configurations(run for run in runs if run.results is not None)
    ]
    pooled.sort(key=lambda each: each.order(metric))
    base, named = _reference(pooled, reference, folder)
    ranked = [
        Configuration(
            runs=each.runs,
            folds=each.folds,
            varied=values_of(each.runs[0], varied),
            metrics=each.metrics,
            spread={split: _spread(each.runs, split) for split in SPLITS} if each.folds else {},
            differences={
                split: each.drawn[split].differences(base.drawn[split], config.confidence)
                for split in SPLITS
                if base and each.complete and base.cells[split].equals(each.cells[split])
            },
        )
        for each in pooled
    ]
    return Leaderboard(
        metric=metric,
        confidence=config.confidence,
        varied=varied,
        reference=named,
        base=ranked[pooled.index(base)] if base else None,
        ranked=ranked,
        failed=[run for run in runs if run.results is None],
        notes=list(_notes(ranked, named)),
    )


def fold_of(run: RunFolder) -> int | None:
    """Which fold a run has tested; None if its split has no folds."""
    return int(str(run.value(FOLD))) if run.config["split"]["name"] == "kfold" else None


def configurations(runs: Iterable[RunFolder]) -> list[tuple[RunFolder, ...]]:
    """Put runs together that differ in nothing that decides but the fold.

    A fold that was run again, and a run without folds, is a configuration of its own. Where the
    data lies counts, too: other folders may hold other tissue.
    """
    groups: dict[tuple[str, int], list[RunFolder]] = defaultdict(list)
    seen: dict[tuple[str, int | None], int] = defaultdict(int)
    for run in runs:
        values, fold = deciding(run.config), fold_of(run)
        values["root"] = run.value("data.root")
        if fold is not None:
            values = {**values, "split": {**values["split"], "fold": None}}
        key = json.dumps(values, sort_keys=True)
        groups[key, seen[key, fold]].append(run)
        seen[key, fold] += 1
    return [tuple(sorted(group, key=lambda run: fold_of(run) or 0)) for group in groups.values()]


def varied_keys(runs: Sequence[RunFolder]) -> list[str]:
    """Keys and groups that were typed for a run and have not the same value in all of them."""
    typed = dict.fromkeys(
        key for run in runs for key in run.overrides if not key.startswith("sweep.")
    )
    if any(fold_of(run) is not None for run in runs):
        typed.pop(FOLD, None)
    return [key for key in typed if len({str(run.value(key)) for run in runs}) > 1]


def values_of(run: RunFolder, keys: Sequence[str]) -> dict[str, object]:
    """The values of some keys; lists as text."""
    values = {key: run.value(key) for key in keys}
    return {
        key: value if value is None or isinstance(value, str | int | float) else json.dumps(value)
        for key, value in values.items()
    }


class _Pooled:
    """Predictions of a configuration, judged together.

    Attributes:
        runs: One, or one for each fold.
        folds: Number of folds that there are; 0 without folds.
        drawn: Metrics of its patches and of draws of their patients, by split.
        cells: The patches and their labels, ordered, by split.
        metrics: Those of results.json, or of the pooled predictions of folds, by split.
    """

    def __init__(self, runs: tuple[RunFolder, ...], config: JudgeConfig, seed: int) -> None:
        self.runs = runs
        folds = runs[0].config["split"]["folds"] if fold_of(runs[0]) is not None else 0
        self.folds = int(folds)
        self.drawn: dict[str, Drawn] = {}
        self.cells: dict[str, pd.DataFrame] = {}
        self.metrics: dict[str, Metrics] = {}
        for split in SPLITS:
            table = self._table(split)
            true, proba = table["true"].to_numpy(np.int64), table["proba"].to_numpy(np.float64)
            self.drawn[split] = drawn_metrics(
                true,
                proba,
                table["predicted"].to_numpy() == 1,
                table["patient_id"].to_numpy(np.str_),
                draws=config.draws,
                seed=seed,
            )
            self.cells[split] = table[["patient_id", "x", "y", "true"]]
            if self.folds:
                error = Interval(expected_calibration_error(true, proba), None, None)
                drawn = self.drawn[split].intervals(config.confidence)
                self.metrics[split] = {**drawn, "expected_calibration_error": error}
            else:
                results = runs[0].results or {}
                self.metrics[split] = {name: Interval(**results[split][name]) for name in LABELS}

    def _table(self, split: str) -> pd.DataFrame:
        cell = ["patient_id", "x", "y"]
        tables = [run.predictions(split) for run in self.runs]
        table = pd.concat(tables).sort_values(cell, ignore_index=True)
        twice = table.duplicated(cell)
        if twice.any():
            raise IDCError(
                f"{split} of the runs {listed([run.name for run in self.runs])} has patches of "
                f"patient {table['patient_id'][twice].iloc[0]} twice: they are no folds of one "
                "data set"
            )
        return table

    @property
    def complete(self) -> bool:
        """Whether all folds are there, if there are any."""
        return len(self.runs) >= self.folds

    def order(self, metric: str) -> tuple[bool, bool, float]:
        """Sorts the best to the front, and what lacks folds or a value to the end."""
        value = self.metrics["dev"][metric].value
        number = 0.0 if value is None else value
        return not self.complete, value is None, number if metric in LOWER else -number


def _reference(
    pooled: Sequence[_Pooled], reference: Path | None, folder: Path
) -> tuple[_Pooled | None, str]:
    """The configuration to which the others are compared, and what it is called.

    That is the one of a run, or the first if there is any.
    """
    if reference is None:
        return (pooled[0] if pooled else None), "the best on dev"
    place = reference.expanduser().resolve()
    for each in pooled:
        for run in each.runs:
            if reference == Path(run.name) or place == run.path.resolve():
                if each.complete:
                    return each, run.name
                raise IDCError(
                    f"reference={reference} has results of {len(each.runs)} of {each.folds} "
                    "folds: run the others, or compare to a run that has all"
                )
    there = listed([run.name for each in pooled for run in each.runs]) or "none"
    raise IDCError(
        f"reference={reference} is no run below {folder} that ended well: those are {there}"
    )


def _spread(runs: Sequence[RunFolder], split: str) -> dict[str, Spread]:
    found = {}
    for name in LABELS:
        values = [run.results[split][name]["value"] for run in runs if run.results]
        defined = np.array([value for value in values if value is not None], dtype=np.float64)
        mean = float(defined.mean()) if len(defined) else None
        found[name] = Spread(mean, float(defined.std(ddof=1)) if len(defined) > 1 else None)
    return found


def _cells(configuration: Configuration) -> Iterator[tuple[str, float | None]]:
    for split, metrics in configuration.metrics.items():
        spread = configuration.spread.get(split, {})
        for name, interval in metrics.items():
            yield f"{split}_{name}", interval.value
            yield f"{split}_{name}_low", interval.low
            yield f"{split}_{name}_high", interval.high
            if name in spread:
                yield f"{split}_{name}_mean", spread[name].mean
                yield f"{split}_{name}_sd", spread[name].sd
    for split, differences in configuration.differences.items():
        for name, interval in differences.items():
            yield f"{split}_{name}_difference", interval.value
            yield f"{split}_{name}_difference_low", interval.low
            yield f"{split}_{name}_difference_high", interval.high


def _problem(configuration: Configuration) -> str:
    missing = [str(fold) for fold in configuration.missing]
    return f"no result of fold {listed(missing)} of {configuration.folds}" if missing else ""


def _pruned(run: RunFolder) -> bool:
    return bool(run.results and run.results["pruned_after"])


def _notes(ranked: Sequence[Configuration], reference: str) -> Iterator[str]:
    for split in SPLITS:
        others = [each for each in ranked if split not in each.differences and not each.missing]
        if others:
            yield (
                f"{len(others)} configurations were judged on other patients of {split} than "
                f"{reference}, so part of a difference to them is that between patients"
            )
    pruned = [run.name for each in ranked for run in each.runs if _pruned(run)]
    if pruned:
        yield f"stopped early by the search, after fewer epochs: {listed(pruned)}"
    for each in ranked:
        if each.missing:
            yield f"{each.name}: {_problem(each)}, so it isn't compared"
