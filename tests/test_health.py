"""What is found to be doubtful in data that is wrong in known ways."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_data import make_patches, pixels_of, place_of, real_root
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from idc_lightning.data.decode import HEADER
from idc_lightning.data.grid import PATCH
from idc_lightning.data.health import (
    COLUMNS,
    MEANINGS,
    count_pieces,
    describe_patients,
    find_gaps,
    find_problems,
    summarise,
)
from idc_lightning.data.index import Index, read_index
from idc_lightning.data.size import small_inside
from idc_lightning.data.store import Store, open_store

Cell = tuple[int, int]
"""Column and row."""


def read(root: Path, splits: dict[str, str]) -> tuple[Index, Store]:
    """Index and store with the column split, broken files and conflicts left out."""
    index = read_index(root, on_conflict="drop")
    table = index.table.assign(split=index.table["patient_id"].map(splits))
    return index, open_store(
        index.root,
        table,
        cache=index.root.parent / "cache",
        everything=index.table,
        on_broken="skip",
    )


def problems(root: Path, splits: dict[str, str]) -> pd.DataFrame:
    return find_problems(*read(root, splits), ["left out 3 of the archive"])


def of_kind(findings: pd.DataFrame, kind: str) -> list[tuple[object, ...]]:
    rows = findings.loc[findings["kind"] == kind, ["patient_id", "x", "y", "detail"]]
    return list(rows.itertuples(index=False, name=None))


def write(root: Path, patch: tuple[str, int, int, int], pixels: np.ndarray) -> str:
    """Write a patch; returns its path below the root."""
    path = place_of(root, patch)
    Image.fromarray(pixels).save(path)
    return str(path.relative_to(root))


def places(cells: Iterable[Cell], patient: str = "1") -> pd.DataFrame:
    rows = [(patient, PATCH * column + 1, PATCH * row + 1) for column, row in cells]
    return pd.DataFrame(rows, columns=["patient_id", "x", "y"])


def gaps(cells: Iterable[Cell]) -> set[Cell]:
    found = find_gaps(places(cells))
    return set(zip((found["x"] - 1) // PATCH, (found["y"] - 1) // PATCH, strict=True))


def test_sound_data_has_no_findings(tmp_path: Path) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0), ("1", 51, 1, 1), ("2", 1, 1, 0)])
    findings = find_problems(*read(tmp_path, {"1": "train", "2": "test"}))
    assert findings.empty
    assert list(findings) == list(COLUMNS)
    assert summarise(findings)["count"].tolist() == [0] * len(MEANINGS)


def test_files_that_are_wrong_are_each_listed(tmp_path: Path) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0), ("1", 51, 51, 0), ("1", 51, 51, 1)])
    place_of(tmp_path, ("2", 101, 1, 1)).write_bytes(b"no image")
    write(tmp_path, ("1", 201, 1, 0), np.full((PATCH, PATCH, 3), 255, np.uint8))
    write(tmp_path, ("1", 301, 51, 0), pixels_of(("1", 301, 51, 0))[:12, :40])
    (tmp_path / ".hidden").touch()
    findings = problems(tmp_path, {"1": "train", "2": "test"})
    assert of_kind(findings, "broken") == [("2", 101, 1, "not a PNG image")]
    assert of_kind(findings, "both labels") == [
        ("1", 51, 51, "labelled healthy here"),
        ("1", 51, 51, "labelled IDC here"),
    ]
    assert of_kind(findings, "blank") == [("1", 201, 1, "one colour throughout")]
    assert of_kind(findings, "edge") == [("1", 301, 51, "40x12 px")]
    assert of_kind(findings, "small inside") == []
    left_out = findings[findings["kind"] == "left out"]
    assert left_out["detail"].tolist() == ["left out 3 of the archive", "left out 1 hidden files"]
    assert left_out[["patient_id", "x", "y", "path"]].isna().all().all()
    kinds = findings["kind"].drop_duplicates().tolist()
    assert kinds == [kind for kind in MEANINGS if kind in kinds]


def test_small_patches_are_of_the_edge_only_in_the_last_column_or_row(tmp_path: Path) -> None:
    # Three columns and rows; the ends of another patient and of a broken file don't mix in.
    make_patches(tmp_path, [("1", 1, 1, 0), ("2", 501, 501, 0)])
    place_of(tmp_path, ("1", 101, 101, 0)).write_bytes(b"")
    small = {
        (101, 1): (40, 50),  # last column, narrow
        (101, 51): (50, 40),  # last column, but low
        (1, 101): (50, 40),  # last row, low
        (51, 101): (40, 40),  # last row, but narrow, too
        (51, 51): (49, 50),
    }
    for (x, y), (width, height) in small.items():
        pixels = pixels_of(("1", x, y, 0))[:height, :width]
        write(tmp_path, ("1", x, y, 0), pixels)
    index, store = read(tmp_path, {"1": "train", "2": "test"})
    findings = find_problems(index, store)
    assert of_kind(findings, "edge") == [("1", 101, 1, "40x50 px"), ("1", 1, 101, "50x40 px")]
    assert of_kind(findings, "small inside") == [
        ("1", 51, 51, "49x50 px"),
        ("1", 101, 51, "50x40 px"),
        ("1", 51, 101, "40x40 px"),
    ]
    described = describe_patients(index, store.table, pd.Series(), findings, microns=4.0)
    assert described["edge"].tolist() == [2, 0]
    assert described["small_inside"].tolist() == [3, 0]


def test_the_real_tissue_has_no_small_patch_inside() -> None:
    index = read_index(real_root(), on_conflict="drop")
    heads = ((index.root / path).read_bytes()[: HEADER.size] for path in index.table["path"])
    headers = [HEADER.unpack(head) for head in heads]
    sizes = pd.DataFrame(headers, columns=["start", "width", "height", "bits"])
    table = index.table.join(sizes)
    assert (table[["width", "height"]] < PATCH).any(axis=1).sum() == 168
    assert not small_inside(table, index.table).any()


def test_copies_are_told_apart_by_how_far_they_reach(tmp_path: Path) -> None:
    make_patches(tmp_path, [(patient, 1, 1, 0) for patient in "1234"])
    within, across, leak = (pixels_of(("copied", number, 0, 0)) for number in range(3))
    copied = {
        "duplicate within a patient": [("1", 51, 1, 0), ("1", 101, 1, 0)],
        "duplicate across patients": [("1", 1, 51, 0), ("2", 51, 51, 1)],
        "duplicate across splits": [("1", 201, 1, 0), ("3", 251, 1, 0), ("3", 301, 1, 0)],
    }
    paths = {
        kind: [write(tmp_path, patch, pixels) for patch in patches]
        for (kind, patches), pixels in zip(copied.items(), (within, across, leak), strict=True)
    }
    findings = problems(tmp_path, {"1": "train", "2": "train", "3": "test"})
    for kind, patches in copied.items():
        found = findings[findings["kind"] == kind]
        rows = found[["patient_id", "x", "y"]].itertuples(index=False, name=None)
        assert list(rows) == [patch[:3] for patch in patches]
    details = dict(zip(findings["path"], findings["detail"], strict=True))
    first, second = paths["duplicate within a patient"]
    assert details[first] == f"same pixels as {second}"
    assert details[second] == f"same pixels as {first}"
    first, second = paths["duplicate across patients"]
    assert details[second] == f"same pixels as {first}; under both labels"
    first, _, last = paths["duplicate across splits"]
    assert details[first] == f"same pixels as {last} and 1 more"


def test_blank_patches_are_no_duplicates(tmp_path: Path) -> None:
    white = np.full((PATCH, PATCH, 3), 255, np.uint8)
    for patient in "12":
        write(tmp_path, (patient, 1, 1, 0), white)
    findings = problems(tmp_path, {"1": "train", "2": "test"})
    assert set(findings["kind"]) == {"blank", "left out"}


RING = [(c, r) for c in range(3) for r in range(3) if (c, r) != (1, 1)]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (RING, {(1, 1)}),
        ([(c + 7, r + 2) for c, r in RING], {(8, 3)}),
        ([cell for cell in RING if cell != (1, 0)], set()),  # open above
        ([cell for cell in RING if cell != (0, 0)], {(1, 1)}),  # closed, as corners touch
        ([(0, 0), (2, 0)], set()),
        ([(0, 0)], set()),
        (
            [(c, r) for c in range(4) for r in range(3) if not (c in (1, 2) and r == 1)],
            {(1, 1), (2, 1)},
        ),
        ([*RING, (100_000, 100_000)], {(1, 1)}),
    ],
)
def test_gaps_are_enclosed_places_without_a_patch(cells: list[Cell], expected: set[Cell]) -> None:
    assert gaps(cells) == expected


@settings(max_examples=50)
@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1), st.integers(0, 9))
def test_gaps_cannot_be_reached_from_outside(cells: set[Cell], shift: int) -> None:
    """Against a walk from cell to cell over a grid with a margin."""
    free, seen = [(-1, -1)], {(-1, -1)}
    while free:
        column, row = free.pop()
        for step in ((column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)):
            if min(step) >= -1 and max(step) <= 8 and step not in cells and step not in seen:
                seen.add(step)
                free.append(step)
    inner = {(c, r) for c in range(8) for r in range(8)} - cells - seen
    moved = gaps((c + shift, r + 2 * shift) for c, r in cells)
    assert moved == {(c + shift, r + 2 * shift) for c, r in inner}


def test_pieces_are_counted_for_each_patient() -> None:
    one = places([(0, 0), (1, 1), (3, 1), (3, 2), (90_000, 3)], "1")
    two = places([(0, 0)], "2")
    assert count_pieces(pd.concat([one, two])).to_dict() == {"1": 3, "2": 1}


def test_each_patient_is_described(tmp_path: Path) -> None:
    ring = [("1", 51 + PATCH * c, 101 + PATCH * r, int(c == 0)) for c, r in RING]
    make_patches(tmp_path, [*ring, ("2", 1, 1, 1)])
    place_of(tmp_path, ("3", 1, 1, 0)).write_bytes(b"")
    splits = {"1": "train", "3": "dev"}
    index, store = read(tmp_path, splits)
    findings = find_problems(index, store)
    described = describe_patients(
        index, store.table, pd.Series(splits), findings, microns=4.0
    ).set_index("patient_id")
    assert described.index.tolist() == ["1", "2", "3"]
    first = described.loc["1"].to_dict()
    assert first == {
        "split": "train",
        "patches": 8,
        "idc_patches": 3,
        "idc": 3 / 8,
        "edge": 0,
        "small_inside": 0,
        "blank": 0,
        "duplicates": 0,
        "both_labels": 0,
        "broken": 0,
        "gaps": 1,
        "pieces": 1,
        "width_mm": pytest.approx(0.6),
        "height_mm": pytest.approx(0.6),
    }
    assert pd.isna(described.loc["2", "split"])
    assert described.loc["3", ["split", "patches", "broken"]].tolist() == ["dev", 0, 1]
    assert pd.isna(described.loc["3", "idc"])


def test_findings_are_counted_by_kind_and_patient(tmp_path: Path) -> None:
    make_patches(tmp_path, [("1", 1, 1, 0)])
    for patient, x in (("1", 51), ("1", 101), ("2", 1)):
        write(tmp_path, (patient, x, 1, 0), pixels_of((patient, x, 1, 0))[:9])
    counts = summarise(problems(tmp_path, {})).set_index("finding")
    assert counts.loc["edge", ["count", "patients"]].tolist() == [3, 2]
    assert counts.loc["left out", ["count", "patients"]].tolist() == [1, 0]
