"""A .zip of the data set, as downloaded, unpacked once to the cache.

Only patches are unpacked, each under the path that its name demands, and the archive's nested
second copy isn't; so nothing in an archive can write outside the cache.
"""

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from rich.progress import track

from idc_lightning.data.grid import FILE_NAME
from idc_lightning.errors import IDCError
from idc_lightning.files import made_once

LARGEST = 1_000_000
"""Bytes of the largest file that is taken for a patch; a true one has some 7,500."""


def unpack(archive: Path, cache: Path) -> Path:
    """Unpack an archive, or find it unpacked.

    Args:
        archive: A .zip of the data set; its name, size and time tell it from others.
        cache: Folder below which the patches are kept.

    Returns:
        Folder of the patients' folders.

    Raises:
        IDCError: If the archive can't be read or holds no patches.
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
            members = _patches(file.infolist())
            if not members:
                raise IDCError(f"no patches in {archive}: is it the archive of the data set?")
            for member in track(members, f"unpacking {archive.name}", transient=True):
                target = folder.joinpath(*PurePosixPath(member.filename).parts[-3:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read(member))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise IDCError(f"can't read the archive {archive}: {error}; download it again") from error
    except OSError as error:
        raise IDCError(f"can't unpack {archive} to {folder.parent}: {error.strerror}") from error


def _patches(members: Iterable[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Members that are patches of the outermost copy of the data set."""
    found = []
    for member in members:
        parts = PurePosixPath(member.filename).parts
        if (
            len(parts) >= 3
            and parts[-2] in ("0", "1")
            and not {"/", "..", "__MACOSX"} & set(parts)
            and FILE_NAME.fullmatch(parts[-1])
            and member.file_size <= LARGEST
        ):
            found.append((parts[:-3], member))
    copies = Counter(above for above, _ in found)
    if not copies:
        return []
    outermost = min(copies, key=lambda above: (len(above), above))
    return [member for above, member in found if above == outermost]
