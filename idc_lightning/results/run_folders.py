"""Runs of ``idc-train`` below a folder, as their files tell: what was typed and what came of it."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from idc_lightning.errors import IDCError
from idc_lightning.results.sealed import check_sealed, read_results

FAILED = ".failed"
"""A run that failed is renamed so that its folder ends in this, and a number from the second on."""

OF_HYDRA = Path(".hydra")
"""Folder in a run folder in which Hydra keeps how the run was started."""

BEFORE = OF_HYDRA / ".before"
"""The same of a job that has ended, while a sweep that goes on is about to write over it."""

HYDRA = ("hydra.yaml", "config.yaml", "overrides.yaml")
"""Files in these: Hydra's own configuration, the run's, and what was typed for it."""

OVERRIDES = OF_HYDRA / "overrides.yaml"
"""File in a run folder that says what was typed for the run."""

KEPT = "multirun.yaml"
"""File in which Hydra keeps the configuration of a sweep, in its folder."""

REASON = "error.txt"
"""File of a run that failed: why, in one line."""

RESULTS = "results.json"
"""File that a run writes last, so that the run has ended well where it is."""

UNFINISHED = "not finished: it runs still, or was killed"


@dataclass(frozen=True)
class RunFolder:
    """A run that ended, failed or goes on.

    Attributes:
        path: Its folder.
        name: Of the folder, from the one that was searched.
        overrides: What was typed for it, by key.
        choices: Choice by config group.
        config: Its whole configuration, as plain values.
        results: The content of results.json; None if it didn't end well.
        problem: Why it didn't, in one line; empty if it did.
    """

    path: Path
    name: str
    overrides: dict[str, str]
    choices: dict[str, str]
    config: dict[str, Any]
    results: dict[str, Any] | None
    problem: str

    def value(self, key: str) -> object:
        """The value of a key such as ``"model.head.dropout"``, or the choice of a group.

        Returns:
            A plain value; None if the run has no such key.
        """
        if key in self.choices:
            return self.choices[key]
        found: Any = self.config
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                return self.overrides.get(key)
            found = found[part]
        return found

    def predictions(self, split: str) -> pd.DataFrame:
        """Labelled predictions of a split, as `predictions_table` makes them.

        Raises:
            IDCError: If they aren't there or were changed.
        """
        name = f"predictions/{split}.csv"
        path = self.path / name
        assert self.results is not None
        check_sealed(self.results, name, path)
        return pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)


def find_runs(folder: Path) -> list[RunFolder]:
    """Find the runs in a folder and in those below it.

    Of a job of a sweep that failed and then ended well only the latter counts.

    Args:
        folder: Such as that of a sweep, or one that holds several of them.

    Returns:
        In the order of their names, where numbers count as such.

    Raises:
        IDCError: If there is no such folder, or a file of a run can't be read.
    """
    if not folder.is_dir():
        raise IDCError(f"there is no folder {folder}")
    paths = sorted(run_paths(folder), key=lambda path: _natural(str(path)))
    runs = [_read(path, folder) for path in paths if not _superseded(path)]
    return [run for run in runs if run is not None]


def failed_jobs(sweep: Path) -> dict[str, str]:
    """Why jobs of a sweep failed, by the places of those that no later one has made up for."""
    failed = (path for path in run_paths(sweep) if FAILED in path.name)
    return {
        str(_intended(path).relative_to(sweep)): (path / REASON).read_text(encoding="utf-8").strip()
        for path in sorted(failed, key=lambda path: _natural(str(path)))
        if (path / REASON).is_file() and not _intended(path).exists()
    }


def run_paths(folder: Path) -> Iterator[Path]:
    """Folders of the runs in a folder and in those below it, whole or not."""
    for place, names, _ in os.walk(folder):
        if ".hydra" in names:
            yield Path(place)
            names.clear()  # what lies inside a run is no run
        names[:] = [name for name in names if not name.startswith(".")]


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _intended(path: Path) -> Path:
    """The folder that a failed run was renamed from."""
    return path.with_name(re.sub(rf"{re.escape(FAILED)}\d*$", "", path.name))


def _superseded(path: Path) -> bool:
    """Whether the same job was run again, or failed again, later."""
    intended = _intended(path)
    if intended == path:
        return False
    later = [other for other in path.parent.glob(f"{intended.name}{FAILED}*") if other != path]
    return intended.exists() or any(_natural(str(other)) > _natural(str(path)) for other in later)


def _read(path: Path, folder: Path) -> RunFolder | None:
    """A run; None for what another command than idc-train has left."""
    name = str(path.relative_to(folder)) if path != folder else path.resolve().name
    if made_by(path) != "train":
        return None
    reason, problem = path / REASON, ""
    if reason.is_file():
        problem = " ".join(reason.read_text(encoding="utf-8").split())
    elif not (path / RESULTS).is_file():
        problem = UNFINISHED
    results = None if problem else read_results(path / RESULTS)
    hydra, config, typed = (_of_hydra(path, kind, results) for kind in HYDRA)
    return RunFolder(
        path=path,
        name=name,
        overrides=_by_key(typed),
        choices={key: str(value) for key, value in hydra["hydra"]["runtime"]["choices"].items()},
        config=config,
        results=results,
        problem=problem,
    )


def _of_hydra(path: Path, name: str, results: dict[str, Any] | None) -> Any:  # noqa: ANN401 - YAML
    """What Hydra has left of a run, unless it was changed since the run ended."""
    # A sweep that goes on writes over it, and keeps that of jobs which have ended.
    kept = path / BEFORE / name
    file = kept if kept.is_file() else path / OF_HYDRA / name
    if results is not None:
        check_sealed(results, str(OF_HYDRA / name), file)
    return read_yaml(file)


def varied_in_sweep(folder: Path) -> list[str]:
    """Keys and groups that a run has from a sweep, and not in common with all of its jobs.

    Args:
        folder: Of the run, which needn't be one of a sweep.
    """
    sweep = next((place for place in folder.absolute().parents if (place / KEPT).is_file()), None)
    if sweep is None:
        return []
    typed = value_in_yaml(sweep / KEPT, "hydra", "overrides", "task")
    parsed = OverridesParser.create().parse_overrides(typed)
    shared = {each.key_or_group for each in parsed if not each.is_sweep_override()}
    return [key for key in _overrides(folder) if key not in shared and not key.startswith("sweep.")]


def _overrides(folder: Path) -> dict[str, str]:
    """What was typed for a run, by key."""
    return _by_key(read_yaml(folder / OVERRIDES))


def _by_key(words: list[str]) -> dict[str, str]:
    pairs = [word.lstrip("+").partition("=") for word in words]
    return {key: value for key, _, value in pairs}


def made_by(folder: Path) -> str:
    """Name of the command that left a run folder, such as ``"train"``.

    Raises:
        IDCError: If it can't be read.
    """
    return str(value_in_yaml(folder / OF_HYDRA / "hydra.yaml", "hydra", "job", "config_name"))


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - any YAML
    """The content of a file, as plain values.

    Raises:
        IDCError: If it can't be read.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IDCError(f"can't read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise IDCError(f"{path} is damaged: {' '.join(str(error).split())}") from error


def value_in_yaml(path: Path, *keys: str) -> Any:  # noqa: ANN401 - any YAML
    """A value in a file, as a plain one; of no keys its whole content, by key.

    Raises:
        IDCError: If it can't be read, or has no such key.
    """
    found = read_yaml(path)
    for number, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            raise IDCError(f"{path} is damaged: it has no {'.'.join(keys[: number + 1])}")
        found = found[key]
    if not keys and not isinstance(found, dict):
        raise IDCError(f"{path} is damaged: it has no keys")
    return found
