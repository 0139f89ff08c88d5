import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_model import told

from idc_lightning.processes import AHEAD, shared_out, usable_cpus

NINE = [(number,) for number in range(9)]

METHODS = pytest.mark.parametrize("fork", [True, False], ids=["fork", "spawn"])


def slow_if_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * 10


def fails_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def touch_late(path: Path) -> None:
    time.sleep(0.05)
    path.touch()


def is_killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def results(function: Callable[..., Any], calls: Sequence[Any], **how: bool) -> list[Any]:
    how = {"alone": False, "fork": True, **how}
    with shared_out(function, calls, "counted", count=len(calls), **how) as found:
        return list(found)


def test_alone_this_process_makes_all_calls() -> None:
    calls = [() for _ in range(5)]
    assert set(results(os.getpid, calls, alone=True)) == {os.getpid()}
    assert os.getpid() not in set(results(os.getpid, calls))


@METHODS
def test_results_come_in_the_order_of_the_calls(fork: bool) -> None:
    calls = [(number,) for number in range(30)]
    assert results(slow_if_first, calls, fork=fork) == [10 * number for number in range(30)]
    assert gc.get_freeze_count() == 0


def test_calls_are_taken_a_few_ahead() -> None:
    taken = []

    def calls() -> Iterator[tuple[int]]:
        for number in range(1000):
            taken.append(number)
            yield (number,)

    how = {"count": 1000, "alone": False, "fork": True}
    with shared_out(slow_if_first, calls(), "slept", **how) as found:
        assert next(found) == 0
        assert len(taken) <= AHEAD * usable_cpus() + 1


def test_processes_begin_before_results_are_taken(tmp_path: Path) -> None:
    calls = [(tmp_path / "made",)]
    with shared_out(Path.touch, calls, "touched", count=1, alone=False, fork=True) as made:
        until = time.monotonic() + 60
        while not (tmp_path / "made").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert list(made) == [None]


def test_no_call_is_begun_once_the_block_has_ended(tmp_path: Path) -> None:
    calls = [(tmp_path / f"{number}",) for number in range(100)]
    with (
        pytest.raises(KeyboardInterrupt),
        shared_out(touch_late, calls, "touched", count=100, alone=False, fork=True),
    ):
        raise KeyboardInterrupt
    made = len(list(tmp_path.iterdir()))
    assert made < 50
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == made
    assert gc.get_freeze_count() == 0


def test_an_exception_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="three"):
        results(fails_at_three, NINE)


@METHODS
def test_a_killed_process_is_told_in_one_line(fork: bool) -> None:
    with told("a process that counted was stopped, perhaps for want of memory"):
        results(is_killed, NINE, fork=fork)


def test_a_job_beside_others_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    for threads, cpus in (("", 8), ("3", 3), ("20", 8), ("0", 8), ("4,2", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert usable_cpus() == cpus
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_cpus() == 8
