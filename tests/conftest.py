"""What all tests share."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hypothesis import settings

if TYPE_CHECKING:
    from helpers_command import Command
    from hydra.plugins.config_source import ConfigResult

# How long an example takes says more of what else the machine does.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

LONGEST = ("test_ranks.py", "test_resume.py", "test_train.py", "test_sweep.py", "test_precision.py")
"""Files that take minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left alone with one at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests decode and compute out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def configuration_files_are_parsed_once() -> Iterator[None]:
    """Spare Hydra from parsing the same YAML for each of a thousand commands."""
    load = FileConfigSource.load_config
    loaded: dict[tuple[str, int, int], ConfigResult] = {}

    def load_once(source: FileConfigSource, name: str) -> "ConfigResult":
        path = Path(source.path, source._normalize_file_name(name))
        if not path.is_file():
            return load(source, name)  # which tells so
        key = (str(path), path.stat().st_mtime_ns, path.stat().st_size)
        if key not in loaded:
            loaded[key] = load(source, name)
        return copy.deepcopy(loaded[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_once)
        yield


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Compute with them again after a command in this process: hypothesis draws some."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> "Command":
    """``idc-train`` in a folder of its own."""
    from helpers_command import Command  # here, since it imports what few files need

    return Command(tmp_path, capsys, monkeypatch)
