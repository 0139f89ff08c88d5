"""What all tests share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests decode and compute out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
