import io
import os
from pathlib import Path

import numpy as np
import pytest
from helpers_model import told
from helpers_png import ALPHA, GREY, RGB, by_hand, chunk, png, saved, wide
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idc_lightning.data.decode import Decoded, decode, digest, is_blank, read_patch, stretch
from idc_lightning.data.grid import PATCH

OVER_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB).astype(np.uint8)


def in_palette(pixels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """An image with a palette, and its colours as RGB."""
    image = Image.fromarray(pixels).quantize(16)
    return image, np.asarray(image.convert("RGB"))


def read(folder: Path, content: bytes) -> Decoded:
    (folder / "0.png").write_bytes(content)
    return decode(folder / "0.png")


PALETTE, PALETTE_RGB = in_palette(RGB)
CLEAR_INDEX = int(np.asarray(PALETTE)[0, 0])
CLEAR_PALETTE = np.where((np.asarray(PALETTE) == CLEAR_INDEX)[..., None], 255, PALETTE_RGB)
CLEAR_RGB = np.where((RGB[3, 4] == RGB).all(axis=-1)[..., None], 255, RGB)


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (png(RGB), "", RGB),
        (png(GREY), "grey", np.dstack([GREY] * 3)),
        (saved(Image.fromarray(GREY > 127)), "grey", np.dstack([(GREY > 127) * 255] * 3)),
        (png(np.dstack([RGB, ALPHA])), "RGBA", OVER_WHITE),
        (png(np.dstack([RGB, np.full_like(ALPHA, 255)])), "RGBA", RGB),
        (
            saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])),
            "RGBA",
            np.dstack([np.where(ALPHA == 0, 255, GREY)] * 3),
        ),
        (saved(PALETTE), "palette", PALETTE_RGB),
        (saved(PALETTE, transparency=CLEAR_INDEX), "RGBA", CLEAR_PALETTE),
        (png(RGB, transparency=tuple(RGB[3, 4].tolist())), "RGBA", CLEAR_RGB),
        (wide(GREY.astype(int) * 257, 0), "16-bit", np.dstack([GREY] * 3)),
        (wide(RGB.astype(int) * 257, 2), "16-bit", RGB),
        (wide(np.dstack([RGB, ALPHA]).astype(int) * 257, 6), "16-bit", OVER_WHITE),
    ],
    ids=[
        *("RGB", "grey", "1-bit", "RGBA", "opaque", "LA", "palette", "clear palette", "clear RGB"),
        *("16-bit grey", "16-bit RGB", "16-bit RGBA"),
    ],
)
def test_images_of_all_modes_become_rgb_with_the_same_colours(
    tmp_path: Path, content: bytes, kind: str, expected: np.ndarray
) -> None:
    patch = read(tmp_path, content)
    np.testing.assert_array_equal(patch.pixels, expected)
    assert patch.converted == kind
    assert patch.pixels.dtype == np.uint8


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    half = np.full((PATCH, PATCH, 4), (100, 0, 200, 128), dtype=np.uint8)
    mixed = read(tmp_path, png(half)).pixels[7, 7].astype(int)
    assert np.abs(mixed - (177, 127, 227)).max() <= 1


WHOLE = png(RGB)


@settings(max_examples=60)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_cut_file_is_a_problem_or_has_whole_pixels(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    found = read(tmp_path_factory.mktemp("cut"), WHOLE[:cut])
    if found.pixels is None:
        assert found.problem
    else:
        np.testing.assert_array_equal(found.pixels, RGB)
        assert cut > len(WHOLE) - 25  # only the last check sums and the end mark are missing


@settings(max_examples=60)
@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_spoiled_byte_is_a_problem_or_changes_no_pixel(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    spoiled = bytearray(WHOLE)
    spoiled[place] ^= 1 << bit
    found = read(tmp_path_factory.mktemp("spoiled"), bytes(spoiled))
    if found.pixels is None:
        assert found.problem
    else:
        np.testing.assert_array_equal(found.pixels, RGB)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG")
    return file.getvalue()


# Pillow raises IndexError at this one.
ODD_PROFILE = WHOLE[:-12] + chunk(b"iCCP", b"") + WHOLE[-12:]

BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"not an image", "not a PNG image"),
    "JPEG": (jpeg(), "not a PNG image"),
    "start only": (WHOLE[:20], "not a PNG image"),
    "cut": (WHOLE[:3000], "image file is truncated"),
    "tall": (png(np.zeros((PATCH + 1, PATCH, 3), np.uint8)), "50x51 px, more than 50x50"),
    "wide": (png(np.zeros((PATCH, 60, 3), np.uint8)), "60x50 px, more than 50x50"),
    "bomb": (by_hand(10**5, 10**5, 8, 2), "100000x100000 px, more than 50x50"),
    "smaller bomb": (by_hand(10**4, 10**4, 8, 2), "10000x10000 px, more than 50x50"),
    "nothing": (by_hand(0, PATCH, 8, 2), "not a PNG image"),
    "no pixels": (by_hand(PATCH, PATCH, 8, 2), "cannot load this image"),
    "odd profile": (ODD_PROFILE, "damaged PNG"),
    "two headers": (WHOLE[:33] + by_hand(60, 60, 8, 2)[8:33] + WHOLE[33:], "has two headers"),
}


@pytest.mark.filterwarnings("error")  # such as Pillow's about bombs
@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_gives_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    patch = read(tmp_path, content)
    assert patch.pixels is None
    assert reason in patch.problem
    assert "\n" not in patch.problem


def test_what_is_no_file_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.png").mkdir()
    assert decode(tmp_path / "link.png") == Decoded(problem="No such file or directory")
    assert decode(tmp_path / "folder.png") == Decoded(problem="not a file")


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(WHOLE)
        file.truncate(10**12)
    assert decode(tmp_path / "pipe.png") == Decoded(problem="not a file")
    assert decode(tmp_path / "device.png") == Decoded(problem="not a file")
    assert decode(tmp_path / "huge.png") == Decoded(problem="1e+03 GB, too much for a patch")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_gives_the_reason(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(WHOLE)
    (tmp_path / "0.png").chmod(0)
    assert decode(tmp_path / "0.png") == Decoded(problem="Permission denied")


def test_one_file_is_read_as_it_is_or_stretched(tmp_path: Path) -> None:
    (tmp_path / "edge.png").write_bytes(png(RGB[:9, :40]))
    np.testing.assert_array_equal(read_patch(tmp_path / "edge.png"), RGB[:9, :40])
    found = read_patch(tmp_path / "edge.png", stretched=True)
    np.testing.assert_array_equal(found, stretch(RGB[:9, :40]))
    (tmp_path / "empty.png").write_bytes(b"")
    with told("can't read the patch", "empty.png", "empty file"):
        read_patch(tmp_path / "empty.png")


def test_stretching_interpolates_between_the_pixels() -> None:
    ramp = np.repeat(np.linspace(0, 240, PATCH)[:, None, None], 3, axis=2).astype(np.uint8)
    np.testing.assert_array_equal(
        stretch(np.repeat(ramp, 10, axis=1)), np.repeat(ramp, PATCH, axis=1)
    )
    assert stretch(RGB[:1]).shape == (PATCH, PATCH, 3)


def test_the_digest_tells_images_apart_by_content_and_size(tmp_path: Path) -> None:
    other = RGB.copy()
    other[49, 49, 2] ^= 1
    grey = np.full((20, 10), 90, np.uint8)
    white_below = np.concatenate([RGB[:20], np.full((30, PATCH, 3), 255, np.uint8)])
    contents = [
        *(png(RGB), png(RGB, compress_level=0), png(other)),
        *(png(grey), png(grey.T.copy()), png(np.dstack([grey] * 3))),
        *(png(RGB[:20]), png(white_below)),
    ]
    digests = [digest(read(tmp_path, content).pixels) for content in contents]
    assert digests[0] == digests[1]  # same pixels in other bytes
    assert digests[3] == digests[5]
    assert len(set(digests)) == 6


def test_blank_patches_have_one_colour(tmp_path: Path) -> None:
    one = np.full((PATCH, PATCH, 3), (243, 240, 241), np.uint8)
    speck = one.copy()
    speck[49, 0, 1] += 1
    clear = np.dstack([RGB, np.zeros_like(ALPHA)])
    contents = [png(one), png(speck), png(one[:5]), png(clear), png(RGB)]
    blank = [is_blank(read(tmp_path, content).pixels) for content in contents]
    assert blank == [True, False, True, True, False]
