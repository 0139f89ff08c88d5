"""A run of many epochs takes no more memory, open files and threads in the end than before."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_campaign import Campaign, result
from helpers_command import SMALL
from helpers_process import TRAIN

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc of Linux"),
]

EPOCHS = 200

EVERY = 0.5
"""Seconds between two looks."""


def look(process: int) -> tuple[int, int, int] | None:
    """Memory in kB, threads and open files of a process; None when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        files = len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in found:
        return None
    return int(found["VmRSS"].split()[0]), int(found["Threads"]), files


def test_nothing_grows_in_200_epochs(tmp_path: Path, campaign: Campaign) -> None:
    words = [word for word in SMALL if not word.startswith("trainer.epochs")]
    words += [f"trainer.epochs={EPOCHS}", "callbacks.checkpoint.last_every=0", "cache=cache"]
    command = [sys.executable, TRAIN, *words, "hydra.run.dir=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
        looks = []
        while process.poll() is None:
            looks.append(look(process.pid))
            time.sleep(EVERY)
    assert process.returncode == 0, (tmp_path / "out").read_text()
    assert result(tmp_path / "run")["epochs"] == EPOCHS
    table = np.array([each for each in looks if each is not None])
    # The first quarter imports and packs, and the allocator finds its size.
    early, late = (np.median(part, axis=0) for part in np.array_split(table, 4)[1::2])
    for name, before, after in zip(("kB", "threads", "open files"), early, late, strict=True):
        campaign.count(f"{EPOCHS} epochs, {name}", f"{before:.0f} early, {after:.0f} late")
    assert late[0] <= 1.05 * early[0]
    assert (late[1:] <= early[1:]).all()
