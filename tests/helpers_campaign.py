"""What campaigns share: commands in processes of their own, draws with a printed seed, counts."""

import json
import os
import zlib
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
from helpers_process import PACKAGE, run_script

SHOWN = ("seconds", "images_per_second", "notes", "checkpoint", "files", "seal")
"""What differs between two runs of the same, in results.json."""

SEED = "CAMPAIGN_SEED"
"""Environment variable that repeats a campaign."""


def run(
    command: str,
    *words: str,
    within: Path,
    killed_after: float | None = None,
    alone: bool = False,
) -> CompletedProcess[str]:
    """Run a command such as ``"train"`` in a folder, as `run_script` does."""
    return run_script(
        PACKAGE / f"{command}.py",
        words,
        within=within,
        environment={**os.environ, "OMP_NUM_THREADS": "1"},
        killed_after=killed_after,
        alone=alone,
    )


def error_of(ended: CompletedProcess[str]) -> str:
    """The one line by which a command refused; fails if it did more, less or none of this."""
    assert ended.returncode not in (0, None), ended.stdout
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def result(folder: Path) -> dict[str, Any]:
    """What a run found, without what differs each time."""
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in SHOWN}


class Campaign:
    """Draws that can be repeated, and how often came what.

    Args:
        seed: Of all draws.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counts: Counter[tuple[str, str]] = Counter()

    def rng(self, name: str) -> np.random.Generator:
        """Draws of one part, which don't depend on which other parts are run."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def count(self, part: str, what: str, trials: int = 1) -> None:
        """Note what came of a trial, or of several."""
        self.counts[part, what] += trials

    def lines(self) -> list[str]:
        """The seed and all counts."""
        counts = [f"{part}: {what} {n}" for (part, what), n in sorted(self.counts.items())]
        return [f"{SEED}={self.seed}", *counts]
