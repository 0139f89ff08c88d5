"""A .zip of the data set, as downloaded, unpacked once to the cache.

Only patches are unpacked, each under the path that its name demands, and the archive's nested
second copy isn't; so nothing in an archive can write outside the cache.
"""

import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from idc_lightning.data.grid import FILE_NAME
from idc_lightning.errors import IDCError, listed
from idc_lightning.files import made_once
from idc_lightning.progress import watched

LARGEST = 1_000_000
"""Bytes of the largest file that is taken for a patch; a true one has some 7,500."""

UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,  # encrypted, or packed by a method that Python doesn't know
    ValueError,  # names that are no text
)
"""What reading a damaged archive raises."""


def unpack(archive: Path, cache: Path) -> Path:
    """Unpack an archive, or find it unpacked.

    Args:
        archive: A .zip of the data set; its name, size and time tell it from others.
        cache: Folder below which the patches are kept.

    Returns:
        Folder of the patients' folders.

    Raises:
        IDCError: If the archive can't be read, or holds no patches or several data sets.
    """
    state = archive.stat()
    key = hashlib.sha256(
        f"{archive.resolve()}|{state.st_size}|{state.st_mtime_ns}".encode()
    ).hexdigest()[:16]
    folder = cache / "archives" / f"{archive.stem}-{key}"
    with made_once(folder) as partial:
        if partial is not None:
            _extract(archive, partial)
    return folder


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members = _patches(archive, file.infolist())
            for member in watched(members, f"unpacking {archive.name}"):
                target = folder.joinpath(*PurePosixPath(member.filename).parts[-3:])
                _write(target, file.read(member))
    except UNREADABLE as error:
        raise IDCError(
            f"can't read the archive {archive}: {error}; download it again or unpack it yourself"
        ) from error


def _write(target: Path, content: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except OSError as error:
        raise IDCError(f"can't unpack to {target}: {error.strerror}") from error


def _patches(archive: Path, members: Iterable[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Members that are patches of the outermost copy of the data set."""
    found = []
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if (
            len(parts) >= 3
            and parts[-2] in ("0", "1")
            and not {"/", "//", "..", "__MACOSX"} & set(parts)
            and FILE_NAME.fullmatch(parts[-1])
            and not member.is_dir()
            and member.file_size <= LARGEST
        ):
            found.append((parts[:-3], member))
    copies = sorted({above for above, _ in found}, key=lambda above: (len(above), above))
    if not copies:
        raise IDCError(f"no patches in {archive}: is it the archive of the data set?")
    outermost = copies[0]
    if any(above[: len(outermost)] != outermost for above in copies):
        names = listed(["/".join(above) for above in copies])
        raise IDCError(
            f"{archive} holds several data sets ({names}): unpack it and set data.root to one of "
            "them"
        )
    return [member for above, member in found if above == outermost]
