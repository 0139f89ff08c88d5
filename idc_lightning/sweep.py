"""A sweep that is started again in its folder: which it was, and what its jobs have reached."""

import math
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, ListConfig, OmegaConf

from idc_lightning.errors import IDCError
from idc_lightning.files import PARTIAL, hold, remade
from idc_lightning.results.run_folders import (
    BEFORE,
    KEPT,
    OF_HYDRA,
    RESULTS,
    run_paths,
    value_in_yaml,
)
from idc_lightning.results.sealed import read_results

HELD = ".lock"
"""File by which a process holds the folder of a sweep."""

SUBDIR = "hydra.sweep.subdir="
"""What names the folders of jobs."""

CHOICE = "hydra.runtime.choices.hydra/sweeper"
"""Where a configuration says who chooses the jobs."""


def check_resumed(folder: Path, config: DictConfig) -> None:
    """Refuse to resume another sweep than the one that stands in a folder.

    Args:
        folder: Of the sweep; one that isn't there is begun.
        config: With Hydra's own values, as the sweep is started now.

    Raises:
        IDCError: If the folder holds anything else, or wasn't named.
    """
    if not any(word.startswith("hydra.sweep.dir=") for word in _words(config)["hydra"]):
        raise IDCError("sweep.resume=true: name the sweep's folder by hydra.sweep.dir=<folder>")
    if is_unbegun(folder):
        return
    if not (folder / KEPT).is_file():
        raise IDCError(f"{folder} holds files, but no sweep that could be resumed")
    before = OmegaConf.create(value_in_yaml(folder / KEPT))
    if OmegaConf.select(before, "hydra.overrides.task") is None:
        raise IDCError(f"{folder / KEPT} is damaged, so that the sweep can't be known again")
    now, then = _typed(config), _typed(before)
    if now != then:
        raise IDCError(
            f"{folder} holds another sweep: it was started with {' '.join(then)}, and now with "
            f"{' '.join(now)}"
        )


def _typed(config: DictConfig | ListConfig) -> list[str]:
    """What decides which jobs there are, in the order that numbers them."""
    sweeper = f"hydra/sweeper={OmegaConf.select(config, CHOICE, default='basic')}"
    words = _words(config)
    places = [word for word in words["hydra"] if word.startswith(SUBDIR)]
    typed = [word for word in words["task"] if not word.startswith("sweep.")]
    return [sweeper, *places, *typed]


def _words(config: DictConfig | ListConfig) -> dict[str, list[str]]:
    """What was typed, as it was, for ``"hydra"`` and for the ``"task"``."""
    # It may refer to values that are known in a job only.
    words: Any = OmegaConf.to_container(config.hydra.overrides, resolve=False)
    return {"hydra": [], **words}


def hold_sweep(folder: Path) -> FileLock:
    """Keep other processes from running the sweep of a folder.

    What one that was killed was writing of the leaderboard is removed.

    Raises:
        IDCError: If one does, or the folder can't be written.
    """
    lock = hold(folder / HELD, f"another process runs the sweep of {folder}: wait until it ends")
    for place in (folder, folder / "leaderboard"):  # jobs remove their own
        for path in place.glob(f".*{PARTIAL}"):
            path.unlink()
    return lock


def is_unbegun(folder: Path) -> bool:
    """Whether a sweep could begin in a folder: it isn't there, or holds no more than a lock."""
    return not folder.is_dir() or all(path.name == HELD for path in folder.iterdir())


def keep_ended(folder: Path) -> None:
    """Keep the configurations of jobs that have ended, over which Hydra is about to write."""
    for run in run_paths(folder):
        if (run / RESULTS).is_file() and not (run / BEFORE).is_dir():
            with remade(run / BEFORE) as partial:
                for path in (run / OF_HYDRA).glob("*.yaml"):
                    shutil.copy2(path, partial)


def restore_ended(run: Path) -> bool:
    """Give a job that had ended before the sweep was started again its own configuration back.

    Returns:
        Whether it had.
    """
    if not (run / BEFORE).is_dir():
        return False
    for path in (run / BEFORE).iterdir():
        path.replace(run / OF_HYDRA / path.name)
    (run / BEFORE).rmdir()
    return True


def remove_unbegun(folder: Path) -> None:
    """Remove the folder of a sweep that has begun no job."""
    if {path.name for path in folder.iterdir()} <= {HELD, KEPT}:
        shutil.rmtree(folder)


def job_value(folder: Path, config: DictConfig) -> float | None:
    """The metric of dev by which a job is ranked.

    Args:
        folder: Its run folder.
        config: Its configuration.

    Returns:
        NaN if it is undefined; None if the command has no such metric.
    """
    metric = OmegaConf.select(config, "sweep.metric")
    if metric is None:
        return None
    value = read_results(folder / RESULTS)["dev"][metric]["value"]
    return math.nan if value is None else float(value)
