"""Parts of the work in a process of their own: ``python -m benchmarks.child <part> <overrides>``.

Each takes overrides of ``idc-train`` and prints what it measured as one line of JSON, so that
neither the start of Python nor what another part left in memory counts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ours import configured, ready_data, train_by_framework
from idc_lightning.cli import prepare_process
from idc_lightning.config import Config
from idc_lightning.data.index import read_index
from idc_lightning.data.source import find_source
from idc_lightning.data.store import open_store

Measured = dict[str, float]


def source(config: Config, options: argparse.Namespace) -> Measured:
    """Draw demo tissue and write it as PNGs."""
    began = time.perf_counter()
    find_source(config.data, config.cache)
    return {"seconds": time.perf_counter() - began}


def index(config: Config, options: argparse.Namespace) -> Measured:
    """List and check the names of all files."""
    root = find_source(config.data, config.cache).root
    began = time.perf_counter()
    found = read_index(root)
    return {"patches": len(found.table), "seconds": time.perf_counter() - began}


def store(config: Config, options: argparse.Namespace) -> Measured:
    """Open the store of a data set, which is built if the cache has none."""
    found = read_index(find_source(config.data, config.cache).root)
    began = time.perf_counter()
    opened = open_store(found.root, found.table, cache=config.cache)
    return {"patches": len(opened.table), "seconds": time.perf_counter() - began}


def steps(config: Config, options: argparse.Namespace) -> Measured:
    """Some train batches of a whole net, and how long after the start the first one had ended."""
    with tempfile.TemporaryDirectory() as logs:
        watch = train_by_framework(config, ready_data(config), Path(logs), options.batches)
    return {
        "images": watch.images,
        "seconds": watch.seconds,
        "start": watch.first_step - options.began,
    }


PARTS: dict[str, Callable[[Config, argparse.Namespace], Measured]] = {
    "source": source,
    "index": index,
    "store": store,
    "steps": steps,
}


def main() -> None:
    """Do a part and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--batches", type=int, help="of steps")
    parser.add_argument("--began", type=float, help="when steps was started, as of time.time")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    prepare_process()  # as the commands do
    print(json.dumps(PARTS[options.part](configured(*options.overrides), options)))


if __name__ == "__main__":
    main()
