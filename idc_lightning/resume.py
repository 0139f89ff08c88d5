"""Going on with a run in its own folder: which runs can be, and what may be changed with it.

``idc-train resume=<run folder>`` takes the configuration that the folder holds. Only what can't
change the result may be given anew, and a higher number of epochs.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from idc_lightning import ranks
from idc_lightning.checkpoints import PRETRAINING, last_checkpoint
from idc_lightning.conf_folder import describe, groups_of, keys, unknown_key
from idc_lightning.config import (
    BOUND,
    SHOWN,
    Config,
    PatchPretrainingConfig,
    read_config,
    refuse_misread,
)
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.errors import IDCError
from idc_lightning.files import hold, replaced, write_text
from idc_lightning.frozen import block_steps
from idc_lightning.results.run_folders import (
    FAILED,
    KEPT,
    OF_HYDRA,
    OVERRIDES,
    REASON,
    RESULTS,
    made_by,
    read_yaml,
    value_in_yaml,
)
from idc_lightning.torch_files import read_checkpoint
from idc_lightning.trainer import resolve_accelerator, resolve_precision

WORD = "resume="
EPOCHS = "trainer.epochs"
ENDS = ("report.html", RESULTS)
"""Files that say how a run has ended, the one last that says that it has."""

CHANGED = (OVERRIDES, OF_HYDRA / "config.yaml")
"""Files that say with which values it runs."""

LOCK = Path(".hydra", ".lock")
"""File in a run folder that the process which runs there holds."""


@dataclass(frozen=True)
class Resumed:
    """A run that goes on.

    Attributes:
        config: Its configuration, with what was changed.
        folder: Its folder.
        lock: Keeps other processes out of the folder.
        ended: What files of a run that had ended held before it was taken up; empty of others.
        learned: Its checkpoints then, as `_checkpoints` tells them apart.
    """

    config: Config
    folder: Path
    lock: FileLock
    ended: dict[Path, bytes]
    learned: list[tuple[str, int]]

    def put_back(self) -> bool:
        """Leave a run that had ended as it was, if it has learned nothing since.

        Returns:
            Whether it is.
        """
        if not self.ended or _checkpoints(self.folder) != self.learned:
            return False
        try:
            for path, content in self.ended.items():
                with replaced(path) as partial:
                    partial.write_bytes(content)
        except IDCError:  # a full disk, which may be why it can't go on
            return False
        return True


def take_up(words: Sequence[str]) -> Resumed | None:
    """Make a run ready to go on.

    Its folder gets its name back if it was set aside as failed. Relative places in its
    configuration are those of the folder in which it was started, which becomes this process's.

    Args:
        words: The command line, one of them ``resume=<run folder>``.

    Returns:
        None if the run has ended and nothing is asked for that is left to do.

    Raises:
        IDCError: If there is no such run, it can't go on, or a value can't be changed.
    """
    folder = _folder(words)
    typed = _overrides([word for word in words if not word.startswith(WORD)])
    own, before = own_config(folder)
    lock = hold_run(folder)
    problem = obstacle(before, folder)
    if problem:
        raise IDCError(f"can't go on with {folder}: {problem}")
    for override in typed:
        OmegaConf.update(own, override.key_or_group, override.value())
    config = read_config(own, Config)
    refuse_misread(config, [str(override.input_line) for override in typed])
    idle = config.idle({override.key_or_group for override in typed})
    if idle:
        raise IDCError(idle)
    problem = _other_steps(_steps(before, folder), _steps(config, folder))
    if problem:
        raise IDCError(f"can't go on with {folder}: {problem}")
    if config.trainer.epochs != before.trainer.epochs:
        _check_prolonged(folder, before, config)
    elif (folder / RESULTS).is_file():
        return None
    ended = {}
    if (folder / RESULTS).is_file():
        places = [folder / name for name in (*CHANGED, *ENDS)]
        ended = {path: path.read_bytes() for path in places if path.is_file()}
    folder = _unfailed(folder)
    _write(folder, own, typed)
    for name in ENDS:
        (folder / name).unlink(missing_ok=True)
    return Resumed(config, folder, lock, ended, _checkpoints(folder))


def _checkpoints(folder: Path) -> list[tuple[str, int]]:
    """Names of a run's checkpoints, and when they were written."""
    return sorted(
        (path.name, path.stat().st_mtime_ns) for path in folder.glob("checkpoints/*.ckpt")
    )


def own_config(folder: Path) -> tuple[DictConfig, Config]:
    """The configuration that a run folder holds, as it is written and checked.

    Raises:
        IDCError: If it can't be read, or isn't one of this version.
    """
    path = folder / ".hydra" / "config.yaml"
    values = value_in_yaml(path)
    try:
        own = OmegaConf.create(values)
        return own, read_config(own, Config)
    except (IDCError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise IDCError(f"{path} is damaged or of another version: {reason}") from error


def hold_run(folder: Path) -> FileLock:
    """Keep other processes from running in a run folder.

    Raises:
        IDCError: If one does, or the folder can't be written.
    """
    return hold(folder / LOCK, f"another process runs in {folder}: wait until it ends")


def obstacle(config: Config, folder: Path) -> str | None:
    """Why the last checkpoint of a folder can't be gone on with; None if it can or there is none.

    Args:
        config: Of the run that would go on.
        folder: Its folder.

    Raises:
        IDCError: If the checkpoint can't be read, or the hardware lacks what is configured.
    """
    for number, (of, last) in enumerate(_trainings(config, folder)):
        content = read_checkpoint(last)
        problem = _obstacle(of, last, content)
        if not problem and number == 0:
            now = _steps(config, folder)
            before = content.get(IDCDataModule.__qualname__, {}).get("block", now)
            problem = _other_steps(before, now)
        if problem:
            return problem
    return None


def _trainings(config: Config, folder: Path) -> list[tuple[Config, Path]]:
    """The trainings of a run that have begun, the last one first, and their last checkpoints."""
    found = [(config, last_checkpoint(folder))]
    if isinstance(config.pretraining, PatchPretrainingConfig):
        before = config.of_pretraining(config.pretraining)
        found.append((before, last_checkpoint(folder / PRETRAINING)))
    return [(of, last) for of, last in found if last.is_file()]


def _obstacle(config: Config, last: Path, content: dict[str, Any]) -> str | None:
    if content.get("course") != config.course():
        return f"{last} was trained with other values than those of its run's .hydra/config.yaml"
    computes = resolve_precision(config.trainer, resolve_accelerator(config.trainer))
    if content.get("precision") != computes:
        return (
            f"it was trained in {content.get('precision')}, and would be in {computes} on this "
            "machine"
        )
    return None


def _steps(config: Config, folder: Path) -> int | None:
    """Batches in a step of the training that would go on here; None if none has begun."""
    begun = _trainings(config, folder)
    if not begun:
        return None
    of, _ = begun[0]
    return block_steps(of, ranks.place_of(of.trainer, resolve_accelerator(of.trainer)).world)


def _other_steps(before: int | None, now: int | None) -> str | None:
    """Why a training can't be counted on in other steps than those in which it has counted."""
    if now == before:
        return None
    return (
        f"it took {before} batches in a step of Lightning and would take {now}: go on with its own "
        "data.features and as many processes as before (GPUs by CUDA_VISIBLE_DEVICES)"
    )


def _folder(words: Sequence[str]) -> Path:
    """The run folder that is named; the process moves to where the run was started."""
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise IDCError(f"resume=<run folder> goes on with a single run: leave out {flags[0]}")
    named = [word.removeprefix(WORD) for word in words if word.startswith(WORD)]
    if len(named) > 1 or not named[0]:
        raise IDCError("name one run by resume=<run folder>")
    folder = Path(named[0]).absolute()
    if (folder / KEPT).is_file():
        raise IDCError(
            f"{folder} holds a sweep: start it again as before, with sweep.resume=true and "
            f"hydra.sweep.dir={named[0]}"
        )
    failed = folder.with_name(folder.name + FAILED)
    if not folder.exists() and failed.exists():
        raise IDCError(f"there is no {folder}: the run failed, go on with {WORD}{named[0]}{FAILED}")
    if not (folder / ".hydra" / "config.yaml").is_file() or made_by(folder) != Config.command:
        raise IDCError(f"{folder} holds no run of idc-train")
    started = value_in_yaml(folder / ".hydra" / "hydra.yaml", "hydra", "runtime").get("cwd")
    if started and Path(started).is_dir():
        os.chdir(started)
    return folder


def _overrides(words: Sequence[str]) -> list[Override]:
    """What is to be changed, if it may be."""
    try:
        typed = OverridesParser.create().parse_overrides(list(words))
    except OverrideParseException as error:
        raise IDCError(f"configuration: {describe(error, Config.command)}") from error
    known, groups = keys(Config.command), groups_of(Config.command)
    for override in typed:
        key, word = override.key_or_group, override.input_line
        if override.is_sweep_override() or override.is_add() or override.is_delete():
            raise IDCError(f"{word}: a run goes on with single values, such as {EPOCHS}=10")
        if key in groups:
            raise IDCError(
                f"{word}: a run goes on with its own choices; single values can be given, such as "
                "report.enabled=false"
            )
        if key not in known:
            raise IDCError(f"configuration: {unknown_key(key, Config.command)}")
        shown = any(key == name or key.startswith(f"{name}.") for name in SHOWN)
        if key != EPOCHS and (not shown or key.startswith("sweep.")):
            raise IDCError(
                f"{word} can't be changed in a run that goes on, which keeps its own values: start "
                f"a new one; {EPOCHS} can be, and what is only shown or logged"
            )
    return list(typed)


def _check_prolonged(folder: Path, before: Config, config: Config) -> None:
    """Stop if the number of epochs can't be changed as it was."""
    old, new = before.trainer.epochs, config.trainer.epochs
    if not last_checkpoint(folder).is_file():
        if (folder / RESULTS).is_file():
            raise IDCError(
                f"{folder} can't be prolonged: {last_checkpoint(folder)} is no longer there"
            )
        return
    if new < old:
        raise IDCError(f"{EPOCHS}={new} is less than the run's own {EPOCHS}={old}")
    if old == 0:
        raise IDCError(
            f"{EPOCHS}={new}: a run of {EPOCHS}=0 can't be prolonged, start a new one with its "
            "pretraining.run"
        )
    if config.scheduler.name in BOUND:
        raise IDCError(
            f"{EPOCHS}={new}: the run can't be prolonged, since scheduler={config.scheduler.name} "
            f"spreads its learning rates over {EPOCHS}={old}; start a new one"
        )


def _unfailed(folder: Path) -> Path:
    """The folder under the name of a run that goes on, without what says that it failed."""
    # Not by its error.txt, for which a full disk had no room.
    failed = re.fullmatch(rf"(.+){re.escape(FAILED)}\d*", folder.name)
    if failed is not None:
        intended = folder.with_name(failed[1])
        if intended.exists():
            raise IDCError(f"{folder} can't go on, since the same was run again in {intended}")
        folder = folder.rename(intended)
    (folder / REASON).unlink(missing_ok=True)
    return folder


def _write(folder: Path, config: DictConfig, typed: Sequence[Override]) -> None:
    """Keep what was changed where the run keeps its configuration."""
    if not typed:
        return
    place, whole = (folder / name for name in CHANGED)
    overrides = {str(word).partition("=")[0]: str(word) for word in read_yaml(place)}
    overrides |= {override.key_or_group: str(override.input_line) for override in typed}
    write_text(place, OmegaConf.to_yaml(list(overrides.values())))
    write_text(whole, OmegaConf.to_yaml(config))
