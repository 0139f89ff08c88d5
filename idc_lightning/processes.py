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
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

import joblib

from idc_lightning.errors import IDCError

T = TypeVar("T")

AHEAD = 2
"""Calls that wait for each process, so that none is idle while a long one ends."""

MOST = 61
"""Processes of a pool; Windows can't wait for more."""


def usable_cpus() -> int:
    """Number of processors that this process may use, at least 1.

    As the system, a container or a scheduler's job allows; among jobs that a launcher runs at the
    same time, each has its share, which the launcher tells by OMP_NUM_THREADS.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    usable = int(joblib.cpu_count())
    return min(usable, int(threads)) if threads.isdecimal() and int(threads) else usable


@contextmanager
def shared_out(
    function: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    did: str,
    *,
    count: int,
    alone: bool,
    fork: bool = False,
) -> Iterator[Iterator[T]]:
    """Call a function many times in as many processes as there are processors.

    Processes begin with the first calls at once, so that this process can do other work before it
    takes the results. They have ended when the block ends; what they haven't begun is then dropped.

    Args:
        function: Of a module's top level; with ``fork`` it must not use torch, whose threads a
            forked process lacks.
        calls: Arguments of each call, taken a few calls ahead.
        did: What a process did, for the error if it is killed, e.g. ``"drew landscapes"``.
        count: Number of calls.
        alone: Whether this process makes all calls, since starting others would cost more than it
            saves.
        fork: Whether processes are copies of this one where the system makes them (Linux), which
            spares them the imports.

    Yields:
        What each call returns, in the order of the calls.

    Raises:
        IDCError: If a process is killed.
    """
    if alone:
        yield (function(*call) for call in calls)
        return
    context = get_context("fork" if fork and sys.platform == "linux" else "spawn")
    workers = max(1, min(usable_cpus(), count, MOST))
    # A search for garbage would write to all objects, and so divide the memory that copies share.
    gc.freeze()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        submitted = (pool.submit(function, *call) for call in calls)
        begun = deque(islice(submitted, AHEAD * workers))
        yield in_order(begun, submitted)
    except BrokenProcessPool as error:
        raise IDCError(
            f"a process that {did} was stopped, perhaps for want of memory: start again with "
            "nothing else running"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()


def in_order(begun: deque[Future[T]], submitted: Iterator[Future[T]]) -> Iterator[T]:
    """Results in the order of their calls, with as many calls ahead of them as are begun.

    Args:
        begun: The first calls.
        submitted: Submits another call each time it is asked.
    """
    while begun:
        begun.extend(islice(submitted, 1))
        yield begun.popleft().result()


def _end_with_parent() -> None:
    """End this process when its parent is killed; a pool's process would wait for work forever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
