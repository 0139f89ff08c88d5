"""Work shared out among processes that end with their parent."""

import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from idc_lightning.errors import IDCError

T = TypeVar("T")

AHEAD = 2
"""Calls that wait for each process, so that none is idle while a long one ends."""


def share_out(
    function: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    did: str,
    *,
    alone: bool,
    fork: bool = False,
) -> Iterator[T]:
    """Call a function many times in as many processes as there are processors.

    Args:
        function: Of a module's top level; with ``fork`` it must not use torch, whose threads a
            forked process lacks.
        calls: Arguments of each call, taken a few calls ahead.
        did: What a process did, for the error if it is killed, e.g. ``"drew landscapes"``.
        alone: Whether this process makes all calls, since starting others would cost more than it
            saves.
        fork: Whether processes are copies of this one where the system makes them (Linux), which
            spares them the imports.

    Returns:
        What each call returns, in the order of the calls. Processes begin with the first of them at
        once, so that this process can do other work before it takes the results.

    Raises:
        IDCError: If a process is killed.
    """
    if alone:
        return (function(*call) for call in calls)
    context = get_context("fork" if fork and sys.platform == "linux" else "spawn")
    workers = os.cpu_count() or 1
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    results = _results(pool, function, calls, did, ahead=AHEAD * workers)
    next(results)  # begin
    return results


def _results(
    pool: ProcessPoolExecutor,
    function: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    did: str,
    *,
    ahead: int,
) -> Iterator[Any]:
    """None once the first calls are submitted, then the results in order."""
    submitted = (pool.submit(function, *call) for call in calls)
    # A search for garbage would write to all objects, and so divide the memory that copies share.
    gc.freeze()
    with pool:
        try:
            begun: deque[Future[T]] = deque(islice(submitted, ahead))
            yield None
            while begun:
                begun.extend(islice(submitted, 1))
                yield begun.popleft().result()
        except BrokenProcessPool as error:
            raise IDCError(
                f"a process that {did} was stopped, perhaps for want of memory: start again with "
                "nothing else running"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            gc.unfreeze()


def _end_with_parent() -> None:
    """End this process when its parent is killed; a pool's process would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
