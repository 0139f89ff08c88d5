"""What all tests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from helpers_command import Command

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


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> "Command":
    """``idc-train`` in a folder of its own."""
    from helpers_command import Command  # here, since it imports what few files need

    return Command(tmp_path, capsys, monkeypatch)
