import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idc_lightning.data.grid import PATCH
from idc_lightning.data.store import CHUNK, Store, decode, read_patch
from idc_lightning.errors import IDCError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (PATCH, PATCH, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (PATCH, PATCH), dtype=np.uint8)
ALPHA = RNG.choice(np.array([0, 255], dtype=np.uint8), (PATCH, PATCH))
OVER_WHITE = np.where(ALPHA[..., None] == 0, 255, RGB).astype(np.uint8)


def png(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
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


def in_palette(pixels: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """An image with a palette, and its colours as RGB."""
    image = Image.fromarray(pixels).quantize(16)
    return image, np.asarray(image.convert("RGB"))


def saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def read(folder: Path, *contents: bytes, **options: str) -> Store:
    for number, content in enumerate(contents):
        (folder / f"{number}.png").write_bytes(content)
    return decode(folder, names(len(contents)), **options)


def names(count: int) -> pd.DataFrame:
    return pd.DataFrame({"path": [f"{number}.png" for number in range(count)]})


def problems(error: IDCError) -> dict[str, str]:
    """Reasons by file."""
    lines = str(error).splitlines()[1:]
    return dict(line.removeprefix("  ").split(": ", 1) for line in lines)


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
    store = read(tmp_path, content)
    np.testing.assert_array_equal(store.packed[0], expected)
    assert store.converted == ({kind: 1} if kind else {})
    assert store.packed.dtype == np.uint8


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    half = np.full((PATCH, PATCH, 4), (100, 0, 200, 128), dtype=np.uint8)
    mixed = read(tmp_path, png(half)).packed[0, 7, 7].astype(int)
    assert np.abs(mixed - (177, 127, 227)).max() <= 1


def test_conversions_are_counted_by_kind_among_the_patches_that_stay(tmp_path: Path) -> None:
    small_grey = png(GREY[:20])
    contents = [png(GREY), png(GREY.T), saved(PALETTE), png(RGB), small_grey]
    assert read(tmp_path, *contents).converted == {"grey": 3, "palette": 1}
    store = read(tmp_path, *contents, edge_patches="drop")
    assert store.converted == {"grey": 2, "palette": 1}
    assert store.notes() == [
        "left out 1 edge patches",
        "converted 2 grey patches to RGB",
        "converted 1 palette patches to RGB",
    ]


WHOLE = png(RGB)


def pixels_or_problems(folder: Path, content: bytes) -> np.ndarray | dict[str, str]:
    try:
        return read(folder, content).packed[0]
    except IDCError as error:
        return problems(error)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_cut_file_is_a_listed_problem_or_has_whole_pixels(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    found = pixels_or_problems(tmp_path_factory.mktemp("cut"), WHOLE[:cut])
    if isinstance(found, dict):
        assert list(found) == ["0.png"]
    else:
        np.testing.assert_array_equal(found, RGB)
        assert cut > len(WHOLE) - 25  # only the last check sums and the end mark are missing


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_spoiled_byte_is_a_listed_problem_or_changes_no_pixel(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    spoiled = bytearray(WHOLE)
    spoiled[place] ^= 1 << bit
    found = pixels_or_problems(tmp_path_factory.mktemp("spoiled"), bytes(spoiled))
    if isinstance(found, dict):
        assert list(found) == ["0.png"]
    else:
        np.testing.assert_array_equal(found, RGB)


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
def test_all_broken_files_are_listed_with_their_reasons(tmp_path: Path) -> None:
    contents = [content for content, _ in BROKEN.values()]
    (tmp_path / f"{len(contents) + 1}.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / f"{len(contents)}.png").write_bytes(WHOLE)
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.png").write_bytes(content)
    with pytest.raises(IDCError) as caught:
        decode(tmp_path, names(len(contents) + 2))
    found = problems(caught.value)
    assert list(found) == [f"{n}.png" for n in range(len(contents) + 2) if n != len(contents)]
    for (kind, (_, reason)), said in zip(BROKEN.items(), found.values(), strict=False):
        assert reason in said, kind
    assert found[f"{len(contents) + 1}.png"] == "No such file or directory"
    headline = str(caught.value).splitlines()[0]
    assert headline.startswith(f"{len(contents) + 1} patches can't be read")
    assert "data.on_broken=skip" in headline


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_listed(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(WHOLE)
    (tmp_path / "0.png").chmod(0)
    with pytest.raises(IDCError) as caught:
        decode(tmp_path, names(1))
    assert problems(caught.value) == {"0.png": "Permission denied"}


def test_a_folder_in_place_of_a_file_is_listed(tmp_path: Path) -> None:
    (tmp_path / "0.png").mkdir()
    with pytest.raises(IDCError) as caught:
        decode(tmp_path, names(1))
    assert problems(caught.value) == {"0.png": "Is a directory"}


def test_broken_files_can_be_left_out(tmp_path: Path) -> None:
    store = read(tmp_path, b"", png(RGB), b"text", png(GREY), on_broken="skip")
    assert dict(store.broken[["path", "problem"]].itertuples(index=False, name=None)) == {
        "0.png": "empty file",
        "2.png": "not a PNG image",
    }
    assert store.dropped == 0
    assert store.table["path"].tolist() == ["1.png", "3.png"]
    assert store.table.index.tolist() == [0, 1]
    np.testing.assert_array_equal(store.packed, [RGB, np.dstack([GREY] * 3)])
    assert store.notes()[0] == "left out 2 patches that can't be read"


def test_one_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "edge.png").write_bytes(png(RGB[:9, :40]))
    np.testing.assert_array_equal(read_patch(tmp_path / "edge.png"), RGB[:9, :40])
    stretched = read(tmp_path, png(RGB[:9, :40]), edge_patches="resize").packed[0]
    found = read_patch(tmp_path / "edge.png", stretched=True)
    np.testing.assert_array_equal(found, stretched)
    (tmp_path / "empty.png").write_bytes(b"")
    with told("can't read the patch", "empty.png", "empty file"):
        read_patch(tmp_path / "empty.png")


def test_nothing_left_is_told_in_one_line(tmp_path: Path) -> None:
    with told("no patch of", "is left"):
        read(tmp_path, b"", b"text", on_broken="skip")
    with told("no patch of", "is left"):
        read(tmp_path, png(RGB[:9]), edge_patches="drop")


def test_pixels_and_rows_keep_the_order_of_the_table_over_many_chunks(tmp_path: Path) -> None:
    count = 2 * CHUNK + 7
    colours = np.stack([np.arange(count) % 256, np.arange(count) // 256, np.full(count, 9)], 1)
    contents = [
        png(np.broadcast_to(c, (PATCH, PATCH, 3)).astype(np.uint8), compress_level=1)
        for c in colours
    ]
    contents[CHUNK] = b""
    store = read(tmp_path, *contents, on_broken="skip")
    kept = [number for number in range(count) if number != CHUNK]
    assert store.table["path"].tolist() == [f"{number}.png" for number in kept]
    np.testing.assert_array_equal(store.packed[:, 20, 30], colours[kept])


@pytest.mark.parametrize(("height", "width"), [(50, 1), (1, 50), (17, 50), (50, 33), (12, 7)])
def test_edge_patches_are_padded_with_white_on_the_right_and_below(
    tmp_path: Path, height: int, width: int
) -> None:
    store = read(tmp_path, png(RGB), png(RGB[:height, :width]))
    expected = np.full_like(RGB, 255)
    expected[:height, :width] = RGB[:height, :width]
    np.testing.assert_array_equal(store.packed, [RGB, expected])
    assert store.table["edge"].tolist() == [False, True]
    sizes = store.table[["width", "height"]].to_numpy().tolist()
    assert sizes == [[PATCH, PATCH], [width, height]]
    assert store.dropped == 0
    assert store.notes() == ["edge patches smaller than 50x50 px: 1"]


def test_edge_patches_can_be_stretched(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 240, PATCH)[:, None, None], 3, axis=2).astype(np.uint8)
    store = read(tmp_path, png(RGB), png(np.repeat(ramp, 10, axis=1)), edge_patches="resize")
    np.testing.assert_array_equal(store.packed, [RGB, np.repeat(ramp, PATCH, axis=1)])
    assert store.table["edge"].tolist() == [False, True]
    assert store.stretched == 1
    assert "edge patches stretched to 50x50 px: 1" in store.notes()


def test_edge_patches_can_be_dropped(tmp_path: Path) -> None:
    store = read(
        tmp_path,
        png(RGB[:9]),
        png(RGB),
        b"",
        png(RGB[:, :9]),
        edge_patches="drop",
        on_broken="skip",
    )
    assert (store.dropped, len(store.broken)) == (2, 1)
    assert store.table["path"].tolist() == ["1.png"]
    np.testing.assert_array_equal(store.packed, [RGB])


@pytest.mark.parametrize("edge_patches", ["pad", "resize"])
def test_the_digest_tells_images_apart_by_content_and_size(
    tmp_path: Path, edge_patches: str
) -> None:
    other = RGB.copy()
    other[49, 49, 2] ^= 1
    grey = np.full((20, 10), 90, np.uint8)
    white_below = np.concatenate([RGB[:20], np.full((30, PATCH, 3), 255, np.uint8)])
    digests = read(
        tmp_path,
        *(png(RGB), png(RGB, compress_level=0), png(other)),
        *(png(grey), png(grey.T.copy()), png(np.dstack([grey] * 3))),
        *(png(RGB[:20]), png(white_below)),
        edge_patches=edge_patches,
    ).table["digest"]
    assert digests[0] == digests[1]  # same pixels in other bytes
    assert digests[3] == digests[5]
    assert digests.nunique() == 6


def test_the_digest_of_an_edge_patch_is_of_the_file_whatever_becomes_of_it(tmp_path: Path) -> None:
    padded = read(tmp_path, png(RGB[:20]), edge_patches="pad").table
    stretched = read(tmp_path, png(RGB[:20]), edge_patches="resize").table
    pd.testing.assert_frame_equal(padded, stretched)


def test_blank_patches_have_one_colour(tmp_path: Path) -> None:
    one = np.full((PATCH, PATCH, 3), (243, 240, 241), np.uint8)
    speck = one.copy()
    speck[49, 0, 1] += 1
    clear = np.dstack([RGB, np.zeros_like(ALPHA)])
    table = read(tmp_path, png(one), png(speck), png(one[:5]), png(clear), png(RGB)).table
    assert table["blank"].tolist() == [True, False, True, True, False]


def test_further_columns_of_the_table_stay_with_their_patches(tmp_path: Path) -> None:
    for number, content in enumerate([b"", png(RGB), png(GREY)]):
        (tmp_path / f"{number}.png").write_bytes(content)
    table = names(3).assign(target=[0, 1, 0]).set_index(pd.Index([7, 3, 5]))
    store = decode(tmp_path, table, on_broken="skip")
    kept = store.table[["path", "target"]].to_dict("list")
    assert kept == {"path": ["1.png", "2.png"], "target": [1, 0]}
    assert store.table.index.tolist() == [0, 1]
    assert list(table.columns) == ["path", "target"]


@pytest.fixture
def piped(tmp_path: Path) -> Callable[[str], tuple[bytes, bytes]]:
    """Run Python with a pipe for a terminal, even where colours are asked for."""

    def run(code: str) -> tuple[bytes, bytes]:
        env = {**os.environ, "FORCE_COLOR": "1"}
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, check=True
        )
        return ended.stdout, ended.stderr

    return run


def test_nothing_is_printed_where_nobody_watches(
    tmp_path: Path, piped: Callable[[str], tuple[bytes, bytes]]
) -> None:
    (tmp_path / "0.png").write_bytes(WHOLE)
    code = (
        "import pandas; from pathlib import Path; from idc_lightning.data.store import decode;"
        "decode(Path(), pandas.DataFrame({'path': ['0.png']}))"
    )
    assert piped(code) == (b"", b"")


def test_a_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from idc_lightning.progress import watched

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert list(watched(iter("abc"), "counting letters", total=3)) == ["a", "b", "c"]
    assert "counting letters" in sys.stdout.getvalue()
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert list(watched("abc", "counting letters")) == ["a", "b", "c"]
    assert sys.stdout.getvalue() == ""
