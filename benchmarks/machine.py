"""On what, when and how something was measured, to stand above its table."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from benchmarks.measure import ROOT


def header(command: str) -> str:
    """Hardware, date, versions and command in a few lines of Markdown."""
    today = datetime.datetime.now().astimezone().date()
    capabilities = torch.cpu.get_capabilities()
    able = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return "\n".join(
        [
            f"- {today}, `{command}`",
            f"- {os.cpu_count()} cores of {_processor()} ({', '.join(able) or 'no bfloat16'}), "
            f"{_memory():.0f} GB of memory, {platform.system()} {platform.release()}",
            f"- Python {platform.python_version()}, torch {torch.__version__}",
        ]
    )


def commit() -> str | None:
    """Short hash of the project's commit; None if the project isn't a clone of its own."""
    asked = ["git", "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or no clone
        return None
    top, found = answer.stdout.splitlines()
    # A copy of the project may lie within a clone of something else.
    return found if Path(top) == ROOT else None


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
