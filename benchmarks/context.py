"""What context costs beside single patches: ``python -m benchmarks.context``.

Trains one epoch on single patches, then one of each other way from its weights, each in a process
of its own. Prints the median seconds of an epoch with its judgement of dev, the most memory, and
their ratios.
"""

import argparse
import re
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.machine import header
from benchmarks.measure import Ended, run_child

SINGLE = "single patches"

WAYS = {
    SINGLE: ("experiment=finetune", "model.weights=none"),
    "crops": ("experiment=context",),
    "grid": ("experiment=context", "data.crop=8", "model.context.name=grid"),
}
"""Overrides of each, without the run that it begins with."""

EPOCH = re.compile(r"^epoch 1/1 .*  (\d+) s$", re.MULTILINE)


def train(folder: Path, overrides: tuple[str, ...]) -> Ended:
    """Run one epoch of a recipe in a process of its own."""
    common = ("trainer.epochs=1", "report=none", "callbacks.progress=plain")
    return run_child("idc_lightning.train", *overrides, *common, f"hydra.run.dir={folder}")


def epoch_seconds(ended: Ended) -> int:
    """What the run printed of its only epoch."""
    found = EPOCH.search(ended.out)
    if found is None:
        raise RuntimeError(f"no epoch in what the run printed:\n{ended.out}")
    return int(found[1])


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="runs of each way")
    parser.add_argument("overrides", nargs="*", help="of all runs, e.g. data=idc data.root=...")
    options = parser.parse_args()
    print(header(f"python -m benchmarks.context {' '.join(options.overrides)}"), flush=True)
    ended: dict[str, list[Ended]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            first = Path(folder, f"{SINGLE}_{turn}".replace(" ", "_"))
            for name, way in WAYS.items():
                own = (*way, *options.overrides)
                if name == SINGLE:
                    ended[name].append(train(first, own))
                else:
                    run = Path(folder, f"{name}_{turn}")
                    ended[name].append(train(run, (*own, f"pretraining.run={first}")))
    seconds = {name: median(map(epoch_seconds, runs)) for name, runs in ended.items()}
    peaks = {name: max(run.peak for run in runs) for name, runs in ended.items()}
    print("| | epoch | to single patches | most memory |\n| --- | --- | --- | --- |")
    for name in WAYS:
        ratio = seconds[name] / seconds[SINGLE]
        memory = f"{peaks[name] / 1e9:.2f} GB"
        print(f"| {name} | {seconds[name]:.0f} s | {ratio:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
