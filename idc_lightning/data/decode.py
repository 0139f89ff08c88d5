"""One file to the pixels of a patch, checked while it is read.

Files are untrusted: whatever they hold ends in pixels or in one line on what is wrong with them.
"""

import errno
import hashlib
import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, UnidentifiedImageError

from idc_lightning.data.grid import PATCH
from idc_lightning.errors import IDCError
from idc_lightning.files import in_units

WHITE = 255

START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
"""How each PNG begins; width, height and bits of a sample follow (PNG specification, 11.2.1)."""

LARGEST = 1_000_000
"""Bytes of the largest file that is taken for a patch; a true one has some 7,500."""

HEADER = struct.Struct(f">{len(START)}sIIB")

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
class Decoded:
    """One file: either its pixels or what is wrong with it.

    Attributes:
        pixels: Uint8 [height, width, 3], RGB, at most 50x50; None of a broken file.
        problem: What is wrong; empty if nothing is.
        converted: What the file was before: grey, RGBA (which is all with transparency), 16-bit or
            palette; empty for 8-bit RGB.
    """

    pixels: npt.NDArray[np.uint8] | None = None
    problem: str = ""
    converted: str = ""


def read_file(path: str | Path) -> bytes:
    """Read what shall be a patch.

    Raises:
        OSError: If it can't be read, or is no patch whatever it holds: a pipe or device, which may
            have no end, or more than `LARGEST` bytes.
    """
    # A pipe would be waited for, unless opened so.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a file", str(path))
        if status.st_size > LARGEST:
            raise OSError(
                errno.EFBIG, f"{in_units(status.st_size)}, too much for a patch", str(path)
            )
        return os.read(handle, status.st_size)
    finally:
        os.close(handle)


def decode(path: str | Path) -> Decoded:
    """Read one file; never raises for what it holds, or for its absence."""
    try:
        content = read_file(path)
        if not content:
            return Decoded(problem="empty file")
        if len(content) < HEADER.size or not content.startswith(START):
            return Decoded(problem="not a PNG image")
        _, width, height, bits = HEADER.unpack_from(content)
        if width > PATCH or height > PATCH:
            return Decoded(problem=f"{width}x{height} px, more than {PATCH}x{PATCH}")
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.size != (width, height):
                return Decoded(problem="damaged PNG (has two headers)")
            image.load()
            rgb, converted = _to_rgb(image, bits)
    except UnidentifiedImageError:
        return Decoded(problem="not a PNG image")
    except OSError as error:
        return Decoded(problem=error.strerror or str(error))
    except DAMAGED as error:
        return Decoded(problem=f"damaged PNG ({error})")
    return Decoded(np.frombuffer(rgb.tobytes(), np.uint8).reshape(height, width, 3), "", converted)


def read_patch(path: Path, *, stretched: bool = False) -> npt.NDArray[np.uint8]:
    """Read one file that has to be whole.

    Args:
        path: The file.
        stretched: Whether a patch smaller than 50x50 px is stretched, or stays as it is.

    Returns:
        Uint8 [height, width, 3], RGB, at most 50x50.

    Raises:
        IDCError: If it can't be read.
    """
    patch = decode(path)
    if patch.pixels is None:
        raise IDCError(f"can't read the patch {path}: {patch.problem}")
    return stretch(patch.pixels) if stretched else patch.pixels


def stretch(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Resize a patch, uint8 [height, width, 3], to [50, 50, 3] (bilinear)."""
    resized = Image.fromarray(pixels).resize((PATCH, PATCH), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def digest(pixels: npt.NDArray[np.uint8]) -> str:
    """A hash of a patch's pixels and size, as 24 hexadecimal digits."""
    height, width = pixels.shape[:2]
    size = f"{width}x{height}".encode()
    return hashlib.blake2b(size + pixels.tobytes(), digest_size=12).hexdigest()


def image_keys(digests: pd.Series) -> npt.NDArray[np.int64]:
    """The first 8 bytes of each `digest`, as numbers [n], which tell 10^7 images apart."""
    first = "".join(digests.str[:16])
    return np.frombuffer(bytes.fromhex(first), dtype=">i8").astype(np.int64)


def is_blank(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether a patch has one colour throughout."""
    content = pixels.tobytes()
    return content == content[:3] * (len(content) // 3)


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
