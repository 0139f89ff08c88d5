"""What all tests share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests decode and compute out of the user's cache."""
    before = os.environ.get("IDC_CACHE")
    os.environ["IDC_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["IDC_CACHE"]
    else:
        os.environ["IDC_CACHE"] = before
