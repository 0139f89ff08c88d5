"""A .zip of the data set, as downloaded, unpacked once to the cache.

Only patches are unpacked, each under the path that its name demands, and the archive's nested
second copy isn't; so nothing in an archive can write outside the cache.
"""

import hashlib
import json
import lzma
import os
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from idc_lightning.data.decode import LARGEST
from idc_lightning.data.grid import FILE_NAME
from idc_lightning.errors import IDCError, listed
from idc_lightning.files import count_files, made_once, write_text
from idc_lightning.progress import watched

PATIENTS = "patients"
COUNTS = "counts.json"
"""Below an archive's folder: the patients' folders, and numbers of what was unpacked or wasn't."""

UNPACKED = "patches"
"""Name of the former among these numbers."""

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
        os.fsencode(archive.resolve()) + f"|{state.st_size}|{state.st_mtime_ns}|{COUNTS}".encode()
    ).hexdigest()[:16]
    folder = cache / "archives" / f"{archive.stem}-{key}"
    with made_once(folder) as partial:
        if partial is not None:
            _extract(archive, partial)
    return folder / PATIENTS


def left_out(root: Path) -> list[str]:
    """One line on each kind of member that `unpack` left out.

    Args:
        root: What `unpack` returned.

    Raises:
        IDCError: If patches of the archive, or their number, are gone.
    """
    gone = f"parts of {root.parent} are gone or damaged: delete this folder"
    try:
        counts = json.loads((root.parent / COUNTS).read_text(encoding="utf-8"))
        unpacked = counts.pop(UNPACKED)
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise IDCError(gone) from error
    if count_files(root) < unpacked:
        raise IDCError(gone)
    return [f"left out {count:,} {kind} of the archive" for kind, count in counts.items() if count]


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            members, counts = _patches(archive, file.infolist())
            write_text(folder / COUNTS, json.dumps(counts))
            for member in watched(members, f"unpacking {archive.name}"):
                target = folder.joinpath(PATIENTS, *PurePosixPath(member.filename).parts[-3:])
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


def _patches(
    archive: Path, members: list[zipfile.ZipInfo]
) -> tuple[list[zipfile.ZipInfo], dict[str, int]]:
    """Members that are patches of the outermost copy of the data set, and numbers of others."""
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
    chosen = [member for above, member in found if above == outermost]
    files = sum(not member.is_dir() for member in members)
    return chosen, {
        UNPACKED: len({PurePosixPath(member.filename) for member in chosen}),
        "patches in a nested copy": len(found) - len(chosen),
        "files that are no patches": files - len(found),
    }
