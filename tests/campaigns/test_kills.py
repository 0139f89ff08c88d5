"""Commands that are killed at random moments, again and again.

The next start goes on or makes anew; what comes out in the end is what an undisturbed one gives,
and nothing half-made is left.
"""

import hashlib
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers_campaign import Campaign, error_of, result, run
from helpers_command import SMALL

from idc_lightning.files import PARTIAL
from idc_lightning.torch_files import read_checkpoint

pytestmark = pytest.mark.campaign

KILLS, IN_A_ROW = 40, 4
"""Of each kind of work, 200 in all, and how often one and the same is killed."""

TRAIN = (
    *SMALL,
    "trainer.epochs=3",
    "callbacks.checkpoint.last_every=0",
    "results.draws=20",
    "hydra.run.dir=run",
)
FROZEN = ("model.freeze_backbone=true", "data.augment.stain_jitter=0")
REPORT = tuple(word for word in TRAIN if word != "report=none")
SWEEP = (*TRAIN[:-1], "model.head.dropout=0.5,0", "hydra.sweep.dir=run")


def weights(folder: Path) -> dict[str, list[Any]]:
    """All numbers of the best and the last weights of a run."""
    return {
        f"{name} {key}": value.tolist()
        for name in ("best", "last")
        for key, value in read_checkpoint(folder / f"checkpoints/{name}.ckpt")["state_dict"].items()
    }


def of_store(folder: Path) -> Any:
    """Hashes of what was packed."""
    cache = folder / "cache"
    files = [*sorted(cache.rglob("*.npy")), *sorted(cache.rglob("table.csv"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def of_run(folder: Path) -> Any:
    """Numbers, weights and names of files of a run."""
    names = {
        str(path.relative_to(folder / "run"))
        for path in (folder / "run").rglob("*")
        if "tfevents" not in path.name
    }
    return result(folder / "run"), weights(folder / "run"), names


def of_sweep(folder: Path) -> Any:
    """Numbers and weights of its jobs."""
    jobs = [folder / "run" / number for number in "01"]
    return [(result(job), weights(job)) for job in jobs]


class Work(NamedTuple):
    """A command, how it is started again, what it leaves, and whether it begins without a cache."""

    command: str
    words: tuple[str, ...]
    again: tuple[str, ...]
    left: Callable[[Path], Any]
    cold: bool


WORK = {
    "prepare": Work("prepare", ("data.patients=12", "data.patches=4000"), (), of_store, True),
    "features": Work("train", (*TRAIN, *FROZEN), ("resume=run",), of_run, True),
    "train": Work("train", TRAIN, ("resume=run",), of_run, False),
    "report": Work("train", REPORT, ("resume=run",), of_run, False),
    "sweep": Work("train", ("-m", *SWEEP), ("-m", *SWEEP, "sweep.resume=true"), of_sweep, False),
}


@pytest.mark.parametrize("name", WORK)
def test_work_that_is_killed_ends_as_if_it_was_not(
    name: str, tmp_path: Path, campaign: Campaign
) -> None:
    work, rng = WORK[name], campaign.rng(f"kills {name}")

    def start(folder: Path, words: tuple[str, ...], **how: Any) -> Any:
        cache = folder / "cache" if work.cold else tmp_path / "cache"
        given = words if words[0].startswith("resume=") else (*words, f"cache={cache}")
        return run(work.command, *given, within=folder, **how)

    for first in ("warm", "undisturbed"):
        (tmp_path / first).mkdir()
        begun = time.monotonic()
        assert start(tmp_path / first, work.words).returncode == 0
        lasts = time.monotonic() - begun
    wanted = work.left(tmp_path / "undisturbed")
    killed = 0
    for trial in itertools.count():
        if killed >= KILLS:
            break
        folder = tmp_path / f"killed{trial}"
        folder.mkdir()
        words = work.words
        ended = None
        for number in range(IN_A_ROW):
            # What goes on has less to do.
            after = rng.uniform(0.05, 0.9 / (number + 1)) * lasts
            alone = bool(rng.random() < 0.5)
            ended = start(folder, words, killed_after=after, alone=alone)
            if ended.returncode == -9:
                killed += 1
                campaign.count(f"kills of {name}", "killed")
                words = work.again or work.words
            elif ended.returncode:
                # Killed before it had begun: it is started as at first.
                line = error_of(ended)
                assert words != work.words, line
                campaign.count(f"kills of {name}", "begun anew")
                words = work.words
            else:
                break
        for last in (words, work.words):
            if ended is None or ended.returncode:
                ended = start(folder, last)
        assert ended is not None
        assert ended.returncode == 0, ended.stderr
        assert work.left(folder) == wanted
        assert not list(folder.rglob(f"*{PARTIAL}"))
        campaign.count(f"kills of {name}", "same end")
