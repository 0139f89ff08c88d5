"""What context costs beside single patches: ``python -m benchmarks.context``.

Trains one epoch of each way from the same weights, in turns, each in a process of its own, and
prints the median seconds of an epoch with its judgement of dev, the most memory, and their ratios.
"""

import argparse
import re
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.machine import header
from benchmarks.measure import Ended, run_child

CROPS = ("experiment=context", "pretraining=none")

WAYS = {
    "single patches": ("experiment=finetune",),
    "crops": CROPS,
    "grid": (*CROPS, "model.context.name=grid"),
}
"""Overrides of each, without the weights that it begins with."""

EPOCH = re.compile(r"^epoch 1/1 .*  (\d+) s$", re.MULTILINE)


def train(folder: Path, overrides: tuple[str, ...]) -> Ended:
    """Run one epoch of a recipe in a process of its own."""
    common = ("model.weights=none", "trainer.epochs=1", "report=none", "callbacks.progress=plain")
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
            for name, way in WAYS.items():
                run = Path(folder, f"{name.replace(' ', '_')}_{turn}")
                ended[name].append(train(run, (*way, *options.overrides)))
    seconds = {name: median(map(epoch_seconds, runs)) for name, runs in ended.items()}
    peaks = {name: max(run.peak for run in runs) for name, runs in ended.items()}
    print("| | epoch | to single patches | most memory |\n| --- | --- | --- | --- |")
    for name in WAYS:
        ratio = seconds[name] / seconds["single patches"]
        memory = f"{peaks[name] / 1e9:.2f} GB"
        print(f"| {name} | {seconds[name]:.0f} s | {ratio:.2f} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
