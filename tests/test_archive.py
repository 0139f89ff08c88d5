import os
import shutil
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pytest
from helpers_data import Patch, data_config, make_patches, pixels_of, split_config, tissue
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import idc_lightning.data.archive as archive
from idc_lightning.data.archive import left_out, unpack
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.decode import LARGEST
from idc_lightning.data.grid import file_name
from idc_lightning.data.index import read_index
from idc_lightning.errors import IDCError

PATCHES = tissue({"1": (2, 1), "007": (1, 1)})


def content(patch: Patch) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels_of(patch)).save(file, "PNG")
    return file.getvalue()


def members(above: str = "", patches: list[Patch] = PATCHES) -> dict[str, bytes]:
    return {f"{above}{p[0]}/{p[3]}/{file_name(*p)}": content(p) for p in patches}


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return path


def below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def nothing_is_left(cache: Path) -> bool:
    """No folder of an archive, whole or in part; an empty lock may stay."""
    return all(path.stat().st_size == 0 for path in cache.rglob("*") if path.is_file()) and not [
        path for path in cache.glob("archives/*") if path.is_dir()
    ]


def test_a_zip_is_a_root(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.ZIP", members())
    data = data_config(root=str(path))
    module = IDCDataModule(data, split_config("stratified"), seed=0, cache=tmp_path / "cache")
    root = module.root()
    assert root.is_relative_to(tmp_path / "cache")
    table = read_index(root).table
    rows = table[["patient_id", "x", "y", "target"]].itertuples(index=False, name=None)
    assert sorted(rows) == sorted(PATCHES)
    assert (root / "1/0/1_idx5_x1_y1_class0.png").read_bytes() == content(PATCHES[0])


def test_it_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "set.zip", members())
    root = unpack(path, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(archive, "_extract", lambda *_: pytest.fail("unpacked again"))
        assert unpack(path, tmp_path / "cache") == root
    os.utime(path, ns=(1, 1))
    later = unpack(path, tmp_path / "cache")
    zipped(path, members(patches=PATCHES[:1]))
    os.utime(path, ns=(1, 1))
    smaller = unpack(path, tmp_path / "cache")
    assert len({root, later, smaller}) == 3
    assert len(below(smaller)) == 1


@pytest.mark.parametrize("above", ["", "IDC_regular_ps50_idx5/", "download/archive/"])
def test_the_nested_copy_is_left_out(tmp_path: Path, above: str) -> None:
    nested = dict.fromkeys(members(f"{above}IDC_regular_ps50_idx5/"), b"the other copy")
    resources = dict.fromkeys(members("__MACOSX/"), b"no image")
    path = zipped(tmp_path / "set.zip", {**resources, **members(above), **nested})
    root = unpack(path, tmp_path / "cache")
    assert all((root / name).read_bytes() == data for name, data in members().items())
    assert below(root) == sorted(members())
    assert not read_index(root).nested
    count = len(members())
    assert left_out(root) == [
        f"left out {count} patches in a nested copy of the archive",
        f"left out {count} files that are no patches of the archive",
    ]


@pytest.mark.parametrize("gone", ["1/0/1_idx5_x1_y1_class0.png", "1", "../counts.json", "."])
def test_what_a_cleaner_took_of_it_is_told(tmp_path: Path, gone: str) -> None:
    root = unpack(zipped(tmp_path / "set.zip", members()), tmp_path / "cache")
    assert left_out(root) == []
    path = root / gone
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with told(f"parts of {root.parent} are gone or damaged: delete this folder"):
        left_out(root)


def test_a_zip_may_lie_at_a_place_that_is_no_text(tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Universit\xe4t"))
    try:
        place.mkdir()
    except OSError:
        pytest.skip("the file system takes names of text only")
    root = unpack(zipped(place / "set.zip", members()), tmp_path / "cache")
    assert below(root) == sorted(members())


def test_only_patches_are_unpacked(tmp_path: Path) -> None:
    others = {
        "readme.txt": b"x",
        "1/readme.txt": b"x",
        "1/2/1_idx5_x1_y1_class0.png": b"x",
        "1/0/._1_idx5_x1_y1_class0.png.txt": b"x",
        "1/0/1_idx5_x951_y1_class0.png": bytes(LARGEST + 1),
        "1/1/": b"",
        "1/1/1_idx5_x951_y51_class1.png/": b"",
    }
    root = unpack(zipped(tmp_path / "set.zip", {**others, **members()}), tmp_path / "cache")
    assert below(root) == sorted(members())


@pytest.mark.parametrize(
    "name",
    [
        "../0/evil_idx5_x1_y1_class0.png",
        "/0/evil_idx5_x1_y1_class0.png",
        "//0/evil_idx5_x1_y1_class0.png",
        "../evil/0/evil_idx5_x1_y1_class0.png",
        "evil/../../../0/evil_idx5_x1_y1_class0.png",
        "../../../../evil/0/evil_idx5_x1_y1_class0.png",
        "x/../0/evil_idx5_x1_y1_class0.png",
        "/evil/0/evil_idx5_x1_y1_class0.png",
        "//evil/0/evil_idx5_x1_y1_class0.png",
        "ROOT/evil/0/evil_idx5_x1_y1_class0.png",
    ],
)
def test_nothing_is_written_outside_the_cache(tmp_path: Path, name: str) -> None:
    home = tmp_path / "a" / "b" / "c" / "d"
    home.mkdir(parents=True)
    path = zipped(home / "set.zip", {name.replace("ROOT", str(tmp_path)): b"evil", **members()})
    root = unpack(path, home / "cache")
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size]
    known = {path, root.parent / "counts.json"}
    assert all(file in known or file.is_relative_to(root) for file in files)
    assert read_index(root).table["patient_id"].isin(["1", "007"]).all()
    assert not list(Path("/0").glob("evil*"))


def test_a_truncated_zip_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "whole.zip", members()).read_bytes()
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path = tmp_path / "set.zip"
        path.write_bytes(whole[:length])
        with pytest.raises(IDCError, match=rf"^can't read the archive {path}: .*$"):
            unpack(path, tmp_path / "cache")
        assert nothing_is_left(tmp_path / "cache")


def test_a_file_that_is_no_zip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(b"<html>please log in</html>" * 100)
    with pytest.raises(IDCError, match=r"not a zip file; download it again"):
        unpack(path, tmp_path / "cache")
    assert nothing_is_left(tmp_path / "cache")


def test_an_encrypted_zip_is_told(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", members())
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        while start >= 0:
            data[start + flags] |= 1
            start = data.find(signature, start + 4)
    path.write_bytes(data)
    with pytest.raises(IDCError, match=r"encrypted.* or unpack it yourself$"):
        unpack(path, tmp_path / "cache")
    assert nothing_is_left(tmp_path / "cache")


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_content_is_told(tmp_path: Path, method: int) -> None:
    name = "1/0/1_idx5_x1_y1_class0.png"
    path = zipped(tmp_path / "set.zip", {**members(), name: b"content " * 500}, method)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        start = file.getinfo(name).header_offset + 30 + len(name)
    data[start : start + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(IDCError, match=rf"^can't read the archive {path}: .*$"):
        unpack(path, tmp_path / "cache")
    assert nothing_is_left(tmp_path / "cache")


@settings(max_examples=80)
@given(
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_damage_is_told(
    tmp_path_factory: pytest.TempPathFactory, method: int, changes: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    path = zipped(folder / "set.zip", {"é/0/é_idx5_x1_y1_class0.png": b"abc" * 9}, method)
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[int(place * len(data))] = byte
    path.write_bytes(data)
    try:
        unpack(path, folder / "cache")
    except IDCError:
        assert nothing_is_left(folder / "cache")


def test_several_data_sets_are_told(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {**members("train/"), **members("more/test/")})
    with pytest.raises(IDCError, match=r"several data sets \(train, more/test\)"):
        unpack(path, tmp_path / "cache")
    assert nothing_is_left(tmp_path / "cache")


def test_a_zip_without_patches_is_told(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"readme.txt": b"x", "1/0/cat.png": b"x"})
    with pytest.raises(IDCError, match=f"^no patches in {path}"):
        unpack(path, tmp_path / "cache")
    assert nothing_is_left(tmp_path / "cache")


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "set.zip", members())
    write, written = Path.write_bytes, []

    def fail_at_the_third(target: Path, data: bytes) -> int:
        written.append(target)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(target, data)

    monkeypatch.setattr(Path, "write_bytes", fail_at_the_third)
    with pytest.raises(IDCError, match=r"^can't unpack to .*: No space left on device$"):
        unpack(path, tmp_path / "cache")
    assert nothing_is_left(tmp_path / "cache")
    monkeypatch.undo()
    assert len(below(unpack(path, tmp_path / "cache"))) == len(PATCHES)


def test_unpacked_and_plain_give_the_same_table(tmp_path: Path) -> None:
    plain = read_index(make_patches(tmp_path / "plain", PATCHES)).table
    path = zipped(tmp_path / "set.zip", members("above/"))
    assert read_index(unpack(path, tmp_path / "cache")).table.equals(plain)
