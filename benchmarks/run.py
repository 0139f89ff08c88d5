"""The benchmark as a command: ``python -m benchmarks.run [quick] [--data <folder>] [--rows ...]``.

Measures this project beside the notebook on the same patches, prints the table and writes
a file of results after each row.
"""

import argparse
import os
import tempfile
from pathlib import Path

from benchmarks.machine import header
from benchmarks.measure import RESULTS, Row, print_rows, read_rows, write_rows
from benchmarks.rows import ROWS, SCALES, Bench, measured
from idc_lightning.cli import prepare_process
from idc_lightning.data.demo import make_demo

DEMO = {"full": (32, 26_664), "quick": (12, 2_400)}
"""Patients and patches of the demo tissue that is made where no data is given."""

OUT = {"full": RESULTS, "quick": RESULTS.with_name("results_quick.json")}
"""Where each scale keeps its results, apart since its values say nothing of the other's."""


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("scale", nargs="?", choices=SCALES, default="full")
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("IDC_ROOT"),
        help="folder of patients; else that of the environment's IDC_ROOT, else demo tissue",
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument(
        "--full-cache", type=Path, help="cache of benchmarks.full_scale, to measure memory on"
    )
    parser.add_argument(
        "--out", type=Path, help="a new file; else results.json, of quick results_quick.json"
    )
    options = parser.parse_args(arguments)
    own = OUT[options.scale]
    if options.out is None or options.out.resolve() == own:
        options.out = own
    elif options.out.exists() or options.out.resolve() in OUT.values():
        # Its rows don't tell of which scale they are, and rows of another one must not stay.
        parser.error(f"{options.out} may hold another scale: choose a new file, or no --out")
    return options


def patches_folder(options: argparse.Namespace, scratch: Path) -> Path:
    """Folder of the patches, which are drawn if none are given."""
    if options.data is not None:
        return Path(options.data).expanduser().absolute()
    patients, patches = DEMO[options.scale]
    make_demo(scratch / "demo", patients=patients, patches=patches, seed=0)
    return scratch / "demo"


def run(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """Measure the rows that are asked for."""
    root = patches_folder(options, scratch)
    print(header(f"python -m benchmarks.run {options.scale}"), flush=True)
    bench = Bench(
        root,
        scratch / "work",
        SCALES[options.scale],
        full_cache=options.full_cache and options.full_cache.expanduser().absolute(),
        whole=options.scale == "full",
    )
    before = read_rows(options.out) if set(options.rows) < set(ROWS) else []
    rows: list[Row] = []
    for name, found, seconds in measured(bench, options.rows):
        print(f"{name}: measured in {seconds:.0f} s", flush=True)
        rows += found
        write_rows(rows, options.out, before=before)
    return rows


def main() -> None:
    """Entry point of the command."""
    options = parsed()
    prepare_process()  # as the commands do
    with tempfile.TemporaryDirectory(prefix="idc_benchmark_") as scratch:
        print_rows(run(options, Path(scratch)))


if __name__ == "__main__":
    main()
