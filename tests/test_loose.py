"""New patches in folders of any depth: names, copies, conflicts, and what is told of mistakes."""

import itertools
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers_data import Patch, make_patches, pixels_of
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idc_lightning.data.grid import FILE_NAME, NO_LABEL, PATIENT_NAME, file_name
from idc_lightning.data.index import read_index
from idc_lightning.data.loose import NAME, Loose, read_loose
from idc_lightning.data.size import check_size

POSITIONS = ["patient_id", "x", "y", "target"]

Found = tuple[str, int, int, int]


def save(path: Path, patch: Patch) -> Path:
    """Write the pixels of a patch under a name of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(patch)).save(path)
    return path


def rows(found: Loose) -> list[Found]:
    return list(found.table[POSITIONS].itertuples(index=False, name=None))


def read_name(name: str) -> Found | None:
    """A file name as `read_loose` understands it."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    patient = match["with_idx5"] or match["without"]
    target = NO_LABEL if match["target"] is None else int(match["target"])
    return patient, int(match["x"]), int(match["y"]), target


PATIENTS = st.from_regex(PATIENT_NAME, fullmatch=True)
NUMBERS = st.integers(0, 9_999_999)


@given(patient=PATIENTS, x=NUMBERS, y=NUMBERS, target=st.integers(0, 1))
def test_names_of_the_data_set_mean_what_they_mean_there(
    patient: str, x: int, y: int, target: int
) -> None:
    name = file_name(patient, x, y, target)
    match = FILE_NAME.fullmatch(name)
    assert match is not None
    assert match["patient_id"] == patient
    assert read_name(name) == (patient, x, y, target)
    assert read_name(name.replace(f"_class{target}.png", ".png")) == (patient, x, y, NO_LABEL)


@given(
    patient=PATIENTS.filter(lambda name: not name.endswith("_idx5")),
    x=NUMBERS,
    y=NUMBERS,
    ending=st.sampled_from([("", NO_LABEL), ("_class0", 0), ("_class1", 1)]),
)
def test_names_may_lack_class_and_idx5(
    patient: str, x: int, y: int, ending: tuple[str, int]
) -> None:
    suffix, target = ending
    assert read_name(f"{patient}_x{x}_y{y}{suffix}.png") == (patient, x, y, target)


@given(st.text(max_size=12), st.text(max_size=12))
def test_what_the_data_set_takes_is_taken_here(before: str, after: str) -> None:
    name = f"{before}_idx5_x1_y1_class0{after}.png"
    match = FILE_NAME.fullmatch(name)
    if match is not None:
        assert read_name(name) == (match["patient_id"], int(match["x"]), int(match["y"]), 0)


@pytest.mark.parametrize(
    "name",
    [
        "_idx5_x1_y1.png",
        "_x1_y1.png",
        "a _idx5_x1_y1.png",
        "a_x01_y1.png",
        "a_x1_y1_class2.png",
        "a_x1_y1_class.png",
        "a_x1_y1.PNG",
        "a_x-49_y1.png",
        "a_x1.png",
        "a_x1_y1.png.txt",
        "a_x1_y1.png\n",
    ],
)
def test_other_names_are_none(name: str) -> None:
    assert read_name(name) is None


def test_all_layouts_can_be_mixed(tmp_path: Path) -> None:
    make_patches(tmp_path / "set", [("1", 1, 1, 0), ("1", 51, 1, 1)])
    save(tmp_path / "deep" / "er" / "2_idx5_x51_y1.png", ("2", 51, 1, 0))
    save(tmp_path / "2_x1_y1.png", ("2", 1, 1, 0))
    save(tmp_path / "1_x1_y51_class1.png", ("1", 1, 51, 1))
    save(tmp_path / "1" / "1_x51_y51_class0.png", ("1", 51, 51, 0))  # a patient called 1
    save(tmp_path / ".hidden" / "3_x1_y1.png", ("3", 1, 1, 0))
    (tmp_path / "deep" / "._1_x1_y1.png").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("x")
    save(tmp_path / "thumbnail.png", ("3", 1, 1, 0))
    found = read_loose(tmp_path)
    assert rows(found) == [
        ("1", 1, 1, 0),
        ("1", 51, 1, 1),
        ("1", 1, 51, 1),
        ("1", 51, 51, 0),
        ("2", 1, 1, NO_LABEL),
        ("2", 51, 1, NO_LABEL),
    ]
    assert all((tmp_path / path).is_file() for path in found.table["path"])
    assert found.table.index.equals(pd.RangeIndex(6))
    assert found.notes() == [
        "left out 2 hidden files",
        "left out 2 files whose names aren't those of patches",
    ]


def test_a_data_set_is_read_as_its_index_reads_it(tmp_path: Path) -> None:
    patches = [(p, 1 + 50 * x, 1, int(x > 1)) for p in ("10", "9", "0", "a b") for x in range(4)]
    make_patches(tmp_path, patches)
    index, found = read_index(tmp_path).table, read_loose(tmp_path).table
    pd.testing.assert_frame_equal(
        index.astype({"path": object}), found.astype({"path": object}), check_dtype=False
    )


def test_the_second_copy_of_a_data_set_counts_once(tmp_path: Path) -> None:
    make_patches(tmp_path, [("7", 1, 1, 0), ("7", 51, 1, 1)])
    shutil.copytree(tmp_path / "7", tmp_path / "IDC_regular_ps50_idx5" / "7")
    found = read_loose(tmp_path)
    assert rows(found) == [("7", 1, 1, 0), ("7", 51, 1, 1)]
    assert found.notes() == ["left out 2 copies of patches"]


def test_of_copies_the_labelled_one_is_kept(tmp_path: Path) -> None:
    for name in ("a/7_x1_y1.png", "b/7_idx5_x1_y1_class1.png", "c/7_idx5_x1_y1.png"):
        save(tmp_path / name, ("7", 1, 1, 1))
    found = read_loose(tmp_path)
    assert rows(found) == [("7", 1, 1, 1)]
    assert found.copies == 2


@pytest.mark.parametrize(
    ("second", "pixels"),
    [
        ("b/7_idx5_x1_y1_class0.png", ("7", 1, 1, 1)),  # other pixels
        ("b/7_x1_y1.png", ("7", 1, 1, 1)),
        ("b/7_idx5_x1_y1_class1.png", ("7", 1, 1, 0)),  # the same with both labels
    ],
)
def test_other_double_positions_are_conflicts(tmp_path: Path, second: str, pixels: Patch) -> None:
    save(tmp_path / "a" / "7_idx5_x1_y1_class0.png", ("7", 1, 1, 0))
    save(tmp_path / second, pixels)
    save(tmp_path / "8_x1_y1.png", ("8", 1, 1, 0))
    with told(
        "2 patches of",
        "share their position",
        f"a/7_idx5_x1_y1_class0.png, {second}",
        "data.on_conflict=drop",
    ):
        read_loose(tmp_path)
    found = read_loose(tmp_path, on_conflict="drop")
    assert rows(found) == [("8", 1, 1, NO_LABEL)]
    assert found.notes() == ["left out 2 patches that share their position with another one"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    save(tmp_path / "real" / "7_x1_y1.png", ("7", 1, 1, 0))
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "input")
    assert rows(read_loose(tmp_path / "input")) == [("7", 1, 1, NO_LABEL)]


def test_folders_may_have_names_that_are_no_text(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff[red]\n")
    save(Path(odd) / "7_x1_y1.png", ("7", 1, 1, 0))
    save(Path(odd) / "7_x51_y1.png", ("7", 51, 1, 0))
    found = read_loose(tmp_path)
    assert [(tmp_path / path).is_file() for path in found.table["path"]] == [True, True]
    save(Path(odd) / "deep" / "7_x1_y1.png", ("7", 1, 1, 1))
    with told("share their position", r"\udcff[red]\n"):
        read_loose(tmp_path)


def test_a_label_that_the_folder_contradicts_is_told(tmp_path: Path) -> None:
    save(tmp_path / "7" / "1" / "7_idx5_x1_y1_class0.png", ("7", 1, 1, 0))
    save(tmp_path / "7" / "1" / "7_x51_y1.png", ("7", 51, 1, 0))
    with told("1 files of", "folder of another class", "7/1/7_idx5_x1_y1_class0.png"):
        read_loose(tmp_path)


def test_patches_off_the_grid_are_told(tmp_path: Path) -> None:
    save(tmp_path / "7_x1_y1.png", ("7", 1, 1, 0))
    save(tmp_path / "7_x33_y1.png", ("7", 33, 1, 0))
    with told("1 patches of", "don't lie on the grid of 50 px", "7_x33_y1.png"):
        read_loose(tmp_path)


def test_what_is_no_folder_of_patches_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with told("input=", "gone doesn't exist: give a folder of patches"):
        read_loose(tmp_path / "gone")
    file = save(tmp_path / "7_x1_y1.png", ("7", 1, 1, 0))
    with told("7_x1_y1.png is no folder: give a folder of patches"):
        read_loose(file)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with told("no patches in input=", "10253_idx5_x1351_y1101.png"):
        read_loose(tmp_path / "empty")

    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    with told("can't read", "locked: Permission denied"):
        read_loose(tmp_path)


def sized(folder: Path, *sizes: tuple[int, int]) -> Loose:
    """Patches of these widths and heights."""
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"7_x{1 + 50 * number}_y1.png")
    return read_loose(folder)


@pytest.mark.parametrize("size", [(100, 100), (32, 32), (51, 50), (50, 400)])
def test_patches_of_another_size_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    found = sized(tmp_path, size, size, (50, 50))
    with told(f"have {size[0]}x{size[1]} px, but the run was trained on 50x50 px"):
        check_size(found.root, found.table)


def test_edges_and_broken_files_are_no_other_size(tmp_path: Path) -> None:
    found = sized(tmp_path / "usual", (50, 50), (50, 50), (32, 32), (100, 100))
    check_size(found.root, found.table)
    found = sized(tmp_path / "bottom", (50, 7), (50, 7))
    check_size(found.root, found.table)
    for name in ("7_x101_y1.png", "7_x151_y1.png", "7_x201_y1.png"):
        (tmp_path / "bottom" / name).write_bytes(b"\x89PNG")
    (tmp_path / "bottom" / "7_x251_y1.png").symlink_to("nowhere")
    found = read_loose(tmp_path / "bottom")
    assert len(found.table) == 6
    check_size(found.root, found.table)
    check_size(found.root, found.table.iloc[2:])


def grid(folder: Path, sizes: dict[tuple[int, int], tuple[int, int]]) -> Loose:
    """Ten times ten patches of one patient, these of another width and height."""
    folder.mkdir()
    for column, row in itertools.product(range(10), range(10)):
        size = sizes.get((column, row), (50, 50))
        Image.new("RGB", size).save(folder / f"7_x{1 + 50 * column}_y{1 + 50 * row}.png")
    return read_loose(folder)


@pytest.mark.parametrize(("few", "told_of"), [(3, False), (4, True)])
def test_a_few_small_patches_inside_are_tolerated(tmp_path: Path, few: int, told_of: bool) -> None:
    found = grid(tmp_path / "few", {(column, 4): (25, 25) for column in range(few)})
    if told_of:
        with told("4 of 100 patches of", "are smaller inside the tissue, such as 25x25 px"):
            check_size(found.root, found.table)
    else:
        check_size(found.root, found.table)


def test_edges_of_any_number_are_no_other_size(tmp_path: Path) -> None:
    right = {(9, row): (7, 50) for row in range(10)}
    bottom = {(column, 9): (50, 3) for column in range(9)}
    found = grid(tmp_path / "edges", right | bottom | {(9, 9): (7, 3)})
    check_size(found.root, found.table)


@pytest.mark.parametrize("size", [(40, 50), (50, 40)])
def test_patches_smaller_in_one_direction_are_refused(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    every = itertools.product(range(10), range(10))
    found = grid(tmp_path / "narrow", dict.fromkeys(every, size))
    with told(
        "90 of 100 patches of", f"such as {size[0]}x{size[1]} px, but the run was trained on 50x50"
    ):
        check_size(found.root, found.table)


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=8), st.data())
def test_any_files_are_read_or_told(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("any")
    endings = ["", "_x1_y1.png", "_idx5_x51_y1_class1.png", "_x51_y51_class0.png"]
    written = set()
    for name in names:
        full = name.replace("/", "").replace("\0", "") + data.draw(st.sampled_from(endings))
        if full in ("", ".", "..") or len(os.fsencode(full)) > 200:
            continue
        (root / full).write_bytes(full.encode())
        written.add(full)
    patches = {n for n in written if read_name(n) is not None and not n.startswith(".")}
    if not patches:
        with told("no patches in"):
            read_loose(root)
        return
    found = read_loose(root, on_conflict="drop")
    assert set(found.table["path"]) <= patches
    assert found.hidden + found.foreign + len(patches) == len(written)
    assert len(found.table) + found.copies + found.conflicts == len(patches)
    assert not found.table.duplicated(["patient_id", "x", "y"]).any()
