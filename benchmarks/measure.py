"""Times and memory of two ways to do the same, and the table of rows that says what is reached."""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from idc_lightning.files import write_text

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the project, in which child processes run."""

RESULTS = Path(__file__).with_name("results.json")
"""Where the full benchmark's results are kept."""

COLUMNS = ("row", "ours", "other", "unit", "ratio", "must")
"""What results.json says of a row."""

MATRICES = (1024, 2048, 3072, 4096)
"""Sides of the matrices of which the best rate is the chip's."""

INTERVAL = 0.05
"""Seconds between two looks at a process's memory, at least."""

REST = 20
"""Times as long as a look at it took, likewise."""

KEPT = 20
"""Last lines that a failed child process's message shows."""


@dataclass(frozen=True)
class Row:
    """One claim of the benchmark.

    Attributes:
        row: What is measured.
        ours: This project's value; None if it wasn't measured.
        other: What it is held against; None if `must` bounds `ours` itself.
        unit: Of both values, such as ``"images/s"``, ``"s"`` or ``"GB"``.
        ratio: How many times better ours is; None where there is no other.
        must: The least that the ratio must reach, or without a ratio the most that ours may be.
        note: What to know of it, for the printed table only.
    """

    row: str
    ours: float | None
    other: float | None
    unit: str
    ratio: float | None
    must: float
    note: str = field(default="", compare=False)

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None if it wasn't measured."""
        if self.ours is None:
            return None
        return self.ours <= self.must if self.ratio is None else self.ratio >= self.must

    def values(self) -> dict[str, Any]:
        """What results.json says of it, with four digits."""
        return {name: _rounded(value) for name, value in asdict(self).items() if name in COLUMNS}


def rate_row(
    row: str, ours: float, other: float, must: float, *, unit: str = "images/s", note: str = ""
) -> Row:
    """A row of rates, of which the higher is better."""
    return Row(row, ours, other, unit, ours / other, must, note)


def seconds_row(row: str, ours: float, other: float, must: float, *, note: str = "") -> Row:
    """A row of durations in s, of which the lower is better."""
    return Row(row, ours, other, "s", other / ours, must, note)


def bound_row(row: str, ours: float | None, most: float, *, unit: str, note: str = "") -> Row:
    """A row of a value that may be at most so high; None wasn't measured."""
    return Row(row, ours, None, unit, None, most, note)


def _rounded(value: object) -> object:
    if not isinstance(value, float) or value == 0:
        return value
    return round(value, 3 - math.floor(math.log10(abs(value))))


def alternate(
    *ways: Callable[[], float], number: int, warm_up: bool = True
) -> tuple[list[float], ...]:
    """Measure several ways in turn, so that all see the same mood of the machine.

    Args:
        ways: Each does its work once and returns what it measured.
        number: Turns of which each gives a value.
        warm_up: Whether a first turn is thrown away.

    Returns:
        The values of each way.
    """
    values: tuple[list[float], ...] = tuple([] for _ in ways)
    if warm_up:
        for way in ways:
            way()
    for _ in range(number):
        for way, found in zip(ways, values, strict=True):
            found.append(way())
    return values


def medians(*ways: Callable[[], float], number: int, warm_up: bool = True) -> tuple[float, ...]:
    """The median of each way's values; see `alternate`."""
    return tuple(map(statistics.median, alternate(*ways, number=number, warm_up=warm_up)))


def rate(work: Callable[[], int]) -> Callable[[], float]:
    """Make a way of work that returns its number of images: images/s."""

    def timed() -> float:
        began = time.perf_counter()
        images = work()
        return images / (time.perf_counter() - began)

    return timed


def matrix_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of products of matrices on the CPU, best of some sizes.

    Args:
        dtype: Their type. One that the hardware doesn't compute in takes minutes.
        seconds: How long each size is tried, at least.
    """
    return max(_matmul_rate(side, dtype, seconds) for side in MATRICES)


def _matmul_rate(side: int, dtype: torch.dtype, seconds: float) -> float:
    left = torch.randn(side, side, dtype=dtype)
    right = torch.randn(side, side, dtype=dtype)
    out = torch.empty(side, side, dtype=dtype)
    torch.matmul(left, right, out=out)
    best = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        torch.matmul(left, right, out=out)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


@dataclass(frozen=True)
class Ended:
    """What a child process took.

    Attributes:
        seconds: From its start to its end.
        peak: Most bytes that it and its children held at one moment, mapped pages of files apart.
        maxrss: Most bytes resident in one of the processes, such pages included, as the operating
            system counts it.
        out: What it printed to stdout.
    """

    seconds: float
    peak: int
    maxrss: int
    out: str

    @property
    def printed(self) -> dict[str, float]:
        """What a part of `benchmarks.child` has measured itself."""
        values: dict[str, float] = json.loads(self.out.splitlines()[-1])
        return values


def run_child(*command: str) -> Ended:
    """Run a module of Python in a process of its own, from the project's folder.

    Args:
        command: The module's name and its arguments.

    Raises:
        RuntimeError: If it fails; the message ends with its last lines.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=out, stderr=errors, text=True
        )
        with MemoryWatch(child.pid) as memory:
            code = child.wait()
        seconds = time.perf_counter() - began
        out.seek(0)
        errors.seek(0)
        printed, complaint = out.read(), errors.read()
    if code != 0:
        last = "\n".join([*printed.splitlines(), *complaint.splitlines()][-KEPT:])
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}:\n{last}")
    return Ended(seconds, memory.peak, memory.maxrss, printed)


def run_part(part: str, *arguments: str) -> Ended:
    """Run a part of `benchmarks.child` in a process of its own; see `run_child`."""
    return run_child("benchmarks.child", part, *arguments)


class MemoryWatch:
    """Look at the memory of a process and its children, until the block ends.

    Memory is what belongs to no file (Pss_Anon) or to shared memory (Pss_Shmem), of which Linux can
    give nothing back; pages of mapped files are left out, since it drops them when it needs room.
    A page that a forked child still shares with its parent counts once.

    Args:
        pid: The process.

    Attributes:
        peak: Most bytes of all processes together at one moment.
        maxrss: Most bytes resident in one process (VmHWM, the ``ru_maxrss`` of getrusage).
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0
        self.maxrss = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            began = time.perf_counter()
            family = _family(self.pid)
            held = [_sizes(f"{pid}/smaps_rollup", "Pss_Anon", "Pss_Shmem") for pid in family]
            self.peak = max(self.peak, sum(map(sum, held)))
            whole = [_sizes(f"{pid}/status", "VmHWM") for pid in family]
            self.maxrss = max(self.maxrss, *map(sum, whole), 0)
            # Linux passes all pages for it, which shall not slow down what is measured.
            if self._over.wait(max(INTERVAL, REST * (time.perf_counter() - began))):
                return


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    family = [pid]
    for member in family:  # grows as it is passed
        for task in Path(f"/proc/{member}/task").glob("*/children"):
            family += [int(child) for child in _content(task).split()]
    return family


def _sizes(file: str, *names: str) -> list[int]:
    """Bytes by Linux's names of them, from a file of /proc; none of a process that has ended."""
    lines = [line.partition(":") for line in _content(Path("/proc", file)).splitlines()]
    return [int(value.split()[0]) * 1024 for name, _, value in lines if name in names]


def _content(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended meanwhile
        return ""


def write_rows(rows: Sequence[Row], path: Path, *, before: Sequence[dict[str, Any]] = ()) -> None:
    """Write results.json whole or not at all.

    Args:
        rows: What was measured.
        path: The file.
        before: Rows of an earlier benchmark, which stay as far as they weren't measured again.
    """
    measured = {row.row: row.values() for row in rows}
    kept = {values["row"]: values for values in before}
    lines = ",\n".join(f"  {json.dumps(values)}" for values in (kept | measured).values())
    write_text(path, f"[\n{lines}\n]\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The content of results.json; empty if there is none."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as a table, and their notes below it."""
    out = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("row", "ours", "other", "unit", "ratio", "must", "met")
    for row in rows:
        values = [shown(value) for value in (row.ours, row.other)]
        met = {True: "yes", False: "NO", None: "not measured"}[row.met]
        table.add_row(row.row, *values, row.unit, shown(row.ratio), must_reach(row.values()), met)
    out.print(table)
    for row in rows:
        if row.note:
            out.print(f"{row.row}: {row.note}", highlight=False, markup=False)


def shown(value: float | None) -> str:
    """A number with four digits at most."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def must_reach(values: dict[str, Any]) -> str:
    """In words what a row of results.json has to reach."""
    bounded = values["other"] is None
    return f"at most {values['must']:g} {values['unit']}" if bounded else f"{values['must']:g} x"
