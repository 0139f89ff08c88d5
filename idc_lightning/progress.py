"""How far a long step has come, for somebody who watches a terminal."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def watched(items: Iterable[T], doing: str, *, total: int | None = None) -> Iterable[T]:
    """Show a bar while items pass by; it vanishes with the last one.

    Where output goes to a file or a pipe, nothing is printed at all.

    Args:
        items: What is counted.
        doing: What stands beside the bar, e.g. ``"reading patches"``.
        total: Number of items; None for those that know it themselves.
    """
    console = Console()
    # FORCE_COLOR makes rich take a pipe for a terminal, which its bar would fill with codes.
    if not (sys.stdout.isatty() and console.is_interactive):
        return items
    return track(items, doing, total=total, console=console, transient=True)
