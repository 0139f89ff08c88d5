"""The folder ``conf/``: where it lies, which names it defines, which of them a user meant."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def conf_folder() -> Path:
    """The folder: inside an installed wheel, or beside the package in a clone."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    """Names that a config group can be set to, e.g. ``choices("split")``."""
    files = (conf_folder() / group).glob("*.yaml")
    return sorted(file.stem for file in files if file.stem != "base")


def keys() -> list[str]:
    """All keys of all groups, e.g. ``"model.head.dropout"``."""
    folder = conf_folder()
    found: set[str] = set()
    for file in folder.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        group = "" if "@package _global_" in text else file.parent.relative_to(folder).as_posix()
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        prefix = group.replace("/", ".").strip(".")
        found.update(key for key in _flat(values, prefix) if not key.startswith("hydra."))
    return sorted(found)


def _flat(values: Any, prefix: str) -> Iterator[str]:  # noqa: ANN401 - any YAML
    """Dotted names of all keys below a mapping."""
    if isinstance(values, dict):
        for key, value in values.items():
            if key != "defaults":
                name = f"{prefix}.{key}".strip(".")
                yield name
                yield from _flat(value, name)


def describe(error: Exception) -> str:
    """One line on an error of Hydra, with the name that was probably meant."""
    text = str(error)
    override = re.search(r"Could not override '([^']+)'", text)
    if override:
        return _unknown("key", override.group(1), keys())
    choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
    if choice:
        group, name = choice.groups()
        known = choices(group)
        return f"{_unknown(f'choice {group}=', name, known)}; there are {', '.join(known)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("Set the environment variable"))


def _unknown(kind: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    joint = "" if kind.endswith("=") else " "
    hint = f", did you mean {close[0]}?" if close else ""
    return f"unknown {kind}{joint}{name}{hint}"
