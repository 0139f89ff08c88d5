"""How commands start and end: Hydra composes, errors are one line, a run folder is whole.

A command is a function of the checked configuration and its run folder. What a user can mend ends
in one line on stderr and exit code 1; a run that failed leaves no folder that is taken for a run.
A job of a sweep that fails doesn't end the others; the sweep ends with exit code 1 after the last.
"""

import errno
import itertools
import logging
import math
import os
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeGuard

import hydra
import torch
from filelock import FileLock
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from idc_lightning.checkpoints import has_begun, has_learned, holds_run
from idc_lightning.conf_folder import conf_folder, describe
from idc_lightning.config import (
    AnyCommand,
    CommandConfig,
    Config,
    read_config,
    refuse_idle,
    refuse_misread,
)
from idc_lightning.errors import IDCError, listed
from idc_lightning.files import in_units, write_text
from idc_lightning.memory import keep_freed_memory
from idc_lightning.results.run_folders import (
    FAILED,
    KEPT,
    REASON,
    RESULTS,
    failed_jobs,
    value_in_yaml,
)
from idc_lightning.results.sealed import read_results
from idc_lightning.resume import LOCK, WORD, hold_run, obstacle, own_config, take_up
from idc_lightning.sweep import (
    check_resumed,
    hold_sweep,
    is_unbegun,
    job_value,
    keep_ended,
    remove_unbegun,
    restore_ended,
)
from idc_lightning.termination import CODE, Terminated, terminable

AGAIN = "start the sweep again with sweep.resume=true"
"""How to go on with a sweep."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk: full, a quota, read-only, broken."""

NOISE = (
    r".*using the WeightAveraging callback, but loading a checkpoint outside.*",
    r".*does not have many workers.*",
    r".*You called `self.log\(.*but have no logger configured.*",
    r".*Found \d+ module\(s\) in eval mode at the start of training.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    r".*using `DistributedSampler` with the dataloaders.*",
    r".*Grad strides do not match bucket view strides.*",
    r".*ended before the epoch ended and your dataloader is not resumable.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
"""Warnings of Lightning that don't apply here."""


class OwnFolder(Callback):
    """Refuses a folder that holds files, before Hydra writes into it.

    So all that lies in a run folder comes from its run, and a failed run can be removed whole.

    Attributes:
        run: Folder of the run that this process has begun, if it has.
        sweep: Configuration of the sweep that it has begun, if it has.
        lock: That of the sweep's folder.
    """

    run: ClassVar[Path | None] = None
    sweep: ClassVar[DictConfig | None] = None
    lock: ClassVar[FileLock | None] = None

    @classmethod
    def forget(cls) -> None:
        """Begin anew, as a process does that runs a second command."""
        cls.run = cls.sweep = cls.lock = None

    @classmethod
    def launcher(cls) -> str | None:
        """The choice of hydra/launcher of the sweep, if there is one."""
        return None if cls.sweep is None else cls.sweep.hydra.runtime.choices["hydra/launcher"]

    @classmethod
    def leave_nothing(cls) -> None:
        """Remove the folder of a run, or of a sweep none of whose jobs, could be begun."""
        if cls.sweep is not None:
            remove_unbegun(Path(cls.sweep.hydra.sweep.dir))
        elif cls.run is not None and not holds_run(cls.run):
            shutil.rmtree(cls.run, ignore_errors=True)

    @classmethod
    def refused(cls, error: OSError) -> IDCError:
        """What is said where Hydra can't write its files."""
        if cls.sweep is None:
            return IDCError(f"can't write below {cls.run}: {error.strerror}")
        place, how = cls.sweep.hydra.sweep.dir, f"when that is mended, {AGAIN}"
        return IDCError(f"can't write below {place}: {error.strerror} ({how})")

    def on_run_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        """Leave with exit code 1 if the run folder isn't empty or another run begins in it."""
        folder = Path(config.hydra.run.dir)
        _refuse_occupied(folder, "hydra.run.dir")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / config.hydra.output_subdir).mkdir()
            OwnFolder.run = folder
        except FileExistsError:
            fail(_occupied(folder, "hydra.run.dir"))
        except OSError as error:
            fail(IDCError(f"can't write {folder}: {error.strerror}"))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:  # noqa: ANN401
        """Leave with exit code 1 if the folder of the sweep isn't empty, nor resumed."""
        folder = Path(config.hydra.sweep.dir)
        try:
            if resumes(config):
                check_resumed(folder, config)
            elif not is_unbegun(folder):
                raise _occupied(folder, "hydra.sweep.dir")
            OwnFolder.lock = hold_sweep(folder)
            keep_ended(folder)
        except IDCError as error:
            fail(error)
        except Exception:  # of which Hydra would only warn, and go on without the lock
            traceback.print_exc()
            sys.exit(1)
        OwnFolder.sweep = config


def _refuse_occupied(folder: Path, key: str) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        # Hydra only warns of exceptions in callbacks, but lets an exit pass.
        fail(_occupied(folder, key))


def _occupied(folder: Path, key: str) -> IDCError:
    return IDCError(f"{folder} holds files already: choose another folder by {key}=<folder>")


def run_command(
    command: Callable[[AnyCommand, Path], object],
    schema: type[AnyCommand],
    *,
    after_sweep: Callable[[DictConfig, Path], object] | None = None,
) -> None:
    """Run a command with the configuration of the command line; leaves with its exit code.

    Args:
        command: Called once for each job with its configuration and run folder.
        schema: What the command takes; its root in ``conf/`` bears the command's name.
        after_sweep: Called once after all jobs of a sweep, with the configuration that they share
            and the folder of the sweep.
    """
    # Hydra then raises its errors instead of printing them over many lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Neither shells nor Hydra know a home folder after an equals sign.
    sys.argv = [re.sub(r"(?<==)~(?=/|$)", lambda _: str(Path.home()), word) for word in sys.argv]
    OwnFolder.forget()
    composed = False

    def job(cfg: DictConfig) -> float | None:
        nonlocal composed
        composed = True
        # Here, since a launcher may run the job in another process.
        prepare_process()
        return _run_job(cfg, command, schema)

    entry = hydra.main(
        config_path=str(conf_folder()), config_name=schema.command, version_base="1.3"
    )
    with _told_plainly():
        try:
            with terminable():
                entry(job)()
            if OwnFolder.sweep is not None:
                _end_sweep(OwnFolder.sweep, after_sweep)
        except IDCError as error:  # of a sweeper; jobs have told theirs
            OwnFolder.leave_nothing()
            fail(error)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if composed:
                raise
            OwnFolder.leave_nothing()
            fail(IDCError(f"configuration: {describe(error, schema.command)}"))
        except Terminated:  # between jobs, or while they run in other processes
            how = "" if OwnFolder.sweep is None else f": to go on, {AGAIN}"
            fail(IDCError(f"interrupted{how}"), CODE)
        except BrokenProcessPool:
            if OwnFolder.sweep is None:
                raise
            _compare_ended(after_sweep)
            fail(
                IDCError(
                    "the process of a job was stopped, perhaps for want of memory: start the sweep "
                    "again with sweep.resume=true and fewer jobs at a time "
                    "(hydra.launcher.n_jobs=1)"
                )
            )
        except Exception as error:
            if _is_of_hydras_files(error, composed):
                OwnFolder.leave_nothing()
                fail(OwnFolder.refused(error))
            # Of a launcher that runs jobs elsewhere, where each tells its own errors.
            launcher = OwnFolder.launcher()
            if launcher in (None, "basic"):
                raise
            _compare_ended(after_sweep)
            OwnFolder.leave_nothing()
            reason = str(error).strip().partition("\n")[0] or repr(error)
            fail(IDCError(f"hydra/launcher={launcher}: {reason} (when that is mended, {AGAIN})"))


def resume_command(command: Callable[[Config, Path], object], words: Sequence[str]) -> None:
    """Go on with a run in its folder; leaves with the exit code of the command.

    Args:
        command: `idc_lightning.train.train`.
        words: The command line, one of them ``resume=<run folder>``.
    """
    prepare_process()
    with _told_plainly():
        try:
            resumed = take_up(words)
        except IDCError as error:
            fail(error)
        if resumed is None:
            print("the run has ended already: nothing is left to do")
            return
        config, folder = resumed.config, resumed.folder
        try:
            _attempt(
                lambda: command(config, folder),
                folder,
                own=True,
                sweeps=False,
                put_back=resumed.put_back,
            )
        finally:
            resumed.lock.release()


def _is_of_hydras_files(error: Exception, composed: bool) -> TypeGuard[OSError]:
    """Whether a disk refused what Hydra writes; a job tells its own, and the file if it has one."""
    if not isinstance(error, OSError) or error.errno not in DISK:
        return False
    return not composed or error.filename is None


@contextmanager
def _told_plainly() -> Iterator[None]:
    """End with one line where the system refuses something."""
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output, as `head` does, wants no more of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        fail(IDCError(f"{error.filename}: {error.strerror}"))


@contextmanager
def _disk_told(folder: Path) -> Iterator[None]:
    """Name the folder where the system doesn't say which file had no room.

    Raises:
        IDCError: If the disk can't take more.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in DISK:
            raise
        free = in_units(shutil.disk_usage(folder).free)
        raise IDCError(f"can't write below {folder}: {error.strerror}; {free} are left") from error


def _run_job(
    cfg: DictConfig, command: Callable[[AnyCommand, Path], object], schema: type[AnyCommand]
) -> float | None:
    """Run a command in its folder; of a job of a sweep, the value by which it is ranked."""
    hydra_config = HydraConfig.get()
    folder, sweeps = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    own = hydra_config.output_subdir is not None
    goes_on = sweeps and resumes(cfg)
    if goes_on and (folder / RESULTS).is_file():
        try:
            _check_ended(folder, read_config(cfg, schema))
        except IDCError as error:
            fail(error)
        return job_value(folder, cfg)
    if not goes_on and holds_run(folder):
        fail(IDCError(f"{folder} holds a run already: name it by hydra.sweep.subdir=<folder>"))
    locks: list[FileLock] = []

    def run() -> None:
        config = read_config(cfg, schema)
        typed = hydra_config.overrides.task
        refuse_misread(config, _as_typed(hydra_config))
        refuse_idle(config, typed)
        if not sweeps:
            _refuse_sweep(typed)
        if goes_on and isinstance(config, Config) and _make_room(folder, config):
            locks.append(hold_run(folder))
        command(config, folder)

    try:
        if own:
            locks.append(hold_run(folder))
        ended_well = _attempt(run, folder, own=own, sweeps=sweeps)
    except IDCError as error:
        fail(error)
    finally:
        for lock in locks:
            lock.release()
    if not sweeps:
        return None
    return job_value(folder, cfg) if ended_well else math.nan


def _as_typed(hydra_config: HydraConf) -> list[str]:
    """The words of the command line, which jobs of a sweep have in Hydra's own spelling."""
    sweep = Path(hydra_config.sweep.dir) / KEPT
    if hydra_config.mode != RunMode.MULTIRUN or not sweep.is_file():
        return list(hydra_config.overrides.task)
    return list(value_in_yaml(sweep, "hydra", "overrides", "task"))


def _check_ended(folder: Path, config: CommandConfig) -> None:
    """Leave a job that has ended as it is, if its result is that of this one."""
    kept = restore_ended(folder)
    if not isinstance(config, Config):
        return
    if read_results(folder / RESULTS)["config_hash"] == config.digest():
        return
    # It may have been prolonged by itself.
    if not kept or own_config(folder)[1].course() != config.course():
        raise IDCError(
            f"{folder} holds the result of another job: give each a folder of its own by "
            "hydra.sweep.subdir, or the sweep another one by hydra.sweep.dir"
        )


def _attempt(
    run: Callable[[], object],
    folder: Path,
    *,
    own: bool,
    sweeps: bool,
    put_back: Callable[[], bool] = lambda: False,
) -> bool:
    """Run a command, and end the process as told if it fails or is interrupted.

    Args:
        run: The command.
        folder: Its run folder.
        own: Whether the folder is its alone.
        sweeps: Whether it is a job of a sweep, which goes on if the job fails.
        put_back: Leaves the folder as it was before, or says that it can't.

    Returns:
        Whether it ended well.
    """

    def aside(reason: str) -> None:
        if own and not put_back():
            _set_aside(folder, reason, keep=sweeps)

    try:
        with terminable(), _disk_told(folder):
            run()
    except (
        KeyboardInterrupt,
        SystemExit,
    ) as left:  # the latter is Lightning's answer to the former
        code = CODE if isinstance(left, Terminated) else 1
        if not has_begun(folder):
            aside("interrupted")
            fail(IDCError("interrupted"), code)
        how = AGAIN if sweeps else f"{WORD}{folder}"
        fail(IDCError(f"interrupted: to go on, {how}"), code)
    except IDCError as error:
        aside(str(error))
        if not sweeps:
            fail(error)
        print(f"error: job {folder.name}: {error}", file=sys.stderr, flush=True)
        return False
    except BaseException as error:
        aside(repr(error))
        if not sweeps:
            raise
        traceback.print_exc()
        print(f"error: job {folder.name}: {error!r}", file=sys.stderr, flush=True)
        return False
    return True


def resumes(config: DictConfig) -> bool:
    """Whether a sweep goes on with what stands in its folder."""
    return OmegaConf.select(config, "sweep.resume") is True


def _compare_ended(after_sweep: Callable[[DictConfig, Path], object] | None) -> None:
    """Compare the jobs that have ended, of this process's sweep, which could not go on."""
    sweep = OwnFolder.sweep
    if sweep is not None and after_sweep is not None:
        with suppress(IDCError):  # none has ended
            after_sweep(sweep, Path(sweep.hydra.sweep.dir))


def _end_sweep(
    config: DictConfig, after_sweep: Callable[[DictConfig, Path], object] | None
) -> None:
    """Write what belongs to all jobs, and leave with exit code 1 if some failed."""
    folder = Path(config.hydra.sweep.dir)
    try:
        if after_sweep is not None:
            after_sweep(config, folder)
    except IDCError as error:
        fail(error)
    failed = failed_jobs(folder)
    if failed:
        fail(
            IDCError(
                f"{len(failed)} jobs failed ({listed(list(failed))}): each has its reason in "
                f"{folder}/<job>{FAILED}/{REASON}"
            )
        )


def prepare_process() -> None:
    """Make ready a process that runs a command."""
    quiet()
    keep_freed_memory()
    # The momentum of a unit that is dead shrinks to numbers that take some processors a hundred
    # times as long; before threads start, since they compute as the one that starts them.
    torch.set_flush_denormal(True)
    # Where results have to be deterministic torch writes to new memory before it is used, which is
    # a tenth of a train step and helps those only who read memory that nobody has written to.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def quiet() -> None:
    """Silence messages of libraries that would bury those of this project."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def fail(error: IDCError, code: int = 1) -> NoReturn:
    """Print an error as it is and leave with an exit code."""
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    sys.exit(code)


def _refuse_sweep(overrides: Sequence[str]) -> None:
    """Stop if a value of sweeps was typed for a single run."""
    idle = [override for override in overrides if override.startswith("sweep.")]
    if idle:
        raise IDCError(f"{idle[0]} has no effect on a single run: add -m for a sweep")


def _set_aside(folder: Path, reason: str, *, keep: bool = False) -> Path | None:
    """Rename the folder of a run as failed; remove it if nothing was learned or found.

    Args:
        folder: Of the run.
        reason: Why it failed.
        keep: Whether it is kept in any case.

    Returns:
        Where it is now; None if it was removed.
    """
    if not keep and not has_learned(folder) and not (folder / RESULTS).exists():
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(IDCError):  # a full disk, which may be the reason
        write_text(folder / REASON, f"{reason}\n")
    names = (f"{folder.name}{FAILED}{number or ''}" for number in itertools.count())
    return folder.rename(next(path for path in map(folder.with_name, names) if not path.exists()))


def _make_room(folder: Path, config: Config) -> bool:
    """Set aside what a job that was killed has left, if it can't go on with it.

    Hydra has written into its folder again.

    Returns:
        Whether the folder is another one now.
    """
    goes_on = has_begun(folder) and obstacle(config, folder) is None
    if goes_on or all(path.name == ".hydra" for path in folder.iterdir()):
        return False
    killed = _set_aside(folder, "killed before its end", keep=True)
    assert killed is not None
    shutil.copytree(killed / ".hydra", folder / ".hydra", ignore=shutil.ignore_patterns(LOCK.name))
    return True
