import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers_model import told
from helpers_png import GREY, RGB, png, write_numbered
from hypothesis import given, settings
from hypothesis import strategies as st

from idc_lightning.data import pack
from idc_lightning.data.decode import stretch
from idc_lightning.data.grid import PATCH
from idc_lightning.data.pack import Pack, open_pack
from idc_lightning.processes import shared_out

FILES = (pack.PIXELS, pack.CHECKSUMS, pack.TABLE, pack.FACTS)

CONTENTS = (png(RGB), png(RGB[:20]), b"text", png(GREY), png(RGB[::-1, :7]), png(RGB[:, ::-1]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_numbered(tmp_path / "tissue", *CONTENTS)
    return tmp_path / "tissue"


def opened(root: Path, **options: bool) -> Pack:
    return open_pack(root, names(root), root.parent / "cache", **options)


def names(root: Path) -> list[str]:
    return [path.name for path in root.iterdir()]


def content_of(folder: Path) -> dict[str, bytes]:
    """All files of a pack but what says where it was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != pack.FACTS}


def files_below(cache: Path) -> list[Path]:
    """All but locks, which are empty."""
    return [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.fixture
def forbid_packing(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        monkeypatch.setattr(pack, "_pack", lambda *_: pytest.fail("packed again"))

    return forbid


def test_it_holds_all_files_and_the_smaller_ones_stretched(root: Path) -> None:
    packed = opened(root)
    assert packed.paths == [f"{number}.png" for number in range(6)]
    pixels = packed.pixels.read(range(8))
    assert len(packed.pixels) == 8
    assert pixels.dtype == np.uint8
    padded = np.full_like(RGB, 255)
    padded[:20] = RGB[:20]
    np.testing.assert_array_equal(pixels[:2], [RGB, padded])
    np.testing.assert_array_equal(pixels[3], np.dstack([GREY] * 3))
    assert packed.table["stretched"].tolist() == [-1, 6, -1, -1, 7, -1]
    np.testing.assert_array_equal(pixels[6], stretch(RGB[:20]))
    np.testing.assert_array_equal(pixels[7], stretch(RGB[::-1, :7]))
    assert packed.table["problem"].tolist() == ["", "", "not a PNG image", "", "", ""]
    assert packed.table["converted"].tolist() == ["", "", "", "grey", "", ""]
    assert packed.table["width"].tolist() == [50, 50, 0, 50, 7, 50]
    assert packed.table["height"].tolist() == [50, 20, 0, 50, 50, 50]


def test_its_key_tells_how_smaller_files_were_stretched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(root)
    monkeypatch.setattr(pack, "stretch", lambda pixels: stretch(pixels) // 2)  # another Pillow
    assert opened(root, check_all=True).key == first.key  # what was packed stays
    shutil.rmtree(first.folder)
    assert opened(root).key != first.key


def test_it_lies_on_the_disk_before_it_is_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(pack, "sync", lambda path: synced.append((path.name, path.exists())))
    folder = opened(root).folder
    assert synced == [(name, True) for name in FILES]
    assert folder.is_dir()


def test_many_processes_write_what_one_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(root).folder
    monkeypatch.setattr(pack, "INLINE", 0)
    monkeypatch.setattr(pack, "CHUNK", 2)
    many = open_pack(root, names(root), root.parent / "other").folder
    assert content_of(one) == content_of(many)


def test_nothing_in_it_needs_a_pickle_and_it_opens_in_numpy_and_pandas(root: Path) -> None:
    import pandas as pd

    packed = opened(root)
    pixels = np.load(packed.folder / "pixels.npy", allow_pickle=False)
    np.testing.assert_array_equal(pixels, packed.pixels.read(range(8)))
    table = pd.read_csv(packed.folder / "table.csv")
    assert table["path"].tolist() == packed.paths
    assert {path.name for path in packed.folder.iterdir()} == set(FILES)


def test_it_is_made_once_and_says_so(
    root: Path, capsys: pytest.CaptureFixture[str], forbid_packing: Callable[[], None]
) -> None:
    first = opened(root)
    said = capsys.readouterr().out
    assert said.startswith("packing 6 patches once, about 1 s: 1 MB in ")
    assert str(first.folder) in said
    forbid_packing()
    again = opened(root, check_all=True)
    assert capsys.readouterr().out == ""
    assert again.key == first.key
    assert again.table.equals(first.table)


def test_a_moved_data_set_keeps_its_pack(root: Path, forbid_packing: Callable[[], None]) -> None:
    first = opened(root)
    moved = root.rename(root.with_name("moved"))
    forbid_packing()
    assert opened(moved).folder == first.folder


def test_a_copied_data_set_has_the_same_key_for_what_is_computed_of_it(root: Path) -> None:
    first = opened(root)
    shutil.copytree(root, root.with_name("copy"), copy_function=shutil.copyfile)
    copy = opened(root.with_name("copy"))
    assert copy.folder != first.folder  # by other times
    assert copy.key == first.key


@pytest.mark.parametrize("change", ["content", "time", "gone", "more", "name"])
def test_another_file_means_another_pack(root: Path, change: str) -> None:
    first = opened(root)
    status = (root / "0.png").stat()
    if change == "content":
        (root / "0.png").write_bytes(png(RGB // 2))
        os.utime(root / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(root / "0.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    elif change == "gone":
        (root / "0.png").unlink()
    elif change == "more":
        (root / "9.png").write_bytes(png(RGB))
    else:
        (root / "0.png").rename(root / "7.png")
    assert opened(root).folder != first.folder


def damage_pixels(folder: Path) -> None:
    with (folder / pack.PIXELS).open("r+b") as file:
        file.seek(1000)
        file.write(b"\x01\x02\x03")


def cut_pixels(folder: Path) -> None:
    os.truncate(folder / pack.PIXELS, (folder / pack.PIXELS).stat().st_size - 1)


def other_shape(folder: Path) -> None:
    np.save(folder / pack.PIXELS, np.zeros((8, PATCH, PATCH), np.uint8))


def change_checksum(folder: Path) -> None:
    content = bytearray((folder / pack.CHECKSUMS).read_bytes())
    content[-1] ^= 1
    (folder / pack.CHECKSUMS).write_bytes(content)


def change_table(folder: Path) -> None:
    table = folder / pack.TABLE
    table.write_text(table.read_text().replace("grey", "gray"))


def spoil_facts(folder: Path) -> None:
    (folder / pack.FACTS).write_text("[1]")


def empty_file(folder: Path) -> None:
    (folder / pack.PIXELS).write_bytes(b"")


DAMAGES = [
    damage_pixels,
    cut_pixels,
    other_shape,
    change_checksum,
    change_table,
    spoil_facts,
    empty_file,
]


@pytest.mark.parametrize("damage", [*DAMAGES, "delete", "half"])
def test_a_damaged_pack_is_made_anew_with_a_note(
    root: Path, damage: Callable[[Path], None] | str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = opened(root).folder
    whole = content_of(folder)
    capsys.readouterr()
    if damage == "delete":
        (folder / pack.TABLE).unlink()
    elif damage == "half":
        (folder / pack.FACTS).write_text('{"format": 1')
    else:
        damage(folder)
    assert opened(root).folder == folder
    assert content_of(folder) == whole
    assert capsys.readouterr().out.startswith("packing again, since ")
    opened(root)
    assert capsys.readouterr().out == ""


def test_a_change_that_opening_overlooks_is_told_before_it_is_used(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "LOOKED_AT", 1)
    folder = opened(root).folder
    with (folder / pack.PIXELS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    pixels = opened(root).pixels
    whole = pixels.read([[0, 1], [2, 0]])
    assert whole.shape == (2, 2, PATCH, PATCH, 3)
    for places in ([1, 7], 7):
        with told(f"the pixels in {folder} were changed after they were packed: idc-prepare"):
            pixels.read(places)
    np.testing.assert_array_equal(
        opened(root, check_all=True).pixels.read(7), stretch(RGB[::-1, :7])
    )


@settings(max_examples=40)
@given(data=st.data())
def test_no_changed_byte_of_the_pixels_escapes_the_check_of_all(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("set") / "tissue"
    write_numbered(root, *CONTENTS)
    packed = opened(root)
    file = packed.folder / pack.PIXELS
    whole = file.read_bytes()
    spoiled = bytearray(whole)
    place = data.draw(st.integers(128, len(whole) - 1))
    spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(spoiled)
    opened(root, check_all=True)
    assert file.read_bytes() == whole


def test_what_could_not_be_read_is_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, denied = pack.decode, pack.decode(root / "absent.png")
    with monkeypatch.context() as patch:
        patch.setattr(
            pack, "decode", lambda path: denied if str(path).endswith("0.png") else real(path)
        )
        assert opened(root).table["problem"].tolist()[0] == "No such file or directory"
    assert opened(root).table["problem"].tolist()[0] == ""


def test_a_full_disk_is_told_before_packing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**4))
    with told("packing 6 patches takes 1 MB", "room", "cache=<folder>"):
        opened(root)
    assert files_below(root.parent / "cache") == []


@pytest.mark.parametrize("inline", [0, 100])
def test_a_disk_that_fills_up_leaves_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, inline: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack, "INLINE", inline)
    monkeypatch.setattr(pack, "_pack_some", full)
    # In this process, where its function is replaced.
    here = partial(shared_out, count=1, alone=True)
    monkeypatch.setattr(pack, "shared_out", lambda f, calls, did, **_: here(f, calls, did))
    with told("can't write", "No space left on device", "cache=<folder>"):
        opened(root)
    assert files_below(root.parent / "cache") == []


def test_a_cache_that_cannot_be_written_is_told(root: Path) -> None:
    (root.parent / "cache").write_text("mine")
    with told("can't write", "cache", "cache=<folder>"):
        opened(root)


def test_a_read_only_cache_serves_what_is_packed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(root)
    monkeypatch.setattr(pack, "locked", lambda *_, **__: pytest.fail("needs to write"))
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("needs to write"))
    opened(root)


PROGRAM = """
import sys, time
from pathlib import Path
from idc_lightning.data import pack
pack.INLINE, pack.CHUNK = 0, 2
real = pack._pack_some
def slow(*call):
    time.sleep(float(sys.argv[3]))
    return real(*call)
pack._pack_some = slow
root = Path(sys.argv[1])
pack.open_pack(root, [path.name for path in root.iterdir()], Path(sys.argv[2]))
"""


def started(root: Path, cache: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(cache), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_of_two_processes_one_packs_and_the_other_waits(root: Path) -> None:
    cache = root.parent / "cache"
    both = [started(root, cache, 0.5) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert [line.split()[0] for text in said for line in text.splitlines()].count("packing") == 1
    if said[1].startswith("waiting"):  # else the second one started after the first had ended
        assert said[1].startswith("waiting for another process that packs ")
    assert len(list((cache / "stores").glob("[!.]*"))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_kill_while_packing_leaves_nothing_that_is_taken_for_whole(root: Path) -> None:
    cache = root.parent / "cache"
    process = started(root, cache, 30)
    deadline = time.monotonic() + 60
    while not list(cache.glob("stores/.*.partial/pixels.npy")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    group = process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((cache / "stores").glob("[!.]*"))
    while any_alive(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any_alive(group)  # its processes end with it
    undisturbed = open_pack(root, names(root), root.parent / "other")
    again = opened(root, check_all=True)
    assert content_of(again.folder) == content_of(undisturbed.folder)
    assert not list(cache.glob("stores/.*.partial"))


def any_alive(group: int) -> bool:
    """Whether a process of a group runs."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
