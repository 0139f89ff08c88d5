"""Every command of the pages on sweeps and devices, as written, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_campaign import Campaign

pytestmark = pytest.mark.campaign

DOCS = Path(__file__).parents[2] / "docs"

ELSEWHERE = ("<folder>", "pip install", "first.example")
"""Blocks with one of these need real tissue, a network, or several machines."""


def blocks(page: str) -> list[str]:
    """Blocks of code of a page that this machine can run."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if not any(word in block for word in ELSEWHERE)]


def test_commands_run_as_written(tmp_path: Path, campaign: Campaign) -> None:
    lines = [*blocks("sweeps.md"), *blocks("devices.md")]
    script = "\n".join(["set -eu", *lines])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "IDC_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    campaign.count("commands in docs", f"ran in {len(lines)} blocks")
