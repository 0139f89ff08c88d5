"""How time and memory grow to the size of the public data set: ``python -m benchmarks.full_scale``.

Each stage runs in a process of its own on demo tissue of several sizes. What is measured already
stands in full_scale.json and isn't measured again, so an interrupted run goes on. What an earlier
version of the measurement has found doesn't count as measured.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, header
from benchmarks.measure import Ended, run_child, run_part
from benchmarks.ours import configured
from benchmarks.rows import FULL_PATCHES
from idc_lightning.data.source import find_source
from idc_lightning.files import write_text

RESULTS = Path(__file__).with_name("full_scale.json")

MEASUREMENT = 2
"""Version of the measurement: raise it when a stage changes, or what counts as memory.

1 added up the memory of processes, so that pages that a fork shares counted for each (RssAnon and
RssShmem); 2 counts them once (see `benchmarks.measure.MemoryWatch`).
"""

POINTS = {26_664: 32, 60_000: 279, 120_000: 279, FULL_PATCHES: 279}
"""Number of patients by number of patches."""

FINETUNE_BATCHES = 100


@dataclass(frozen=True)
class Point:
    """A data set of some size, and where it and its runs lie.

    Attributes:
        patients: Number of its patients.
        patches: Number of its patches.
        cache: Folder of its tissue, store and features.
    """

    patients: int
    patches: int
    cache: Path

    @property
    def overrides(self) -> tuple[str, ...]:
        """What commands are given to take it."""
        data = ("data=demo", f"data.patients={self.patients}", f"data.patches={self.patches}")
        return (*data, f"cache={self.cache}")

    @property
    def root(self) -> Path:
        """Folder of its patients' folders."""
        config = configured(*self.overrides)
        return find_source(config.data, config.cache).root

    @property
    def run(self) -> Path:
        """The run that later stages read."""
        return self.cache / "runs" / "train"

    def fresh(self, name: str) -> str:
        """The override of an empty folder for what a command writes."""
        folder = self.cache / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        return f"hydra.run.dir={folder}"


def write_pngs(point: Point) -> Ended:
    """Draw the tissue and write its PNGs."""
    return run_part("source", *point.overrides)


def index(point: Point) -> Ended:
    """List the files."""
    return run_part("index", *point.overrides)


def pack(point: Point) -> Ended:
    """``idc-prepare`` with an empty cache."""
    return run_child("idc_lightning.prepare", *point.overrides, point.fresh("prepare"))


def open_warm(point: Point) -> Ended:
    """Open the packed store."""
    return run_part("store", *point.overrides)


def train_notebook(point: Point) -> Ended:
    """``idc-train`` for an epoch of the notebook's experiment, features computed."""
    recipe = ("experiment=notebook", "model.weights=none", "trainer=cpu", "trainer.epochs=1")
    given = (*recipe, *point.overrides, "report=none", point.fresh("train"))
    return run_child("idc_lightning.train", *given)


def finetune(point: Point) -> Ended:
    """Some train batches of the whole net."""
    recipe = ("experiment=finetune", "model.weights=none", "trainer=cpu", "trainer.epochs=1")
    clock = (f"--batches={FINETUNE_BATCHES}", f"--began={time.time()}")
    return run_part("steps", *recipe, *point.overrides, *clock)


def predict(point: Point) -> Ended:
    """``idc-predict`` on all patches."""
    given = (f"run={point.run}", f"input={point.root}", f"cache={point.cache}", "report=none")
    return run_child("idc_lightning.predict", *given, point.fresh("predict"))


def judge(point: Point) -> Ended:
    """``idc-evaluate`` on dev and test."""
    given = (f"run={point.run}", f"cache={point.cache}", "report=none")
    return run_child("idc_lightning.evaluate", *given, point.fresh("judge"))


def judge_and_report(point: Point) -> Ended:
    """``idc-evaluate`` with figures and report."""
    given = (f"run={point.run}", f"cache={point.cache}")
    return run_child("idc_lightning.evaluate", *given, point.fresh("judge_and_report"))


def explore(point: Point) -> Ended:
    """``idc-explore`` with figures and report."""
    return run_child("idc_lightning.explore", *point.overrides, point.fresh("explore"))


STAGES: dict[str, Callable[[Point], Ended]] = {
    "draw and write PNGs": write_pngs,
    "index": index,
    "pack (idc-prepare)": pack,
    "open the warm store": open_warm,
    "train 1 epoch, experiment=notebook": train_notebook,
    f"{FINETUNE_BATCHES} batches, experiment=finetune": finetune,
    "predict all patches (idc-predict)": predict,
    "judge dev and test (idc-evaluate)": judge,
    "the same with report": judge_and_report,
    "explore with report (idc-explore)": explore,
}
"""In this order; later ones read what earlier ones wrote."""


def measure(stage: str, point: Point) -> dict[str, Any]:
    """An entry of full_scale.json.

    Its seconds are those of a command from start to end, or what a part of `benchmarks.child`
    says; ``start`` is how long after its start the first train batch had ended. ``commit`` is that
    of the project, null where it isn't known.
    """
    ended = STAGES[stage](point)
    printed = ended.printed if ended.out.rstrip().endswith("}") else {}
    entry: dict[str, Any] = {
        "patches": point.patches,
        "stage": stage,
        "measurement": MEASUREMENT,
        "commit": commit(),
        "seconds": round(printed.get("seconds", ended.seconds), 2),
        "peak_gb": round(ended.peak / 1e9, 3),
        "maxrss_gb": round(ended.maxrss / 1e9, 3),
    }
    if "start" in printed:
        entry["start"] = round(printed["start"], 2)
    return entry


def read(path: Path) -> list[dict[str, Any]]:
    """The content of full_scale.json; empty if there is none."""
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return entries


def measure_all(cache: Path, points: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """Measure what ``out`` lacks, and add it there in place of what an earlier version found.

    Returns:
        The entries of this version.
    """
    entries = read(out)
    for patches in points:
        point = Point(POINTS[patches], patches, cache / str(patches))
        for stage in STAGES:
            same = [entry for entry in entries if _key(entry) == (patches, stage)]
            if any(entry["measurement"] == MEASUREMENT for entry in same):
                continue
            print(f"{patches:,} patches: {stage}", flush=True)
            found = measure(stage, point)
            entries = [*(entry for entry in entries if entry not in same), found]
            lines = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
            write_text(out, f"[\n{lines}\n]\n")
    return [entry for entry in entries if entry["measurement"] == MEASUREMENT]


def _key(entry: dict[str, Any]) -> tuple[int, str]:
    return entry["patches"], entry["stage"]


def markdown(entries: Sequence[dict[str, Any]]) -> str:
    """A table of seconds and peak GB, one column for each size."""
    found = {(entry["stage"], entry["patches"]): entry for entry in entries}
    sizes = sorted({entry["patches"] for entry in entries})
    lines = [
        "| stage | " + " | ".join(f"{size:,} patches" for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for stage in STAGES:
        cells = [_cell(found.get((stage, size))) for size in sizes]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    cell = f"{entry['seconds']:,.1f} s, {entry['peak_gb']:.2f} GB"
    return f"{cell}, first step after {entry['start']:.1f} s" if "start" in entry else cell


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_scale", description=__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder for tissue and runs")
    parser.add_argument("--points", type=int, nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="full_scale.json")
    options = parser.parse_args()
    print(header("python -m benchmarks.full_scale"), flush=True)
    cache = options.cache.expanduser().absolute()
    print(markdown(measure_all(cache, options.points, options.out)))


if __name__ == "__main__":
    main()
