import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers_data import make_patches, place_of, tissue
from hypothesis import given, settings
from hypothesis import strategies as st

from idc_lightning.data.grid import file_name
from idc_lightning.data.index import COLUMNS, named, read_index
from idc_lightning.errors import IDCError


def rows(root: Path, **options: str) -> list[tuple[str, int, int, int]]:
    table = read_index(root, **options).table
    return list(table[["patient_id", "x", "y", "target"]].itertuples(index=False, name=None))


def test_all_is_read_from_the_names(tmp_path: Path) -> None:
    patches = [("9", 51, 1, 1), ("00123", 101, 1, 0), ("00123", 1, 51, 1), ("00123", 1, 1, 0)]
    make_patches(tmp_path, patches)
    index = read_index(tmp_path)
    assert rows(tmp_path) == [
        ("00123", 1, 1, 0),
        ("00123", 101, 1, 0),
        ("00123", 1, 51, 1),
        ("9", 51, 1, 1),
    ]
    table = index.table
    assert tuple(table.columns) == COLUMNS
    assert all(table[name].dtype == np.int64 for name in ("x", "y", "target"))
    assert table["path"].tolist()[2] == "00123/1/00123_idx5_x1_y51_class1.png"
    assert all((index.root / path).is_file() for path in table["path"])
    assert not index.notes()


def test_contents_are_not_read(tmp_path: Path) -> None:
    place_of(tmp_path, ("1", 1, 1, 0)).write_bytes(b"")
    assert rows(tmp_path) == [("1", 1, 1, 0)]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("1/0/1_idx5_x51_y1_class1.png", "class"),
        ("1/1/2_idx5_x51_y1_class1.png", "patient"),
        ("1/1/01_idx5_x51_y1_class1.png", "patient"),
    ],
)
def test_a_folder_that_contradicts_the_name_stops(tmp_path: Path, path: str, kind: str) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0), ("2", 1, 1, 1)])
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(b"")
    with pytest.raises(IDCError) as caught:
        read_index(tmp_path)
    assert str(caught.value) == (
        f"1 files of {tmp_path} lie in the folder of another {kind} than their names say: {path}; "
        "move or delete them"
    )


def test_what_is_no_patch_is_counted_and_not_used(tmp_path: Path) -> None:
    patches = tissue({"1": (3, 1), "2": (2, 2)})
    make_patches(tmp_path, patches)
    make_patches(tmp_path / "copy", patches)
    make_patches(tmp_path / "copy" / "copy", patches)
    (tmp_path / "copy" / "1" / "0" / "thumbs.db").write_text("")
    for hidden in (".DS_Store", "1/.DS_Store", "1/0/._1_idx5_x1_y1_class0.png"):
        (tmp_path / hidden).write_text("")
    (tmp_path / ".git").mkdir()
    foreign = (
        "readme.txt",
        "more.txt",
        "1/mask.png",
        "1/0/note.txt",
        "2/1/2_idx5_x1_y1_class1.jpg",
        "2/2",
    )
    for name in foreign:
        (tmp_path / name).write_text("")
    for name in ("empty", "1/0/folder", "2/1/2_idx5_x951_y1_class1.png"):
        (tmp_path / name).mkdir()
    index = read_index(tmp_path)
    assert len(index.table) == len(patches)
    assert (index.hidden, index.foreign, index.nested) == (4, len(foreign) + 3, 2 * len(patches))
    assert index.notes() == [
        "left out 4 hidden files",
        "left out 9 files that are no patches",
        "left out 16 patches in a nested copy of the data set",
    ]


def test_folders_and_files_in_the_place_of_classes_are_foreign(tmp_path: Path) -> None:
    make_patches(tmp_path, [("7", 1, 1, 1)])
    (tmp_path / "7" / "0").write_text("")
    (tmp_path / "7" / "2").mkdir()
    (tmp_path / "7" / "2" / "7_idx5_x51_y1_class1.png").write_text("")
    index = read_index(tmp_path)
    assert len(index.table) == 1
    assert index.foreign == 2


@pytest.mark.parametrize("target", [0, 1])
def test_data_sets_whose_patients_are_named_like_classes_are_not_taken_for_patients(
    tmp_path: Path, target: int
) -> None:
    make_patches(tmp_path / "0", [("1", 1, 1, target)])
    assert read_index(tmp_path).root == tmp_path / "0"


def test_the_root_may_be_the_folder_just_above(tmp_path: Path) -> None:
    make_patches(tmp_path / "inner", [("1", 1, 1, 0)])
    make_patches(tmp_path / ".hidden", [("2", 1, 1, 0)])
    (tmp_path / "figures").mkdir()
    index = read_index(tmp_path)
    assert index.root == tmp_path / "inner"
    assert len(index.table) == 1
    make_patches(tmp_path / "other", [("2", 1, 1, 0)])
    with pytest.raises(IDCError, match=r"several data sets \(inner, other\)"):
        read_index(tmp_path)


@pytest.mark.parametrize("made", ["", "1/0/", "1/0/note.txt", "1_idx5_x1_y1_class0.png"])
def test_a_root_without_patches_is_told(tmp_path: Path, made: str) -> None:
    folder, _, name = made.rpartition("/")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    if name:
        (tmp_path / folder / name).write_text("")
    with pytest.raises(IDCError, match=rf"no patches in {tmp_path}: data\.root must hold"):
        read_index(tmp_path)


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(IDCError, match=f"no such folder: {root}"):
            read_index(root)


@pytest.mark.parametrize(("x", "y"), [(0, 1), (50, 1), (1, 52), (1, 1000000), (2, 2)])
def test_positions_off_the_grid_stop(tmp_path: Path, x: int, y: int) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0), ("1", 51, 101, 1), ("1", x, y, 1)])
    with pytest.raises(IDCError, match=f"^1 patches of {tmp_path} don't lie on the grid") as caught:
        read_index(tmp_path)
    assert file_name("1", x, y, 1) in str(caught.value)


def test_both_labels_at_one_position(tmp_path: Path) -> None:
    kept = [("1", 51, 1, 0), ("2", 1, 1, 1)]
    both = [("1", 1, 1, 0), ("1", 1, 1, 1)]
    make_patches(tmp_path, kept + both)
    with pytest.raises(IDCError, match=f"^2 patches of {tmp_path} share their position") as caught:
        read_index(tmp_path)
    assert all(file_name(*patch) in str(caught.value) for patch in both)
    assert not any(file_name(*patch) in str(caught.value) for patch in kept)
    assert str(caught.value).endswith(
        "; delete the wrong ones, or set data.on_conflict=drop to leave them out"
    )
    assert rows(tmp_path, on_conflict="drop") == kept
    index = read_index(tmp_path, on_conflict="drop")
    assert tuple(index.conflicts.columns) == COLUMNS
    found = index.conflicts[["patient_id", "x", "y", "target"]]
    assert list(found.itertuples(index=False, name=None)) == both
    assert index.conflicts["path"].map(os.path.basename).tolist() == [file_name(*p) for p in both]
    assert index.notes() == ["left out 2 patches with both labels at one position"]


def test_the_same_position_of_two_patients_is_no_conflict(tmp_path: Path) -> None:
    patches = [("1", 1, 1, 0), ("2", 1, 1, 1)]
    make_patches(tmp_path, patches)
    assert rows(tmp_path) == patches


def test_a_folder_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0), ("2", 1, 1, 1)])
    locked, scandir = str(tmp_path / "2" / "1"), os.scandir

    def refuse(path: str | Path) -> Iterator[os.DirEntry[str]]:
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", locked)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(IDCError, match=f"^can't read {locked}: Permission denied$"):
        read_index(tmp_path)


def test_a_link_to_itself_is_told(tmp_path: Path) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0)])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(IDCError, match=f"^can't read {tmp_path / 'loop'}: "):
        read_index(tmp_path)


def test_links_to_the_root_are_nested_copies_that_end(tmp_path: Path) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0), ("2", 1, 1, 1)])
    for name in ("a", "b", "c"):
        (tmp_path / name).symlink_to(tmp_path)
    index = read_index(tmp_path)
    assert len(index.table) == 2
    assert index.nested == 6


@pytest.mark.parametrize(
    "name",
    [
        "1_idx5_x51_y1_class0.png\n",
        "1_idx5_x51_y1_class0.PNG",
        "1_idx5_x051_y1_class0.png",
        "1_idx5_x51_y01_class0.png",
        "1_idx5_x\u0665\u0661_y1_class0.png",
        "1_idx5_x51_y1_class00.png",
        "1_idx5_x51_y100000001_class0.png",
        "1_idx5_x51_y1_class0 (1).png",
        "_idx5_x51_y1_class0.png",
        "x\n1_idx5_x51_y1_class0.png",
    ],
)
def test_names_that_only_resemble_a_patch_are_foreign(tmp_path: Path, name: str) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0)])
    (tmp_path / "1" / "0" / name).write_bytes(b"")
    index = read_index(tmp_path)
    assert index.table["path"].tolist() == ["1/0/1_idx5_x1_y1_class0.png"]
    assert index.foreign == 1


def test_names_that_are_no_text_are_foreign(tmp_path: Path) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0)])
    for patient in (b"1", b"\xff"):
        folder = os.path.join(os.fsencode(tmp_path), patient, b"0")  # noqa: PTH118 - bytes
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with open(folder + b"/\xff_idx5_x51_y1_class0.png", "wb"):  # noqa: PTH123
            pass
    index = read_index(tmp_path)
    assert len(index.table) == 1
    assert index.foreign == 2


FOLDERS = ("7", "007", "8 9", "é", "a,b")
NUMBERS = ("1", "51", "0", "01", "051", "2", "-49", "1.0", "1e2", "\u0665\u0661")
NUMBERS += ("5" * 7, "5" * 9, "1" * 60)
ODDITIES = ("", "", "", "", "\n", " ", "\r", "\t", "\u200b", "é", "\u202e", ".", "'")

likely = st.tuples(
    st.sampled_from(FOLDERS),
    st.sampled_from(ODDITIES),
    st.sampled_from(("_idx5", "_idx5", "_IDX5", "_idx")),
    st.sampled_from(("_x",)),
    st.sampled_from(NUMBERS),
    st.sampled_from(("_y",)),
    st.sampled_from(NUMBERS),
    st.sampled_from(("_class0", "_class1", "_class2", "_class")),
    st.sampled_from((".png", ".png", ".png", ".PNG", ".jpg", "")),
    st.sampled_from(ODDITIES),
).map("".join)
anything = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)
names = st.one_of(likely, anything).filter(lambda n: n not in (".", ".."))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@settings(max_examples=80)
@given(
    files=st.lists(
        st.tuples(st.sampled_from(FOLDERS), st.sampled_from("01"), names), max_size=4, unique=True
    )
)
def test_hostile_names_are_left_out_or_told(
    folder: Path, files: list[tuple[str, str, str]]
) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        files = [*files, ("0815", "1", "0815_idx5_x51_y101_class1.png")]
        for parts in files:
            path = root.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        try:
            index = read_index(root, on_conflict="drop")
        except IDCError as error:
            told = str(error)
            assert "another" in told or "grid" in told
            return
        table = index.table
        assert len(table) + index.hidden + index.foreign + len(index.conflicts) == len(files)
        for row in table.itertuples():
            patient, label, base = str(row.path).split("/")
            assert (patient, label, base) in files
            assert (patient, label) == (row.patient_id, str(row.target))
            assert base == file_name(patient, row.x, row.y, row.target)
        assert ("0815", 51, 101, 1) in rows(root, on_conflict="drop")


@settings(max_examples=40)
@given(
    patches=st.sets(
        st.tuples(
            st.sampled_from(FOLDERS),
            st.integers(0, 199_999).map(lambda n: 50 * n + 1),
            st.sampled_from((1, 51, 9_999_951)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_no_patch_is_lost(folder: Path, patches: set[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        for patch in patches:
            place_of(root, (*patch, 0)).write_bytes(b"")
        assert {row[:3] for row in rows(root)} == patches


def test_names_are_told_as_they_are_unless_they_would_break_the_line() -> None:
    assert named(["é/1.png", "a\n/2.png"]) == "é/1.png, 'a\\n/2.png'"


def test_a_name_that_would_break_the_line_is_told_escaped(tmp_path: Path) -> None:
    path = tmp_path / "7\n" / "0" / "7_idx5_x51_y1_class0.png"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(IDCError) as caught:
        read_index(tmp_path)
    assert str(caught.value).isprintable()
    assert "another patient" in str(caught.value)
