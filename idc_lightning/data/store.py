"""From the table of patches to their pixels, decoded once and kept in memory.

Each file is checked while it is read, so that a broken one is known before training begins; what
had to be converted or padded is counted.
"""

import hashlib
import io
import os
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from idc_lightning.data.grid import PATCH
from idc_lightning.errors import IDCError
from idc_lightning.progress import watched

CHUNK = 256
"""Patches that a thread decodes at a time."""

WHITE = 255

START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
"""How each PNG begins; width, height and bits of a sample follow (PNG specification, 11.2.1)."""

HEADER = struct.Struct(f">{len(START)}sIIB")

COLUMNS = ("width", "height", "edge", "blank", "digest")
"""What reading adds to a table of patches."""

DAMAGED = (
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises at damaged files, beside OSError."""


@dataclass(frozen=True)
class Store:
    """The pixels of a table of patches.

    Attributes:
        table: The patches that could be read, with further columns width
            and height (int64, pixels of the file), edge (bool, smaller than 50x50 px), blank (bool,
            one colour throughout) and digest (str, of the pixels as they were in the file).
        packed: Pixels of the table's rows and perhaps of others, uint8 [M, 50, 50, 3], RGB.
        places: Row of ``packed`` for each row of the table, int64 [N].
        key: A hash of all that ``packed`` holds.
        converted: Number of files by what they were converted from (grey, RGBA, which is
            all with transparency, 16-bit, palette).
        broken: The patches left out because their files can't be read, with a further column
            problem (str).
        dropped: Number of edge patches left out.
        stretched: Number of edge patches stretched to 50x50 px.
    """

    table: pd.DataFrame
    packed: npt.NDArray[np.uint8]
    places: npt.NDArray[np.int64]
    key: str
    converted: dict[str, int]
    broken: pd.DataFrame
    dropped: int
    stretched: int = 0

    def read(self, rows: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Copy the pixels of some patches.

        Args:
            rows: Rows of the table, of any shape.

        Returns:
            Uint8 [..., 50, 50, 3].
        """
        pixels: npt.NDArray[np.uint8] = self.packed[self.places[np.asarray(rows)]]
        return pixels

    def notes(self) -> list[str]:
        """One line on each kind of patch that was left out or changed."""
        kinds = {
            "left out {} patches that can't be read": len(self.broken),
            "left out {} edge patches": self.dropped,
            "edge patches smaller than 50x50 px: {}": int(self.table["edge"].sum()),
            "edge patches stretched to 50x50 px: {}": self.stretched,
        }
        notes = [line.format(f"{count:,}") for line, count in kinds.items() if count]
        return notes + [
            f"converted {n:,} {kind} patches to RGB" for kind, n in sorted(self.converted.items())
        ]


@dataclass(frozen=True)
class _Decoded:
    """One file: either its pixels or what is wrong with it."""

    pixels: npt.NDArray[np.uint8] | None = None
    problem: str = ""
    converted: str = ""
    width: int = 0
    height: int = 0
    edge: bool = False
    blank: bool = False
    digest: str = ""


def decode(
    root: Path, table: pd.DataFrame, *, edge_patches: str = "pad", on_broken: str = "error"
) -> Store:
    """Read all patches of a table.

    Args:
        root: Folder that the table's paths start from.
        table: Patches with the column path.
        edge_patches: What becomes of patches smaller than 50x50 px: ``"pad"`` with white on the
            right and below, ``"resize"`` (bilinear) or ``"drop"``.
        on_broken: ``"error"``, or ``"skip"`` to leave out files that can't be read.

    Raises:
        IDCError: Naming all files that can't be read, or if no patch is left.
    """
    paths = [str(root / path) for path in table["path"]]
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    pixels = np.full((len(paths), PATCH, PATCH, 3), WHITE, dtype=np.uint8)
    found: list[_Decoded] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(lambda chunk: [_decode(path, edge_patches) for path in chunk], chunks)
        for patches in watched(decoded, "reading patches", total=len(chunks)):
            for patch in patches:
                if patch.pixels is not None:
                    height, width = patch.pixels.shape[:2]
                    pixels[len(found), :height, :width] = patch.pixels
                found.append(_without_pixels(patch))
    broken = np.array([bool(patch.problem) for patch in found], dtype=bool)
    problems = [patch.problem for patch in found if patch.problem]
    unread = table[broken].assign(problem=problems).reset_index(drop=True)
    if broken.any() and on_broken == "error":
        raise _broken_files(unread)
    edge = np.array([patch.edge for patch in found], dtype=bool)
    kept = ~broken & ~(edge if edge_patches == "drop" else np.zeros_like(edge))
    if not kept.any():
        raise IDCError(f"no patch of {root} is left: all are broken or dropped as edge patches")
    columns = {name: [getattr(patch, name) for patch in found] for name in COLUMNS}
    read = table.assign(**columns)[kept].reset_index(drop=True)
    content = f"{edge_patches} {' '.join(read['digest'])}"
    return Store(
        table=read,
        packed=pixels if kept.all() else pixels[kept],
        places=np.arange(len(read)),
        key=hashlib.blake2b(content.encode(), digest_size=12).hexdigest(),
        converted=dict(Counter(p.converted for p in compress(found, kept) if p.converted)),
        broken=unread,
        dropped=int((edge & ~broken & ~kept).sum()),
        stretched=int(edge[kept].sum()) if edge_patches == "resize" else 0,
    )


def _without_pixels(patch: _Decoded) -> _Decoded:
    """All but the pixels, which stand in the store."""
    return replace(patch, pixels=None)


def read_patch(path: Path, *, stretched: bool = False) -> npt.NDArray[np.uint8]:
    """Read one file, in RGB.

    Args:
        path: The file.
        stretched: Whether a patch smaller than 50x50 px is stretched as by
            ``edge_patches="resize"``, or stays as it is.

    Returns:
        Uint8 [height, width, 3], at most 50x50.

    Raises:
        IDCError: If it can't be read.
    """
    patch = _decode(str(path), "resize" if stretched else "pad")
    if patch.pixels is None:
        raise IDCError(f"can't read the patch {path}: {patch.problem}")
    return patch.pixels


def _broken_files(unread: pd.DataFrame) -> IDCError:
    lines = [f"  {row.path}: {row.problem}" for row in unread.itertuples()]
    return IDCError(
        "\n".join(
            [
                f"{len(lines)} patches can't be read (listed below): mend or delete them, or "
                "set data.on_broken=skip to leave them out",
                *lines,
            ]
        )
    )


def _decode(path: str, edge_patches: str) -> _Decoded:
    try:
        content = Path(path).read_bytes()
        if not content:
            return _Decoded(problem="empty file")
        if len(content) < HEADER.size or not content.startswith(START):
            return _Decoded(problem="not a PNG image")
        _, width, height, bits = HEADER.unpack_from(content)
        if width > PATCH or height > PATCH:
            return _Decoded(problem=f"{width}x{height} px, more than {PATCH}x{PATCH}")
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.size != (width, height):
                return _Decoded(problem="damaged PNG (has two headers)")
            image.load()
            rgb, converted = _to_rgb(image, bits)
    except UnidentifiedImageError:
        return _Decoded(problem="not a PNG image")
    except OSError as error:
        return _Decoded(problem=error.strerror or str(error))
    except DAMAGED as error:
        return _Decoded(problem=f"damaged PNG ({error})")
    pixels = np.asarray(rgb)
    edge = pixels.shape[:2] != (PATCH, PATCH)
    blank = bool((pixels == pixels[0, 0]).all())
    size = f"{width}x{height}".encode()
    digest = hashlib.blake2b(size + pixels.tobytes(), digest_size=12).hexdigest()
    if edge and edge_patches == "resize":
        pixels = np.asarray(rgb.resize((PATCH, PATCH), Image.Resampling.BILINEAR))
    return _Decoded(pixels, "", converted, width, height, edge, blank, digest)


def _to_rgb(image: Image.Image, bits: int) -> tuple[Image.Image, str]:
    """Convert to 8-bit RGB.

    Args:
        image: A PNG of any mode.
        bits: Bits of a sample, from the file's header.

    Returns:
        The image and what it was before, which is empty if it was 8-bit RGB.
    """
    if image.mode.startswith("I"):  # grey of 16 bit; Pillow would clip it at 255
        wide = np.asarray(image, dtype=np.int64)
        return Image.fromarray((wide // 257).astype(np.uint8)).convert("RGB"), "16-bit"
    kind = "16-bit" if bits == 16 else ""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image, kind
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), kind or "RGBA"
    return image.convert("RGB"), kind or ("palette" if image.mode == "P" else "grey")
