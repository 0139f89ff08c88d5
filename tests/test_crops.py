import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idc_lightning.data.crops import Patches, Slides, Tilings, Windows, place_of
from idc_lightning.data.grid import NO_CELL, PATCH, places

LAYOUT = st.lists(
    st.sets(st.tuples(st.integers(0, 25), st.integers(0, 12)), min_size=1, max_size=60),
    min_size=1,
    max_size=3,
)
"""Of one to three slides the rows and columns that have a patch."""

Cells = npt.NDArray[np.int64]


def table_of(slides: list[set[tuple[int, int]]]) -> pd.DataFrame:
    """Patches in an order of their own; patient names don't sort as the slides do."""
    rows = [
        (f"{97 - number}", 1 + PATCH * column, 1 + PATCH * row)
        for number, slide in enumerate(slides)
        for row, column in sorted(slide)
    ]
    table = pd.DataFrame(rows, columns=["patient_id", "x", "y"])
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


def slides_of(table: pd.DataFrame) -> Slides:
    return Slides(table, np.arange(len(table)))


def assert_as_in_the_tissue(table: pd.DataFrame, crop: Cells) -> None:
    """A crop shows all patches of its square of one slide, each in its place."""
    shown = crop[crop != NO_CELL]
    assert len(set(table["patient_id"].iloc[shown])) == 1
    own = table[table["patient_id"] == table["patient_id"].iloc[shown[0]]]
    row, column = places(own["x"].to_numpy(), own["y"].to_numpy())
    down, across = np.argwhere(crop == shown[0])[0]
    first = own.index.get_loc(shown[0])
    row, column = row - row[first] + down, column - column[first] + across
    inside = (row >= 0) & (row < crop.shape[0]) & (column >= 0) & (column < crop.shape[1])
    wanted = np.full_like(crop, NO_CELL)
    wanted[row[inside], column[inside]] = own.index[inside]
    assert crop.tolist() == wanted.tolist()


@settings(max_examples=60)
@given(LAYOUT, st.integers(1, 7), st.integers(0, 1000))
def test_a_tiling_shows_each_patch_once_as_it_lies_in_its_slide(
    layout: list[set[tuple[int, int]]], size: int, seed: int
) -> None:
    table = table_of(layout)
    tilings = Tilings(slides_of(table), size)
    shown, judged = tilings.cells(tilings.tiling(np.random.default_rng(seed)).tolist())
    assert shown.shape[1:] == (size, size)
    assert np.array_equal(shown, judged)
    assert sorted(shown[shown != NO_CELL].tolist()) == list(range(len(table)))
    for crop in shown:
        assert_as_in_the_tissue(table, crop)


@settings(max_examples=60)
@given(LAYOUT, st.integers(1, 7))
def test_all_epochs_are_as_long_and_differ(layout: list[set[tuple[int, int]]], size: int) -> None:
    tilings = Tilings(slides_of(table_of(layout)), size)
    epochs = [tilings.order(np.random.default_rng([0, epoch])) for epoch in range(20)]
    assert all(len(epoch) >= len(tilings) for epoch in epochs)
    again = tilings.order(np.random.default_rng([0, 3]))
    assert again.tolist() == epochs[3].tolist()
    if len(tilings) > 3:
        assert len({tuple(epoch[: len(tilings)].tolist()) for epoch in epochs}) > 10


def test_a_tiling_has_few_cells_without_a_patch() -> None:
    disc = {(r, c) for r, c in np.ndindex(40, 40) if (r - 20) ** 2 + (c - 20) ** 2 < 300}
    table = table_of([disc])
    tilings = Tilings(slides_of(table), 8)
    row, column = places(table["x"].to_numpy(), table["y"].to_numpy())
    fixed = np.mean(
        [len({*zip((row + a) // 8, (column + b) // 8, strict=True)}) for a, b in np.ndindex(8, 8)]
    )
    assert len(tilings) < 0.93 * fixed


@settings(max_examples=60)
@given(LAYOUT, st.integers(3, 30), st.integers(0, 1))
def test_windows_judge_each_patch_once_and_see_its_margin(
    layout: list[set[tuple[int, int]]], size: int, margin: int
) -> None:
    table = table_of(layout)
    windows = Windows(slides_of(table), size, margin)
    judged_in_all = []
    for number in range(len(windows)):
        (shown,), (judged,) = windows.cells([number])
        assert max(shown.shape) <= size
        assert_as_in_the_tissue(table, shown)
        here = judged[judged != NO_CELL]
        assert len(here) > 0
        assert np.array_equal(judged[judged != NO_CELL], shown[judged != NO_CELL])
        judged_in_all += here.tolist()
        for patch in here.tolist():
            own = table[table["patient_id"] == table["patient_id"][patch]]
            far = (own[["x", "y"]] - table.loc[patch, ["x", "y"]].to_numpy()).abs().max(axis=1)
            assert set(own.index[far <= margin * PATCH]) <= set(shown.flatten().tolist())
    assert sorted(judged_in_all) == list(range(len(table)))


def test_a_slide_that_fits_is_one_window() -> None:
    table = table_of([{(3, 4), (12, 9)}, {(0, 0)}])
    windows = Windows(slides_of(table), 10, 3)
    shapes = [windows.cells([number])[0].shape for number in range(len(windows))]
    assert sorted(shapes) == [(1, 1, 1), (1, 10, 6)]


def test_a_window_can_be_shown_without_judging_it() -> None:
    windows = Windows(slides_of(table_of([{(0, 0), (0, 1)}, {(2, 2)}])), 10, 3)
    shown, judged = windows.cells([~0])
    assert np.array_equal(shown, windows.cells([0])[0])
    assert (judged == NO_CELL).all()


def test_patches_as_far_apart_as_names_allow_take_no_more_room() -> None:
    corners = {(0, 0), (199_999, 0), (0, 199_999), (199_999, 199_999)}
    table = table_of([corners, {(5, 5)}])
    tilings = Tilings(slides_of(table), 64)
    shown, _ = tilings.cells(tilings.tiling(np.random.default_rng(0)).tolist())
    assert sorted(shown[shown != NO_CELL].tolist()) == [0, 1, 2, 3, 4]
    assert len(Windows(slides_of(table), 32, 3)) == 5


def test_only_the_rows_that_are_given_are_shown() -> None:
    table = table_of([{(0, 0), (0, 1), (1, 0), (1, 1)}])
    some = np.array([3, 1])
    shown = Slides(table, some).cells(place_of(*np.zeros((3, 1), np.int64)), 2, 2)
    assert sorted(shown.flatten().tolist()) == [NO_CELL, NO_CELL, 1, 3]


@pytest.mark.parametrize("numbers", [[0], [2, 0, 1]])
def test_single_patches_are_crops_of_one_cell(numbers: list[int]) -> None:
    shown, judged = Patches(np.array([7, 5, 6])).cells(numbers)
    assert shown.flatten().tolist() == [[7, 5, 6][number] for number in numbers]
    assert shown.shape == judged.shape == (len(numbers), 1, 1)
