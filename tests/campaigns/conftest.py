"""The seed of a campaign, printed at its end with what came of it."""

import os
import secrets

import pytest
from helpers_campaign import SEED, Campaign

KEY = pytest.StashKey[Campaign]()


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed, unless one is given."""
    config.stash[KEY] = Campaign(int(os.environ.get(SEED) or secrets.randbelow(10**6)))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the seed and what came of the trials, if there were any."""
    lines = config.stash[KEY].lines()
    for line in lines if len(lines) > 1 else []:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Campaign:
    """What all campaigns of a session draw from and write down."""
    return pytestconfig.stash[KEY]
