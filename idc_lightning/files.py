"""Files and folders that are whole or absent: written under another name, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from idc_lightning.errors import IDCError


def write_text(path: Path, text: str) -> None:
    """Write a file of text (UTF-8) so that a reader never sees a part of it.

    Raises:
        IDCError: If the folder can't be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", newline="")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise IDCError(f"can't write {path}: {error.strerror}") from error


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """Make a folder in one process while others wait, and only whole.

    Yields a temporary folder to fill, which becomes ``folder`` when the block ends without an
    exception, or None if ``folder`` is there already.

    Raises:
        IDCError: If the folder above can't be written.
    """
    if folder.is_dir():
        yield None
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        lock.acquire()
    except OSError as error:
        raise IDCError(f"can't write {folder.parent}: {error.strerror}") from error
    try:
        if folder.is_dir():
            yield None
            return
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield partial
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        lock.release()
