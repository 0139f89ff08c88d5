"""Work shared out among processes that end with their parent."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

T = TypeVar("T")


def share_out(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], *, fork: bool = False
) -> Iterator[T]:
    """Call a function many times in as many processes as there are processors.

    Args:
        function: Of a module's top level; with ``fork`` it must not use torch, whose threads a
            forked process lacks.
        calls: Arguments of each call.
        fork: Whether processes are copies of this one where the system makes them (Linux), which
            spares them the imports.

    Yields:
        What each call returns, as soon as it does.

    Raises:
        BrokenProcessPool: If a process is killed.
    """
    context = get_context("fork" if fork and sys.platform == "linux" else "spawn")
    workers = min(os.cpu_count() or 1, len(calls))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(function, *call) for call in calls]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this process when its parent is killed; a pool's process would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
