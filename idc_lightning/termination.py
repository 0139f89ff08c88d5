"""SIGTERM, by which a scheduler takes its machine back: when a command ends for it.

It ends at once, as by Ctrl-C, unless it has asked for a moment in which to save what it has done.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

CODE = 128 + signal.SIGTERM
"""Exit code of a command that was ended, as shells have it."""


class Terminated(SystemExit):
    """The command was told to end."""


class _State:
    """What the signal of this process has found and may do."""

    received: ClassVar[float | None] = None
    deferred: ClassVar[bool] = False


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the block.

    Signals come to the first thread of a process only; elsewhere the block is as without it.

    Raises:
        Terminated: Also at the end of a block that failed while SIGTERM was deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.received, _State.deferred = None, False
    before = signal.signal(signal.SIGTERM, _receive)
    try:
        yield
    except BaseException as error:
        if _State.deferred and _State.received is not None:
            raise Terminated(CODE) from error
        raise
    finally:
        _State.received, _State.deferred = None, False
        signal.signal(signal.SIGTERM, before)


def _receive(*_: Any) -> None:  # noqa: ANN401
    if _State.received is None:
        _State.received = time.monotonic()
    if not _State.deferred:
        raise Terminated(CODE)


def defer() -> None:
    """Only keep SIGTERM in mind until `end_if_received` is called."""
    _State.deferred = True


def waited() -> float | None:
    """Seconds since the command was told to end; None if it wasn't."""
    return None if _State.received is None else time.monotonic() - _State.received


def end_if_received() -> None:
    """End for a SIGTERM that was deferred; from here on it ends the command at once.

    Raises:
        Terminated: If there was one.
    """
    _State.deferred = False
    if _State.received is not None:
        raise Terminated(CODE)
