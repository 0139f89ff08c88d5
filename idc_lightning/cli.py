"""How commands start and end: Hydra composes, errors are one line, a run folder is whole.

A command is a function of the checked configuration and its run folder. What a user can mend ends
in one line on stderr and exit code 1; a run that failed leaves no folder that is taken for a run.
"""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from idc_lightning.conf_folder import conf_folder, describe
from idc_lightning.config import Config, read_config
from idc_lightning.errors import IDCError
from idc_lightning.files import write_text

Command = Callable[[Config, Path], object]

NOISE = (
    r".*does not have many workers.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
"""Warnings of Lightning that don't apply here."""


class KeepRuns(Callback):
    """Refuses a run folder that holds a run, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        """Leave with exit code 1 if the folder holds a run."""
        folder = Path(config.hydra.run.dir)
        if (folder / "checkpoints").exists():
            # Hydra only warns of exceptions in callbacks, but lets an exit pass.
            fail(_occupied(folder))


def _occupied(folder: Path) -> IDCError:
    return IDCError(
        f"{folder} holds a run already: choose another folder by hydra.run.dir=<folder>"
    )


def run_command(command: Command) -> None:
    """Run a command with the configuration of the command line; leaves with its exit code.

    Args:
        command: Called once for each job with its configuration and run folder.
    """
    # Hydra then raises its errors instead of printing them over many lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quiet()

    def job(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        try:
            config = read_config(cfg)
            claim(folder)
        except IDCError as error:
            _discard(folder)
            fail(error)
        try:
            command(config, folder)
        except IDCError as error:
            _set_aside(folder, error)
            fail(error)

    entry = hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
    try:
        entry(job)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(IDCError(f"configuration: {describe(error)}"))
    except OSError as error:
        if error.filename is None:
            raise
        fail(IDCError(f"can't write {error.filename}: {error.strerror}"))


def quiet() -> None:
    """Silence messages of libraries that would bury those of this project."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def fail(error: IDCError) -> NoReturn:
    """Print an error as it is and leave with exit code 1."""
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def claim(folder: Path) -> None:
    """Make a run folder this process's own.

    Raises:
        IDCError: If a run is there already, or the folder can't be written.
    """
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except FileExistsError as error:
        raise _occupied(folder) from error
    except OSError as error:
        raise IDCError(f"can't write {folder}: {error.strerror}") from error


def _discard(folder: Path) -> None:
    """Remove what Hydra wrote for a job that didn't begin, but not an earlier run."""
    if not (folder / "checkpoints").exists():
        shutil.rmtree(folder, ignore_errors=True)


def _set_aside(folder: Path, error: IDCError) -> None:
    """Remove a run folder that learned nothing, or give it a name that says that it failed."""
    if any((folder / "checkpoints").iterdir()):
        write_text(folder / "error.txt", f"{error}\n")
        folder.rename(folder.with_name(f"{folder.name}.failed"))
    else:
        shutil.rmtree(folder, ignore_errors=True)
