"""Files of all kinds for the tests that read them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from idc_lightning.data.grid import PATCH

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (PATCH, PATCH, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (PATCH, PATCH), dtype=np.uint8)
ALPHA = RNG.choice(np.array([0, 255], dtype=np.uint8), (PATCH, PATCH))


def png(pixels: np.ndarray, **options: object) -> bytes:
    return saved(Image.fromarray(pixels), **options)


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def by_hand(width: int, height: int, bits: int, colour: int, *middle: bytes) -> bytes:
    """A PNG that Pillow can't write; colour: 0 grey, 2 RGB, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *middle, chunk(b"IEND", b"")])


def wide(samples: np.ndarray, colour: int) -> bytes:
    """A PNG of 16-bit samples."""
    height, width = samples.shape[:2]
    lines = (b"\0" + line.astype(">u2").tobytes() for line in samples)
    return by_hand(width, height, 16, colour, chunk(b"IDAT", zlib.compress(b"".join(lines))))


def write_numbered(folder: Path, *contents: bytes) -> pd.DataFrame:
    """Write 0.png, 1.png, ...; returns their table."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)
    return pd.DataFrame({"path": [f"{number}.png" for number in range(len(contents))]})
