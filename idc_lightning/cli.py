"""How commands start and end: Hydra composes, errors are one line, a run folder is whole.

A command is a function of the checked configuration and its run folder. What a user can mend ends
in one line on stderr and exit code 1; a run that failed leaves no folder that is taken for a run.
"""

import itertools
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from idc_lightning.conf_folder import conf_folder, describe
from idc_lightning.config import AnyCommand, CommandConfig, read_config
from idc_lightning.errors import IDCError
from idc_lightning.files import write_text
from idc_lightning.memory import keep_freed_memory

NOISE = (
    r".*using the WeightAveraging callback, but loading a checkpoint outside.*",
    r".*does not have many workers.*",
    r".*You called `self.log\(.*but have no logger configured.*",
    r".*Found \d+ module\(s\) in eval mode at the start of training.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
"""Warnings of Lightning that don't apply here."""


class OwnFolder(Callback):
    """Refuses a folder that holds files, before Hydra writes into it.

    So all that lies in a run folder comes from its run, and a failed run can be removed whole.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        """Leave with exit code 1 if the run folder isn't empty or another run begins in it."""
        folder = Path(config.hydra.run.dir)
        _refuse_occupied(folder, "hydra.run.dir")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / config.hydra.output_subdir).mkdir()
        except FileExistsError:
            fail(_occupied(folder, "hydra.run.dir"))
        except OSError as error:
            fail(IDCError(f"can't write {folder}: {error.strerror}"))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        """Leave with exit code 1 if the folder of the sweep isn't empty."""
        _refuse_occupied(Path(config.hydra.sweep.dir), "hydra.sweep.dir")


def _refuse_occupied(folder: Path, key: str) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        # Hydra only warns of exceptions in callbacks, but lets an exit pass.
        fail(_occupied(folder, key))


def _occupied(folder: Path, key: str) -> IDCError:
    return IDCError(f"{folder} holds files already: choose another folder by {key}=<folder>")


def run_command(command: Callable[[AnyCommand, Path], object], schema: type[AnyCommand]) -> None:
    """Run a command with the configuration of the command line; leaves with its exit code.

    Args:
        command: Called once for each job with its configuration and run folder.
        schema: What the command takes; its root in ``conf/`` bears the command's name.
    """
    # Hydra then raises its errors instead of printing them over many lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Neither shells nor Hydra know a home folder after an equals sign.
    sys.argv = [re.sub(r"(?<==)~(?=/|$)", lambda _: str(Path.home()), word) for word in sys.argv]
    composed = False

    def job(cfg: DictConfig) -> None:
        nonlocal composed
        composed = True
        # Here, since a launcher may run the job in another process.
        quiet()
        keep_freed_memory()
        folder = Path(HydraConfig.get().runtime.output_dir)
        if (folder / "checkpoints").exists():
            fail(IDCError(f"{folder} holds a run already: name it by hydra.sweep.subdir=<folder>"))
        try:
            config = read_config(cfg, schema)
            _refuse_idle(config, HydraConfig.get().overrides.task)
            command(config, folder)
        except IDCError as error:
            _set_aside(folder, str(error))
            fail(error)
        except (KeyboardInterrupt, SystemExit):  # the latter is Lightning's answer to the former
            _set_aside(folder, "interrupted")
            fail(IDCError("interrupted"))
        except BaseException as error:
            _set_aside(folder, repr(error))
            raise

    entry = hydra.main(
        config_path=str(conf_folder()), config_name=schema.command, version_base="1.3"
    )
    try:
        entry(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if composed:
            raise
        fail(IDCError(f"configuration: {describe(error, schema.command)}"))
    except BrokenPipeError:
        # Whoever read the output, as `head` does, wants no more of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(IDCError(f"{error.filename}: {error.strerror}"))


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


def _refuse_idle(config: CommandConfig, overrides: Sequence[str]) -> None:
    """Stop if a value was typed that nothing would use."""
    idle = config.idle({override.partition("=")[0].lstrip("+") for override in overrides})
    if idle is not None:
        raise IDCError(idle)


def _set_aside(folder: Path, reason: str) -> None:
    """Remove a run folder in which nothing was learned or found; rename another as failed."""
    learned = any((folder / "checkpoints").glob("*.ckpt"))
    if not learned and not (folder / "results.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    write_text(folder / "error.txt", f"{reason}\n")
    names = (f"{folder.name}.failed{number or ''}" for number in itertools.count())
    folder.rename(next(path for path in map(folder.with_name, names) if not path.exists()))
