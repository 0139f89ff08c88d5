"""The folder ``conf/``: where it lies, which names it defines, which of them a user meant."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

PLUGINS = {
    "hydra/launcher": {
        "basic": "",
        "joblib": "",
        "ray": "ray",
        "submitit_local": "slurm",
        "submitit_slurm": "slurm",
    },
    "hydra/sweeper": {"basic": ""},
}
"""Choices that Hydra and its plugins define, by group, with the extra that installs them."""


def conf_folder() -> Path:
    """The folder: inside an installed wheel, or beside the package in a clone."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    """Names that a config group can be set to, e.g. ``choices("split")``."""
    files = (conf_folder() / group).glob("*.yaml")
    own = [file.stem for file in files if file.stem != "base"]
    return sorted([*own, *PLUGINS.get(group, [])])


def usage(command: str) -> str:
    """How a command is typed, from the first line of its root."""
    first = (conf_folder() / f"{command}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.partition(": ")[2].rstrip(".")


def override(key: str, text: str) -> str:
    """An override that gives a key a text, whatever characters that has."""
    quoted = QuotedString(text.replace("${", "\\${"), Quote.double)
    return f"{key}={quoted.with_quotes()}"


def groups_of(command: str) -> list[str]:
    """Names of the config groups that a command has, e.g. ``groups_of("train")``."""
    root: Any = OmegaConf.to_container(
        OmegaConf.load(conf_folder() / f"{command}.yaml"), resolve=False
    )
    entries = root["defaults"]
    names = [str(next(iter(entry))) for entry in entries if not isinstance(entry, str)]
    return sorted(name for name in names if not name.startswith("override "))


def keys(command: str) -> dict[str, list[str]]:
    """All keys that a command has, and the choices that define each.

    For example ``{"optimizer.momentum": ["optimizer=sgd"]}``. Keys of the root have no choice, and
    experiments, which only set keys of others, aren't read.
    """
    folder = conf_folder()
    files = [(folder / f"{name}.yaml", "") for name in ("base", command)]
    for group in groups_of(command):
        files += [(file, group) for file in sorted((folder / group).glob("*.yaml"))]
    found: dict[str, list[str]] = {}
    for file, group in files:
        text = file.read_text(encoding="utf-8")
        if "@package _global_" in text:
            continue
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        for key in _flat(values, group):
            if key.partition(".")[0] != "hydra":
                found.setdefault(key, []).extend([f"{group}={file.stem}"] if group else [])
    return found


def _flat(values: Any, prefix: str) -> Iterator[str]:  # noqa: ANN401 - any YAML
    """Dotted names of all keys below a mapping."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key != "defaults":
                name = f"{prefix}.{key}".strip(".")
                yield name
                yield from _flat(value, name)


def describe(error: Exception, command: str) -> str:
    """One line on an error of Hydra, with the name that was probably meant.

    Args:
        error: What Hydra raised.
        command: The command whose names are suggested, e.g. ``"train"``.
    """
    # Hydra raises an exception without a text from the one that says what is wrong.
    text = str(error) or str(error.__cause__)
    key = re.search(r"Could not override '([^']+)'", text)
    if key:
        return unknown_key(key.group(1), command)
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if choice and choices(choice.group(1)):
        group, name = choice.groups()
        extra = PLUGINS.get(group, {}).get(name)
        if extra:
            return (
                f"{group}={name} is a plugin that isn't installed: pip install "
                f'"idc-lightning[{extra}]"'
            )
        known = choices(group)
        hint = _meant(name, known)
        return f"unknown choice {group}={name}{hint}; there are {', '.join(known)}"
    if "does not support sweep type" in text:
        return "intervals are drawn from by a search only: add hydra/sweeper=optuna"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, OverrideParseException):
        return (
            f"can't read the override {error.override}: values with special characters need "
            f"""quotes within quotes, e.g. 'data.root="archive (1).zip"'"""
        )
    return " ".join(line for line in lines if not line.startswith("Set the environment variable"))


def unknown_key(name: str, command: str) -> str:
    """One line on a key that a command doesn't have, with the one probably meant."""
    known = keys(command)
    if known.get(name):
        return f"unknown key {name}, it belongs to {' and '.join(known[name])}"
    if name.startswith("hydra.sweeper."):
        return f"unknown key {name}: if it is of a search, add hydra/sweeper=optuna"
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside and name not in groups_of(command):
        return f"idc-{command} has no choices of {name}: set {' or '.join(inside)}"
    given = set(known) - {"sweep.study", "sweep.trial"}  # which nobody types
    return f"unknown key {name}{_meant(name, [*groups_of(command), *sorted(given)])}"


def _meant(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]}?" if close else ""
