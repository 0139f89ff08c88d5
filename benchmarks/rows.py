"""The rows of the benchmark: what is measured of ours, of the notebook, and what it must reach."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path

import pandas as pd
import torch

from benchmarks.measure import (
    Row,
    bound_row,
    matrix_rate,
    medians,
    rate,
    rate_row,
    run_child,
    run_part,
    seconds_row,
)
from benchmarks.notebook_loop import BATCH, EPOCHS, PHASES, NotebookLoop, decode_one_by_one
from benchmarks.ours import (
    FLIPS,
    bare_steps,
    configured,
    flops_per_image,
    load_train,
    predict,
    ready_data,
    train_by_framework,
    untrained_run,
)
from idc_lightning.config import Config
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.sample import sample_patches
from idc_lightning.trainer import MIXED, resolve_precision

JUDGED = ("dev", "test")

GRID = (
    "hydra/launcher=joblib",
    "model.head.dropout=0.3,0.4,0.5",
    "scheduler.max_lr=0.003,0.006,0.012,0.024",
    # Else the range test would set the rates.
    "callbacks.lr_range_test.apply=false",
)
GRID_RUNS = 12

FULL_PATCHES = 277_524
FULL = ("data=demo", "data.patients=279", f"data.patches={FULL_PATCHES}")
"""Demo tissue of as many patients and patches as the public data set has."""


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        patches: Patches of the data set that are taken, evenly of each patient and class; None
            takes all.
        alternations: Values of which the median is taken.
        runs: Likewise, of whole runs and grids.
        epochs: Of whole runs.
        sample: Patches by which the notebook's epoch is measured.
        batches: Train batches of ours in each value.
        loading: Seconds of the data path in each value, at least.
        report: Whether whole runs write their report.
    """

    patches: int | None
    alternations: int
    runs: int
    epochs: int
    sample: int
    batches: int
    loading: float
    report: bool


SCALES = {
    "full": Scale(
        patches=None,
        alternations=5,
        runs=5,
        epochs=EPOCHS,
        sample=4096,
        batches=40,
        loading=2.0,
        report=True,
    ),
    "quick": Scale(
        patches=2400,
        alternations=2,
        runs=1,
        epochs=3,
        sample=2000,
        batches=8,
        loading=0.5,
        report=False,
    ),
}


class Bench:
    """Measures rows on one data set.

    Args:
        root: Folder of its patches.
        scratch: Folder for caches and run folders; what lies there is the benchmark's own.
        scale: How much is measured.
        full_cache: Cache that holds `FULL`, or None to measure memory on ``root``.
        whole: Whether memory is wanted of `FULL` and of nothing less.
    """

    def __init__(
        self, root: Path, scratch: Path, scale: Scale, *, full_cache: Path | None, whole: bool
    ) -> None:
        self.root = root
        self.scratch = scratch
        self.scale = scale
        self.full_cache = full_cache
        self.whole = whole
        self._filled: Path | None = None
        self._fresh = (scratch / f"{number:03}" for number in count())

    def fresh(self) -> Path:
        """A folder that doesn't exist yet."""
        return next(self._fresh)

    def overrides(self, cache: Path) -> tuple[str, ...]:
        """What all runs on the data set are given; no weights are downloaded."""
        sample = "null" if self.scale.patches is None else str(self.scale.patches)
        data = ("data=idc", f"data.root={self.root}", f"data.sample={sample}")
        return (*data, f"cache={cache}", "trainer=cpu", "model.weights=none")

    def config(self, *overrides: str) -> Config:
        """The configuration of a whole net on the notebook's split."""
        shared = self.overrides(self.scratch / "shared")
        return configured("split=notebook", *shared, *overrides)

    @cached_property
    def data(self) -> IDCDataModule:
        """All patches, with the flips of the notebook only."""
        return ready_data(self.config(*FLIPS))

    @cached_property
    def sample(self) -> pd.DataFrame:
        """Patches on which the notebook is measured, evenly of each patient and class."""
        return sample_patches(self.data.table, self.scale.sample, seed=0)

    @cached_property
    def notebook(self) -> NotebookLoop:
        """The notebook on the sample, after an epoch that warms up."""
        loop = NotebookLoop(self.sample, self.data.index.root)
        loop.epochs(1)
        return loop

    def notebook_seconds(self) -> float:
        """Seconds of the notebook's epochs on all patches, each phase scaled by its patches."""
        seconds = self.notebook.epochs(1)
        shares = {p: len(self.data.rows(p)) / self.notebook.sizes[p] for p in PHASES}
        return self.scale.epochs * sum(seconds[p] * shares[p] for p in PHASES)

    @property
    def scaled(self) -> str:
        """A note on how the notebook's cost is found."""
        return (
            f"{self.scale.epochs} epochs of {len(self.data.table):,} patches; the notebook's by "
            f"an epoch of {len(self.sample):,}"
        )

    def store(self) -> Iterator[Row]:
        """Building the store against decoding in one process."""
        paths = self.data.index.table["path"].tolist()

        def ours() -> float:
            cache = self.fresh()
            measured = run_part("store", *self.overrides(cache)).printed
            shutil.rmtree(cache)
            return measured["patches"] / measured["seconds"]

        def other() -> int:
            return len(decode_one_by_one(self.data.index.root, paths))

        found, single = medians(ours, rate(other), number=self.scale.alternations)
        yield rate_row("building the store", found, single, 1.5, note=f"{len(paths):,} patches")

    def loading(self) -> Iterator[Row]:
        """The data path into float batches."""

        def path(batch_size: int) -> Callable[[], float]:
            data = ready_data(self.config(*FLIPS, f"data.batch_size={batch_size}"))
            return rate(lambda: load_train(data, self.scale.loading))

        def other() -> int:
            return sum(len(batch["label"]) for batch in self.notebook.loaders["train"])

        size = self.data.batch_size
        ways = (path(size), path(BATCH), rate(other))
        ours, small, notebook = medians(*ways, number=self.scale.alternations)
        note = f"ours in batches of {size}; in the notebook's {BATCH}: {small:,.0f} images/s"
        yield rate_row("data path into float batches", ours, notebook, 12, note=note)

    def training(self) -> Iterator[Row]:
        """The train step of the full net, against the notebook and against a bare loop."""
        config = self.config("trainer.epochs=1", "callbacks.progress=none")
        data = ready_data(config)
        loop = NotebookLoop(self.sample, self.data.index.root, learning="everything")
        loop.network.train()
        batches = list(islice(loop.loaders["train"], self.scale.batches))

        steps: list[float] = []
        bare: list[float] = []

        def ours() -> float:
            watch = train_by_framework(
                config, data, self.fresh(), self.scale.batches, bare_steps(config, data)
            )
            steps.extend(watch.steps)
            bare.extend(watch.others)
            return watch.images / watch.seconds

        def other() -> int:
            for batch in batches:
                loop.step(batch, "train")[2].item()
            return BATCH * len(batches)

        found, notebook = medians(ours, rate(other), number=self.scale.alternations)
        note = f"ours in batches of {data.batch_size} with the data path, the notebook without it"
        yield rate_row("train step, full net", found, notebook, 1.8, note=note)
        own, alone = (data.batch_size / statistics.median(seconds) for seconds in (steps, bare))
        note = f"medians of {len(steps)} steps, each beside one of the bare loop"
        yield rate_row("train step, full net, against a bare loop", own, alone, 0.95, note=note)

    def predictions(self) -> Iterator[Row]:
        """Dev and test, against the notebook's phases and the chip's limit."""
        config = self.config(*FLIPS)
        run = untrained_run(config, self.data)
        flops = flops_per_image(run.classifier.network)
        dtype = MIXED.get(resolve_precision(config.trainer, "cpu"), torch.float32)

        def ours() -> int:
            return predict(run, self.data, JUDGED)

        def other() -> int:
            for phase in JUDGED:
                self.notebook.run_phase(phase)
            return sum(self.notebook.sizes[phase] for phase in JUDGED)

        def limit() -> float:
            return matrix_rate(dtype) / flops

        found, notebook, allowed = medians(
            rate(ours), rate(other), limit, number=self.scale.alternations
        )
        yield rate_row("predictions for dev and test", found, notebook, 2)
        reached = f"{allowed * flops / 1e12:.2f} TFLOP/s in {str(dtype).removeprefix('torch.')}"
        note = f"{flops / 1e9:.3f} GFLOP an image, {reached}"
        name = "predictions, against the chip's matrix rate"
        yield rate_row(name, found, allowed, 0.6, note=note)

    def train(self, cache: Path, *overrides: str) -> float:
        """Seconds of idc-train as a command, the notebook's experiment with its epochs."""
        report = () if self.scale.report else ("report=none",)
        epochs = f"trainer.epochs={self.scale.epochs}"
        given = (*self.overrides(cache), epochs, *report, *overrides)
        return run_child("idc_lightning.train", "experiment=notebook", *given).seconds

    def run(self, cache: Path) -> float:
        """Seconds of a single run, whose folder is removed."""
        folder = self.fresh()
        seconds = self.train(cache, f"hydra.run.dir={folder}")
        shutil.rmtree(folder)
        return seconds

    def cold(self) -> float:
        """Seconds of a run with nothing in its cache; the first cache is kept for `warm_cache`."""
        cache = self.fresh()
        seconds = self.run(cache)
        if self._filled is None:
            self._filled = cache
        else:
            shutil.rmtree(cache)
        return seconds

    def warm_cache(self) -> Path:
        """A cache that a run has filled."""
        if self._filled is None:
            self.cold()
        assert self._filled is not None
        return self._filled

    def grid(self) -> float:
        """Seconds of a sweep, with a warm cache."""
        cache, folder = self.warm_cache(), self.fresh()
        seconds = self.train(cache, f"hydra.sweep.dir={folder}", *GRID, "-m")
        finished = len(list(folder.glob("*/results.json")))
        if finished != GRID_RUNS:
            raise RuntimeError(f"{finished} of {GRID_RUNS} runs of the grid ended well")
        shutil.rmtree(folder)
        return seconds

    def from_nothing(self) -> Iterator[Row]:
        """The notebook's epochs, store and features built from nothing."""
        ours, other = self._whole(self.cold)
        yield seconds_row(
            "the notebook's training, from nothing", ours, other, 35, note=self.scaled
        )

    def warm(self) -> Iterator[Row]:
        """The same with a warm cache."""
        cache = self.warm_cache()
        ours, other = self._whole(lambda: self.run(cache))
        yield seconds_row("the notebook's training, warm cache", ours, other, 90, note=self.scaled)

    def sweep(self) -> Iterator[Row]:
        """A grid of runs, against as many of the notebook."""
        ours, other = self._whole(self.grid)
        note = f"{GRID_RUNS} runs of {self.scaled}"
        yield seconds_row("a grid of 12 such runs", ours, GRID_RUNS * other, 80, note=note)

    def _whole(self, ours: Callable[[], float]) -> tuple[float, ...]:
        return medians(ours, self.notebook_seconds, number=self.scale.runs, warm_up=False)

    def memory(self) -> Iterator[Row]:
        """Peak memory of training on as many patches as the public data set has."""
        name, most = "peak memory of training", 1.5
        if self.whole and self.full_cache is None:
            note = (
                f"not measured on {FULL_PATCHES:,} patches: give --full-cache=<folder that "
                "benchmarks.full_scale has filled>"
            )
            yield bound_row(name, None, most, unit="GB", note=note)
            return
        if self.full_cache is None:
            given, patches = self.overrides(self.scratch / "shared"), len(self.data.table)
        else:
            full = (*FULL, f"cache={self.full_cache}", "trainer=cpu", "model.weights=none")
            given, patches = full, FULL_PATCHES
        folder = self.fresh()
        single = ("trainer.epochs=1", f"hydra.run.dir={folder}")
        ended = run_child("idc_lightning.train", "experiment=notebook", *single, *given)
        shutil.rmtree(folder)
        note = (
            f"idc-train experiment=notebook on {patches:,} patches, an epoch with its report; "
            f"without mapped pages of files, {ended.maxrss / 1e9:.2f} GB with them"
        )
        yield bound_row(name, ended.peak / 1e9, most, unit="GB", note=note)


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "store": Bench.store,
    "loading": Bench.loading,
    "training": Bench.training,
    "predictions": Bench.predictions,
    "cold": Bench.from_nothing,
    "warm": Bench.warm,
    "grid": Bench.sweep,
    "memory": Bench.memory,
}
"""Rows by the names that the command knows; some give two.

What a row is called doesn't depend on the scale, which its note tells, so that results of several
machines and scales can be held together row by row.
"""


def measured(bench: Bench, names: list[str]) -> Iterator[tuple[str, list[Row], float]]:
    """Measure rows one after another: name, rows and the seconds that took."""
    for name in names:
        began = time.perf_counter()
        rows = list(ROWS[name](bench))
        yield name, rows, time.perf_counter() - began
