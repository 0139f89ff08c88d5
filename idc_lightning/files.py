"""Files and folders that are whole or absent: written under another name, then renamed."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from idc_lightning.errors import IDCError

PARTIAL = ".partial"
"""Ends the names of what isn't whole yet."""

LONGEST = 60
"""Letters of a name that `safe_name` keeps as it is."""


def safe_name(text: str) -> str:
    """Make a file name of any text, such as a patient's name, that all file systems take.

    Args:
        text: What shall be recognised in the name.

    Returns:
        The text itself if it has at most `LONGEST` letters, all of them in ``[A-Za-z0-9._-]``, and
        doesn't begin with a dot. Else others are replaced, the rest cut, and a hash of the text
        appended, so that different texts have different names.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]|^\.|^$", "_", text)
    if plain == text and len(text) <= LONGEST:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: LONGEST - 9]}-{digest}"


def write_text(path: Path, text: str) -> None:
    """Write a file of text (UTF-8) so that a reader never sees a part of it.

    Raises:
        IDCError: If the folder can't be written.
    """
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def in_units(size: float) -> str:
    """A number of bytes for people, at least 1 MB."""
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{max(size / 1e6, 1):.0f} MB"


def need_room(folder: Path, size: int, *, what: str, instead: str) -> None:
    """Stop before something is written if the disk can't take it.

    Args:
        folder: Where it is written.
        size: Bytes.
        what: Begins the error, e.g. ``"packing 6 patches takes"``.
        instead: Ends it: what else may be done than to free some room.

    Raises:
        IDCError: If there is too little room.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise IDCError(
            f"{what} {in_units(size)}, but {folder} has {in_units(free)} of room: free some, "
            f"{instead}"
        )


def sync(path: Path) -> None:
    """Wait until a file lies on the disk, so that it survives a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def count_files(folder: Path) -> int:
    """Number of files in a folder and in those below it."""
    return sum(len(names) for _, _, names in os.walk(folder))


def taken(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk; of a sparse file only what is written."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(512 * getattr(each, "st_blocks", -(-each.st_size // 512)) for each in found)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a temporary name, to be written in the block and renamed to ``path`` at its end.

    After an exception in the block nothing is left, and what was at ``path`` stays.

    Raises:
        IDCError: If the folder can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink()
    except OSError as error:
        raise IDCError(f"can't write {path}: {error.strerror}") from error


def remove_partials(folder: Path) -> None:
    """Remove what a killed process was writing by `replaced` in a folder and in those below it.

    No other process may be writing there.
    """
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink()


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Make a folder in one process while others wait, and only whole.

    Yields a temporary folder to fill, which becomes ``folder`` when the block ends without an
    exception, or None if ``folder`` is there already.

    Raises:
        IDCError: If the folder can't be made.
    """
    if folder.is_dir():
        yield None
        return
    with locked(folder):
        if folder.is_dir():
            yield None
            return
        with remade(folder) as partial:
            yield partial


@contextmanager
def remade(folder: Path) -> Iterator[Path]:
    """Make a folder anew, whole or not at all; to be called within `locked`.

    Yields a temporary folder to fill, which takes the place of ``folder`` when the block ends
    without an exception.

    Raises:
        IDCError: If the folder can't be made.
    """
    # Nobody else is here, so what bears this name was left by a process that was killed.
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
    except OSError as error:
        raise _cannot_make(folder, error) from error
    try:
        yield partial
        _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """Where `remade` makes a folder before it becomes whole."""
    return folder.parent / f".{folder.name}{PARTIAL}"


@contextmanager
def locked(folder: Path, *, waiting: str = "") -> Iterator[None]:
    """Work on a folder in one process while others wait.

    Args:
        folder: What is worked on; it needn't exist.
        waiting: A line that is printed if another process is at work.

    Raises:
        IDCError: If its parent can't be written.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if waiting:
                print(waiting, flush=True)
            lock.acquire()
    except OSError as error:
        raise _cannot_make(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def hold(lock: Path, refusal: str) -> FileLock:
    """Take a lock that is kept until this process ends or lets it go.

    Args:
        lock: Its file.
        refusal: The error if another process has it.

    Raises:
        IDCError: If another process has it, or its folder can't be written.
    """
    held = FileLock(lock, blocking=False)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except Timeout as error:
        raise IDCError(refusal) from error
    except OSError as error:
        raise _cannot_make(lock.parent, error) from error
    return held


def _rename(partial: Path, folder: Path) -> None:
    try:
        if folder.is_dir():
            shutil.rmtree(folder)
        partial.replace(folder)
    except OSError as error:
        raise _cannot_make(folder, error) from error


def _cannot_make(folder: Path, error: OSError) -> IDCError:
    return IDCError(f"can't write {folder}: {error.strerror}")
