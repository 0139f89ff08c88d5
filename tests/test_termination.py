import os
import signal
import threading
from collections.abc import Iterator

import pytest

from idc_lightning.termination import (
    CODE,
    Terminated,
    defer,
    end_if_received,
    terminable,
    waited,
)


@pytest.fixture(autouse=True)
def own_answer() -> Iterator[None]:
    """SIGTERM does nothing outside of a block."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_block_ends_at_once() -> None:
    def run() -> None:
        with terminable():
            told_to_end()
            pytest.fail("it went on")

    with pytest.raises(Terminated) as left:
        run()
    assert left.value.code == CODE == 128 + signal.SIGTERM
    told_to_end()  # which is ignored as before


def test_an_end_that_is_put_off_comes_once_it_may() -> None:
    def run() -> None:
        with terminable():
            assert waited() is None
            defer()
            told_to_end()
            first = waited()
            told_to_end()
            assert first is not None
            assert (waited() or 0) >= first  # it waits since the first signal
            end_if_received()
            pytest.fail("it went on")

    with pytest.raises(Terminated):
        run()


def test_an_end_may_be_put_off_without_a_signal() -> None:
    with terminable():
        defer()
        end_if_received()
        with pytest.raises(Terminated):
            told_to_end()


def test_a_block_forgets_the_signal_of_the_one_before() -> None:
    with pytest.raises(Terminated), terminable():
        told_to_end()
    with terminable():
        assert waited() is None
        end_if_received()


def fail_while_an_end_is_put_off(*, told: bool) -> None:
    with terminable():
        defer()
        if told:
            told_to_end()
        raise LookupError


def test_a_block_that_fails_while_an_end_is_put_off_ends_for_it() -> None:
    with pytest.raises(Terminated):
        fail_while_an_end_is_put_off(told=True)
    assert waited() is None  # what follows outside of a block is not ended for it


def test_a_block_that_failed_puts_off_no_end_of_the_one_around_it() -> None:
    def run() -> None:
        with terminable():
            with pytest.raises(LookupError):
                fail_while_an_end_is_put_off(told=False)
            told_to_end()
            pytest.fail("it went on")

    with pytest.raises(Terminated):
        run()


def test_a_block_in_another_thread_leaves_signals_alone() -> None:
    def run() -> None:
        with terminable():
            answers.append(signal.getsignal(signal.SIGTERM))

    answers: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [signal.SIG_IGN]
