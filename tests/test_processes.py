import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_model import told

from idc_lightning.processes import AHEAD, share_out

NINE = [(number,) for number in range(9)]

METHODS = pytest.mark.parametrize("fork", [True, False], ids=["fork", "spawn"])


def slow_if_first(number: int) -> int:
    time.sleep(0.2 if number == 0 else 0)
    return number * 10


def fails_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def is_killed(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_alone_this_process_makes_all_calls() -> None:
    calls = [() for _ in range(5)]
    assert set(share_out(os.getpid, calls, "told", alone=True, fork=True)) == {os.getpid()}
    assert os.getpid() not in set(share_out(os.getpid, calls, "told", alone=False, fork=True))


@METHODS
def test_results_come_in_the_order_of_the_calls(fork: bool) -> None:
    calls = [(number,) for number in range(30)]
    found = list(share_out(slow_if_first, calls, "slept", alone=False, fork=fork))
    assert found == [10 * number for number in range(30)]
    assert gc.get_freeze_count() == 0


def test_calls_are_taken_a_few_ahead() -> None:
    taken = []

    def calls() -> Iterator[tuple[int]]:
        for number in range(1000):
            taken.append(number)
            yield (number,)

    results = share_out(slow_if_first, calls(), "slept", alone=False, fork=True)
    assert next(results) == 0
    assert len(taken) <= AHEAD * (os.cpu_count() or 1) + 1
    results.close()


def test_processes_begin_before_results_are_taken(tmp_path: Path) -> None:
    made = share_out(Path.touch, [(tmp_path / "made",)], "touched", alone=False, fork=True)
    until = time.monotonic() + 60
    while not (tmp_path / "made").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert list(made) == [None]


def test_an_exception_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="three"):
        list(
            share_out(
                fails_at_three,
                [(number,) for number in range(9)],
                "counted",
                alone=False,
                fork=True,
            )
        )


@METHODS
def test_a_killed_process_is_told_in_one_line(fork: bool) -> None:
    with told("a process that counted was stopped, perhaps for want of memory"):
        list(share_out(is_killed, NINE, "counted", alone=False, fork=fork))
