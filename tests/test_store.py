import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_data import checked
from helpers_model import told
from helpers_png import GREY, RGB, png, saved, write_numbered
from PIL import Image

from idc_lightning.data import pack
from idc_lightning.data.grid import PATCH
from idc_lightning.data.store import Store, open_store
from idc_lightning.errors import IDCError

WHOLE = png(RGB)
PALETTE = Image.fromarray(RGB).quantize(16)


def read(folder: Path, *contents: bytes, **options: str) -> Store:
    table = write_numbered(folder, *contents)
    return open_store(folder, table, cache=folder / "cache", **options)


def pixels(store: Store) -> np.ndarray:
    """Those of all rows of the table."""
    return store.read(np.arange(len(store.table)))


def problems(error: IDCError) -> dict[str, str]:
    """Reasons by file."""
    lines = str(error).splitlines()[1:]
    return dict(line.removeprefix("  ").split(": ", 1) for line in lines)


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


def test_all_broken_files_are_listed_with_their_reasons(tmp_path: Path) -> None:
    contents = [b"", WHOLE, b"text", WHOLE[:3000], png(np.zeros((51, 50, 3), np.uint8))]
    table = write_numbered(tmp_path, *contents, WHOLE)
    (tmp_path / "5.png").unlink()
    (tmp_path / "5.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(IDCError) as caught:
        open_store(tmp_path, table, cache=tmp_path / "cache")
    found = problems(caught.value)
    assert list(found) == ["0.png", "2.png", "3.png", "4.png", "5.png"]
    assert found["0.png"] == "empty file"
    assert found["5.png"] == "No such file or directory"
    headline = str(caught.value).splitlines()[0]
    assert headline.startswith(f"5 patches of {tmp_path} can't be read")
    assert "data.on_broken=skip" in headline


def test_nothing_left_is_told_in_one_line(tmp_path: Path) -> None:
    with told("no patch of", "is left"):
        read(tmp_path, b"", b"text", on_broken="skip")
    with told("no patch of", "is left"):
        read(tmp_path, png(RGB[:9]), edge_patches="drop")


def test_pixels_and_rows_keep_the_order_of_the_table_over_many_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "CHUNK", 5)
    monkeypatch.setattr(pack, "INLINE", 0)
    count = 37
    colours = np.stack([np.arange(count) % 256, np.arange(count) // 256, np.full(count, 9)], 1)
    contents = [
        png(np.broadcast_to(c, (PATCH, PATCH, 3)).astype(np.uint8), compress_level=1)
        for c in colours
    ]
    contents[5] = b""
    store = read(tmp_path, *contents, on_broken="skip")
    kept = [number for number in range(count) if number != 5]
    assert store.table["path"].tolist() == [f"{number}.png" for number in kept]
    np.testing.assert_array_equal(pixels(store)[:, 20, 30], colours[kept])


@pytest.mark.parametrize(("height", "width"), [(50, 1), (1, 50), (17, 50), (50, 33), (12, 7)])
def test_edge_patches_are_padded_with_white_on_the_right_and_below(
    tmp_path: Path, height: int, width: int
) -> None:
    store = read(tmp_path, png(RGB), png(RGB[:height, :width]))
    expected = np.full_like(RGB, 255)
    expected[:height, :width] = RGB[:height, :width]
    np.testing.assert_array_equal(pixels(store), [RGB, expected])
    assert store.table["edge"].tolist() == [False, True]
    sizes = store.table[["width", "height"]].to_numpy().tolist()
    assert sizes == [[PATCH, PATCH], [width, height]]
    assert store.dropped == 0
    assert store.notes() == ["edge patches smaller than 50x50 px: 1"]


def test_edge_patches_can_be_stretched(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 240, PATCH)[:, None, None], 3, axis=2).astype(np.uint8)
    store = read(tmp_path, png(RGB), png(np.repeat(ramp, 10, axis=1)), edge_patches="resize")
    np.testing.assert_array_equal(pixels(store), [RGB, np.repeat(ramp, PATCH, axis=1)])
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
    np.testing.assert_array_equal(pixels(store), [RGB])


def test_the_digest_of_an_edge_patch_is_of_the_file_whatever_becomes_of_it(tmp_path: Path) -> None:
    padded = read(tmp_path, png(RGB[:20]), edge_patches="pad").table
    stretched = read(tmp_path, png(RGB[:20]), edge_patches="resize").table
    pd.testing.assert_frame_equal(padded, stretched)


def test_further_columns_of_the_table_stay_with_their_patches(tmp_path: Path) -> None:
    table = write_numbered(tmp_path, b"", png(RGB), png(GREY)).assign(target=[0, 1, 0])
    table = table.set_index(pd.Index([7, 3, 5]))
    store = open_store(tmp_path, table, cache=tmp_path / "cache", on_broken="skip")
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


def test_no_bar_is_printed_where_nobody_watches(
    tmp_path: Path, piped: Callable[[str], tuple[bytes, bytes]]
) -> None:
    (tmp_path / "0.png").write_bytes(WHOLE)
    code = (
        "import pandas; from pathlib import Path; from idc_lightning.data.store import open_store;"
        "open_store(Path(), pandas.DataFrame({'path': ['0.png']}), cache=Path('cache'))"
    )
    printed, errors = piped(code)
    assert printed.startswith(b"packing 1 patches once, about 1 s: 1 MB in cache/stores/")
    assert printed.count(b"\n") == 1
    assert b"\x1b" not in printed
    assert errors == b""


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


def test_it_reaches_another_process_without_its_pixels(tmp_path: Path) -> None:
    store = read(tmp_path, *[WHOLE] * 200)
    sent = pickle.dumps(store)
    assert len(sent) < 200 * PATCH * PATCH * 3 / 10
    np.testing.assert_array_equal(pixels(pickle.loads(sent)), pixels(store))
    made = replace(store, packed=checked(np.zeros((200, PATCH, PATCH, 3), np.uint8)))
    assert not pixels(pickle.loads(pickle.dumps(made))).any()
