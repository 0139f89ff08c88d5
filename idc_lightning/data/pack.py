"""The pixels of a data set on disk, decoded once: a folder with an array, its table and its facts.

A pack holds all files of a data set as they are; what a run takes of them is chosen by the store.
"""

import csv
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd

from idc_lightning.data.checked import CheckedRows, checksums_of
from idc_lightning.data.decode import WHITE, decode, digest, is_blank, stretch
from idc_lightning.data.grid import PATCH
from idc_lightning.errors import IDCError
from idc_lightning.files import in_units, locked, need_room, remade, sync, write_text
from idc_lightning.processes import shared_out, usable_cpus
from idc_lightning.progress import watched

FORMAT = 3
"""Number of the files' layout and of how they are decoded, to be raised with each change."""

STORES = "stores"
"""Folder of all packs in a cache."""

PIXELS = "pixels.npy"
CHECKSUMS = "checksums.npy"
TABLE = "table.csv"
FACTS = "pack.json"

COLUMNS = (
    "path",
    "width",
    "height",
    "blank",
    "digest",
    "converted",
    "problem",
    "stretched",
)

SHAPE = (PATCH, PATCH, 3)
BYTES = PATCH * PATCH * 3

CHUNK = 256
"""Files that a process decodes at a time."""

INLINE = 1500
"""Files up to which starting processes costs more than it saves."""

LOOKED_AT = 64
"""Patches whose pixels are checked when a pack is opened."""

TIMED = 32
"""Files that are decoded to foretell how long all will take."""

LINE = 120
"""Bytes of a file in the table, about."""


@dataclass(frozen=True)
class Pack:
    """All patches of a data set, decoded.

    Attributes:
        folder: Where it lies.
        paths: The files, below the data's root, ordered.
        pixels: Uint8 [N + E, 50, 50, 3], RGB, mapped from disk and checked when they are read: the
            N files, smaller ones padded with white on the right and below (and broken ones white),
            then the E smaller ones once more, stretched.
        table: One row for each file: width and height (int64, pixels of the file; 0 of a broken
            one), blank (bool, one colour throughout), digest (str, of the pixels as they are in the
            file), converted (str, from what; see `idc_lightning.data.decode.Decoded`), problem
            (str, why it can't be read), stretched (int64, row of ``pixels`` where it lies
            stretched; -1 of one that isn't smaller).
        key: A hash of names and pixels of all files.
    """

    folder: Path
    paths: list[str]
    pixels: CheckedRows
    table: pd.DataFrame
    key: str


def open_pack(root: Path, paths: Sequence[str], cache: Path, *, check_all: bool = False) -> Pack:
    """Open the pack of some files; decode them if there is none, or if it is damaged.

    The pack is found by the files' names below the root, their sizes and times, so that a data set
    may be moved as a whole. One process packs while others wait.

    Args:
        root: Folder that the paths start from.
        paths: The files.
        cache: Folder of what can be made again.
        check_all: Whether the pixels of all patches are checked, not only of some. The others are
            when they are first read.

    Raises:
        IDCError: If the cache can't be written, has too little room, or a process is killed.
    """
    paths = sorted(paths)
    folder = cache.expanduser() / STORES / _key(root, paths)
    try:
        return _open(folder, root, paths, check_all)
    except _UnusableError:
        _make_parent(folder)
    with locked(folder, waiting=f"waiting for another process that packs {folder}"):
        try:
            return _open(folder, root, paths, check_all)
        except _UnusableError as reason:
            if folder.is_dir():
                print(f"packing again, since {reason}: {folder}", flush=True)
            _pack(folder, root, paths)
    return _open(folder, root, paths, check_all=False)


@dataclass(frozen=True)
class Stored:
    """A pack that lies in a cache.

    Attributes:
        folder: Where.
        size: Bytes on disk.
        patches: Number of files; None if the pack is damaged.
        root: Folder of the data set when it was packed; empty if the pack is damaged.
    """

    folder: Path
    size: int
    patches: int | None = None
    root: str = ""


def stored_packs(cache: Path) -> list[Stored]:
    """All packs of a cache, ordered by the root of their data."""
    found = []
    for folder in (cache.expanduser() / STORES).glob("[!.]*/"):
        size = sum(path.stat().st_size for path in folder.iterdir())
        try:
            facts = _read_facts(folder)
            found.append(Stored(folder, size, facts["patches"], facts["root"]))
        except (OSError, ValueError, KeyError):
            found.append(Stored(folder, size))
    return sorted(found, key=lambda stored: (stored.root, stored.folder))


def _make_parent(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not os.access(folder.parent, os.W_OK):
        raise IDCError(
            f"can't write {folder.parent}: Permission denied; choose another cache=<folder>"
        )


def _cannot_write(folder: Path, error: OSError) -> IDCError:
    return IDCError(f"can't write {folder}: {error.strerror}; choose another cache=<folder>")


def _key(root: Path, paths: Sequence[str]) -> str:
    """Name of a pack: a hash of all that tells whether a file has changed."""
    lines = [f"{FORMAT}"]
    for path in paths:
        try:
            status = os.stat(f"{root}/{path}")  # noqa: PTH116 - Path takes three times as long
        except OSError:
            lines.append(f"{path}\0")
        else:
            lines.append(f"{path}\0{status.st_size}\0{status.st_mtime_ns}")
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(text, digest_size=12).hexdigest()


class _UnusableError(Exception):
    """Why a pack can't be used."""


def _open(folder: Path, root: Path, paths: list[str], check_all: bool) -> Pack:
    """Read a pack.

    Raises:
        _UnusableError: If there is none, or it isn't what was packed.
    """
    try:
        facts = _read_facts(folder)
        content = {name: (folder / name).read_bytes() for name in (TABLE, CHECKSUMS)}
        pixels = np.asarray(np.load(folder / PIXELS, mmap_mode="r"))
        checksums = np.load(folder / CHECKSUMS)
    except (OSError, ValueError, EOFError) as error:
        raise _UnusableError("a file of it is missing or damaged") from error
    for name, known in ((TABLE, facts.get("table")), (CHECKSUMS, facts.get("checksums"))):
        if known != _hash(content[name]):
            raise _UnusableError(f"its {name} was changed")
    if pixels.shape != (facts.get("rows"), *SHAPE) or pixels.dtype != np.uint8:
        raise _UnusableError("its pixels are not all there")
    table = pd.read_csv(
        folder / TABLE,
        usecols=COLUMNS[1:],
        dtype={"digest": str, "converted": str, "problem": str},
        keep_default_na=False,
        encoding_errors="surrogateescape",
    )
    table["blank"] = table["blank"].astype(bool)
    if len(table) != len(paths):
        raise _UnusableError("its table is of other files")
    damaged = (
        f"the pixels in {folder} were changed after they were packed: idc-prepare, with the same "
        "data, packs them again"
    )
    rows = CheckedRows(pixels, checksums, damaged=damaged)
    _check_pixels(rows, check_all)
    broken = np.flatnonzero(table["problem"] != "")
    if any(not decode(root / paths[row]).problem for row in broken):
        raise _UnusableError("a file that couldn't be read can be read now")
    key = _hash(f"{facts['table']} {facts['checksums']}".encode())
    return Pack(folder, paths, rows, table, key)


def _read_facts(folder: Path) -> dict[str, Any]:
    """What pack.json says.

    Raises:
        OSError: If it is missing.
        ValueError: If it is damaged.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise ValueError(f"{folder / FACTS} holds no facts")
    return facts


def _spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """Numbers below ``count``, evenly spread and each once."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _check_pixels(pixels: CheckedRows, check_all: bool) -> None:
    """Compare pixels with their checksums.

    Raises:
        _UnusableError: If some aren't those that were packed.
    """
    rows = np.arange(len(pixels)) if check_all else _spread(len(pixels), LOOKED_AT)
    parts = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
    try:
        for part in watched(parts, "checking pixels", total=len(parts)) if check_all else parts:
            pixels.read(part)
    except IDCError as error:
        raise _UnusableError("its pixels were changed") from error


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


@dataclass(frozen=True)
class _Packed:
    """What was found in some files, without the pixels that were written.

    Attributes:
        rows: Width, height, blank, digest, converted and problem of each.
        checksums: Of the pixels as they were written, uint32, by parts.
        stretched: Pixels of the smaller ones, uint8 [50, 50, 3], by their numbers.
    """

    rows: list[tuple[int, int, int, str, str, str]] = field(default_factory=list)
    checksums: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    stretched: dict[int, npt.NDArray[np.uint8]] = field(default_factory=dict)


def _pack(folder: Path, root: Path, paths: list[str]) -> None:
    """Decode all files into a folder."""
    size = len(paths) * (BYTES + LINE)
    need_room(
        folder.parent,
        size,
        what=f"packing {len(paths):,} patches takes",
        instead="or choose another cache=<folder>",
    )
    seconds = _foretold(root, paths)
    print(
        f"packing {len(paths):,} patches once, about {seconds:.0f} s: {in_units(size)} in {folder}",
        flush=True,
    )
    try:
        with remade(folder) as partial:
            _write(partial, root, paths)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _foretold(root: Path, paths: list[str]) -> float:
    """Seconds that decoding will take, at least 1, by decoding a few files."""
    rows = _spread(len(paths), TIMED)
    began = time.perf_counter()
    for row in rows:
        decode(root / paths[row])
    each = (time.perf_counter() - began) / len(rows)
    processes = 1 if len(paths) <= INLINE else usable_cpus()
    return max(1.0, each * len(paths) / processes)


def _write(folder: Path, root: Path, paths: list[str]) -> None:
    packed = _write_pixels(folder / PIXELS, root, paths)
    places = {number: len(paths) + index for index, number in enumerate(packed.stretched)}
    table = folder / TABLE
    with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as text:
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows(
            (path, *row, places.get(number, -1))
            for number, (path, row) in enumerate(zip(paths, packed.rows, strict=True))
        )
    stretched = checksums_of(packed.stretched.values())
    with (folder / CHECKSUMS).open("wb") as file:
        np.save(file, np.concatenate([*packed.checksums, stretched]))
    facts = {
        "format": FORMAT,
        "patches": len(paths),
        "rows": len(paths) + len(places),
        "table": _hash(table.read_bytes()),
        "checksums": _hash((folder / CHECKSUMS).read_bytes()),
        "root": str(root.absolute()).encode("utf-8", "backslashreplace").decode(),
    }
    write_text(folder / FACTS, json.dumps(facts, indent=2))
    for name in (PIXELS, CHECKSUMS, TABLE, FACTS):
        sync(folder / name)


def _write_pixels(file: Path, root: Path, paths: list[str]) -> _Packed:
    """Write the array: all files, then the smaller ones stretched."""
    with file.open("wb") as out:
        start = _write_header(out, len(paths))
        out.truncate(start + len(paths) * BYTES)
    calls = [
        (str(root), paths[first : first + CHUNK], first, str(file), start)
        for first in range(0, len(paths), CHUNK)
    ]
    few = len(paths) <= INLINE
    packed = _Packed()
    with shared_out(
        _pack_some, calls, "packed patches", count=len(calls), alone=few, fork=True
    ) as parts:
        for part in watched(parts, "packing patches", total=len(calls)):
            packed.rows.extend(part.rows)
            packed.checksums.extend(part.checksums)
            packed.stretched.update(part.stretched)
    with file.open("r+b") as out:
        out.seek(0, os.SEEK_END)
        for pixels in packed.stretched.values():
            out.write(pixels.tobytes())
        out.seek(0)
        _write_header(out, len(paths) + len(packed.stretched))
    return packed


def _write_header(out: BinaryIO, rows: int) -> int:
    """Write the head of an array, as long for any number of rows; returns where its data begin."""
    shape = {"descr": "|u1", "fortran_order": False, "shape": (rows, *SHAPE)}
    np.lib.format.write_array_header_1_0(out, shape)
    return out.tell()


def _pack_some(root: str, paths: list[str], first: int, file: str, start: int) -> _Packed:
    """Decode some files and write their pixels into the array."""
    pixels = np.full((len(paths), *SHAPE), WHITE, dtype=np.uint8)
    found = _Packed()
    for number, path in enumerate(paths):
        patch = decode(f"{root}/{path}")
        if patch.pixels is None:
            found.rows.append((0, 0, 0, "", "", patch.problem))
            continue
        height, width = patch.pixels.shape[:2]
        pixels[number, :height, :width] = patch.pixels
        blank = int(is_blank(patch.pixels))
        found.rows.append((width, height, blank, digest(patch.pixels), patch.converted, ""))
        if (height, width) != (PATCH, PATCH):
            found.stretched[first + number] = stretch(patch.pixels)
    found.checksums.append(checksums_of(pixels))
    # Writing tells of a full disk by an error; a memory map would end the process.
    with Path(file).open("r+b") as out:
        out.seek(start + first * BYTES)
        out.write(pixels.data)
    return found
