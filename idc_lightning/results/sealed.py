"""results.json, which vouches for itself and for the files of its run that are read again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from idc_lightning.errors import IDCError
from idc_lightning.files import write_text

SEALED = ("splits.csv", "predictions.csv", "predictions/*.csv", ".hydra/*.yaml")
"""Files in a run folder whose hashes results.json keeps."""

FILES, SEAL = "files", "seal"


def write_results(path: Path, content: dict[str, Any]) -> None:
    """Write results.json, last of all files of a run.

    Args:
        path: The file.
        content: Plain values by key; no NaN. The SHA-256 of `SEALED` files and of all this are
            added under ``files`` and ``seal``.

    Raises:
        IDCError: If it can't be written.
    """
    folder = path.parent
    sealed = sorted(file for pattern in SEALED for file in folder.glob(pattern))
    files = {str(file.relative_to(folder)): _hash(file.read_bytes()) for file in sealed}
    content = {**content, FILES: files}
    text = json.dumps({**content, SEAL: _seal(content)}, indent=2, allow_nan=False)
    write_text(path, text + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json.

    Raises:
        IDCError: If it can't be read, or isn't what was written.
    """
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise IDCError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise IDCError(f"{path} is damaged: {error}") from error
    if content.pop(SEAL, None) != _seal(content):
        raise _changed(path)
    return content


def check_sealed(results: dict[str, Any], name: str, path: Path) -> None:
    """Stop if a file isn't what it was when its run ended.

    Args:
        results: Of `read_results`.
        name: Where it lay in the run folder, e.g. ``"predictions/dev.csv"``.
        path: Where it lies.

    Raises:
        IDCError: If it isn't, or can't be read.
    """
    try:
        found = _hash(path.read_bytes())
    except OSError as error:
        raise IDCError(f"can't read {path}: {error.strerror}") from error
    if results[FILES].get(name) != found:
        raise _changed(path)


def _seal(content: dict[str, Any]) -> str:
    return _hash(json.dumps(content, sort_keys=True).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _changed(path: Path) -> IDCError:
    return IDCError(f"{path} was changed after its run had ended: train again")
