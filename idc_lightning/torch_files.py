"""Files of tensors and plain values: written whole or not at all, read without running code.

Checkpoints and pretrained weights are such files. A changed byte in one is told when it is read.
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from idc_lightning.errors import IDCError
from idc_lightning.files import replaced


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of weights without running code that it may hold.

    Raises:
        IDCError: If it is absent, damaged or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise IDCError(f"no such checkpoint: {path}")
    try:
        with warnings.catch_warnings():  # what is odd about a damaged file is told below
            warnings.simplefilter("ignore")
            _check_content(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = (
            "it holds Python objects, which could run code when loaded; only tensors and plain "
            "values are read"
            if "GLOBAL" in str(error) or "Unsupported class" in str(error)
            else "it is damaged, incomplete or no checkpoint"
        )
        raise IDCError(f"can't read {path}: {reason}") from error
    except PermissionError as error:
        raise IDCError(f"can't read {path}: {error.strerror}") from error
    except Exception as error:  # damaged bytes make the unpickler fail in many ways
        raise IDCError(f"can't read {path}: it is damaged, incomplete or no checkpoint") from error
    if not isinstance(content, dict):
        raise IDCError(f"can't read {path}: it holds a {type(content).__name__}, not weights")
    return content


def _check_content(path: Path) -> None:
    """Compare the parts of a file of weights with their checksums, which torch doesn't look at.

    Raises:
        zipfile.BadZipFile: If one was changed.
    """
    if not zipfile.is_zipfile(path):  # torch's format before 2020 has no checksums
        return
    with zipfile.ZipFile(path) as parts:
        changed = parts.testzip()
    if changed is not None:
        raise zipfile.BadZipFile(f"{changed} was changed")


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a file that `read_checkpoint` reads; what was there stays until it is whole.

    Raises:
        IDCError: If the folder can't be written.
    """
    with replaced(path) as partial:
        save(content, partial)


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file as `torch.save` does, which itself doesn't say what the disk refused.

    Raises:
        OSError: If the disk refuses something.
    """
    with path.open("wb") as file:
        sink = _Sink(file)
        torch.save(content, cast("BinaryIO", sink))
        if sink.error is not None:
            raise sink.error


class _Sink:
    """A file that takes all, and keeps what the disk refused first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self.error = error
        return len(content)

    def flush(self) -> None:
        """Do nothing: closing the file does it."""
