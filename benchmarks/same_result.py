"""Whether stored features change what is learned: ``python -m benchmarks.same_result``.

Runs ``idc-train experiment=notebook`` in float32 twice, once on the features that the frozen
backbone gives once and once with the backbone computed in each step, and holds metrics of dev and
weights against each other. Leaves with exit code 1 if a metric of dev differs in its third decimal.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import header
from benchmarks.measure import run_child
from idc_lightning.results.sealed import read_results
from idc_lightning.torch_files import read_checkpoint

WAYS = ("auto", "off")
"""Values of data.features: stored, and computed in each step."""

MOST = 0.0005
"""From here on two metrics differ in their third decimal."""


def train(folder: Path, overrides: list[str]) -> float:
    """Run the notebook's experiment in a process of its own; returns its seconds."""
    recipe = ("experiment=notebook", "trainer.precision=32-true", "report=none")
    return run_child("idc_lightning.train", *recipe, *overrides, f"hydra.run.dir={folder}").seconds


def dev_metrics(run: Path) -> dict[str, float]:
    """Metrics of dev of a run, by name."""
    of_dev = read_results(run / "results.json")["dev"]
    return {name: interval["value"] for name, interval in of_dev.items()}


def differing(ours: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    """Names of the metrics that differ in their third decimal."""
    return [name for name, value in ours.items() if not abs(value - other[name]) < MOST]


def weight_difference(ours: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest difference of a weight or statistic in the networks of two checkpoints."""
    if ours.keys() != other.keys():
        raise ValueError("the networks have other layers")
    return max(float((ours[n].double() - other[n].double()).abs().max()) for n in ours)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_result", description=__doc__)
    parser.add_argument(
        "overrides", nargs="*", help="of both runs, e.g. data=idc model.weights=none"
    )
    overrides = parser.parse_args().overrides
    print(header(f"python -m benchmarks.same_result {' '.join(overrides)}"), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder, way) for way in WAYS]
        for way, run in zip(WAYS, runs, strict=True):
            seconds = train(run, [*overrides, f"data.features={way}"])
            print(f"data.features={way}: {seconds:.0f} s", flush=True)
        ours, other = map(dev_metrics, runs)
        weights = [read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs]
    for name, value in ours.items():
        print(f"dev {name}: {value:.6f} {other[name]:.6f}")
    print(f"largest difference of a weight: {weight_difference(*weights):.3g}")
    unequal = differing(ours, other)
    if unequal:
        sys.exit(f"differ in the third decimal: {', '.join(unequal)}")


if __name__ == "__main__":
    main()
