import multiprocessing
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers_model import told
from hypothesis import given
from hypothesis import strategies as st

from idc_lightning.errors import IDCError
from idc_lightning.files import made_once, safe_name, write_text


def names(folder: Path) -> list[str]:
    """What lies in a folder beside locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("name", ["10253", "P-7_b.2", "x" * 60])
def test_a_plain_name_is_a_file_name_as_it_is(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "a/b", "a b", "Müller", "\n", "\ud800", "x" * 61]
)
def test_other_names_are_recognised_and_told_apart(name: str) -> None:
    safe = safe_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", safe)
    assert len(safe) <= 60
    assert len({safe, safe_name(f"{name}?"), safe_name(f"{name}!"), safe_name(f"{name}_")}) == 4


@given(st.lists(st.text(max_size=80), unique=True, min_size=2, max_size=20))
def test_safe_names_differ_where_names_do(texts: list[str]) -> None:
    found = [safe_name(text) for text in texts]
    assert len(set(found)) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,59}", name) for name in found)


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text.txt"
    for text in ("é\r\nµm\n\t", "", "next"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(OSError(28, "No space left on device"), IDCError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("failing", ["write_text", "replace"])
def test_a_failure_in_the_middle_keeps_the_old_text(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    failure: BaseException,
    seen: type[BaseException],
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("old")

    def fail(target: Path, *_: object, **__: object) -> None:
        target.write_bytes(b"ne")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fail)
        with pytest.raises(seen):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path, texts = tmp_path / "text.txt", [letter * 300_000 for letter in "ab"]
    write_text(path, texts[0])
    over, seen = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        write_text(path, texts[number % 2])
    over.set()
    reader.join()
    assert seen
    assert set(seen) <= set(texts)


def test_text_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for path in ("file/text.txt", "file/a/text.txt", "folder"):
        with told(f"can't write {tmp_path / path}: "):
            write_text(tmp_path / path, "text")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine"


def make(folder: Path, failure: BaseException | None = None) -> bool:
    """Make a folder slowly; returns whether this call did."""
    with made_once(folder) as partial:
        if partial is None:
            assert (folder / "below" / "last").read_text() == "whole"
            return False
        assert not folder.is_dir()
        assert not list(partial.iterdir())
        (partial / "below").mkdir()
        if failure:
            raise failure
        time.sleep(0.2)
        (partial / "below" / "last").write_text("whole")
    return True


def by_threads(folder: Path, count: int) -> list[bool]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(make, [folder] * count))


def by_processes(folder: Path, count: int) -> list[bool]:
    with multiprocessing.get_context("fork").Pool(count) as pool:
        return pool.map(make, [folder] * count, chunksize=1)


@pytest.mark.parametrize("at_once", [by_threads, by_processes])
def test_one_makes_and_the_others_wait(
    tmp_path: Path, at_once: Callable[[Path, int], list[bool]]
) -> None:
    folder = tmp_path / "cache" / "made"
    assert sorted(at_once(folder, 4)) == [False, False, False, True]
    assert make(folder) is False
    assert names(folder.parent) == ["made"]
    assert names(folder) == ["below"]


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), OSError(28, "full")])
def test_a_failure_leaves_nothing_and_the_next_may_try(
    tmp_path: Path, failure: BaseException
) -> None:
    with pytest.raises(type(failure)) as caught:
        make(tmp_path / "made", failure)
    assert caught.value is failure
    assert names(tmp_path) == []
    assert make(tmp_path / "made") is True


def leave(folder: Path) -> None:
    with made_once(folder) as partial:
        assert partial is not None
        (partial / "stale").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=leave, args=(tmp_path / "made",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.rglob("stale"))
    assert make(tmp_path / "made") is True
    assert names(tmp_path) == ["made"]
    assert not list(tmp_path.rglob("stale"))


def test_a_made_folder_is_as_open_as_any_other(tmp_path: Path) -> None:
    make(tmp_path / "made")
    (tmp_path / "other").mkdir()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("made", "other")}
    assert len(modes) == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in ("file", "file/made", "file/a/made"):
        with told(f"can't write {tmp_path / path}: "):
            make(tmp_path / path)
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with made_once(tmp_path / "mine") as partial:
        assert partial is None
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
