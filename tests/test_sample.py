import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idc_lightning.data.grid import PATCH
from idc_lightning.data.sample import draw_evenly, sample_patches


def table_of(sizes: list[tuple[int, int]]) -> pd.DataFrame:
    """Patches of patients 0, 1, ... from their numbers of healthy and of IDC patches."""
    rows = [
        (str(patient), target)
        for patient, pair in enumerate(sizes)
        for target in (0, 1)
        for _ in range(pair[target])
    ]
    table = pd.DataFrame(rows, columns=["patient_id", "target"])
    order = np.arange(len(rows))
    table = table.assign(x=1 + PATCH * (order % 8), y=1 + PATCH * (order // 8))
    return table.sample(frac=1, random_state=0).reset_index(drop=True).assign(number=order)


def test_shares_of_patients_and_classes_are_kept() -> None:
    table = table_of([(400, 200), (100, 20), (40, 240)])
    sample = sample_patches(table, 100, seed=0)
    counts = sample.groupby(["patient_id", "target"]).size().tolist()
    assert counts == [40, 20, 10, 2, 4, 24]


def test_shares_are_rounded_to_the_nearest() -> None:
    table = table_of([(1000, 10), *[(10, 10)] * 5])
    counts = sample_patches(table, 122, seed=0).groupby(["patient_id", "target"]).size().tolist()
    assert counts == [111, *[1] * 11]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=8),
    size=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_size_is_exact_and_no_class_of_a_patient_is_lost(
    sizes: list[tuple[int, int]], size: int, seed: int
) -> None:
    table = table_of(sizes)
    sample = sample_patches(table, size, seed=seed)
    groups = table.groupby(["patient_id", "target"]).size()
    kept = sample.groupby(["patient_id", "target"]).size()
    assert len(sample) == min(len(table), max(size, len(groups)))
    assert kept.index.equals(groups.index)
    even = groups * len(sample) / len(table)
    # Groups that are kept for their only patch take it from the others.
    assert (kept <= even + 1.5).all()
    assert sample["number"].is_monotonic_increasing
    assert sample["number"].is_unique
    assert sample.index.equals(pd.RangeIndex(len(sample)))
    assert sample.equals(table.iloc[sample["number"]].reset_index(drop=True))


def test_the_draw_depends_on_its_seed_alone() -> None:
    table = table_of([(50, 50), (50, 50)])
    first = sample_patches(table, 20, seed=3)
    assert first.equals(sample_patches(table, 20, seed=3))
    assert not first.equals(sample_patches(table, 20, seed=4))


@pytest.mark.parametrize("size", [10, 11, 1000])
def test_a_sample_of_all_is_the_table_itself(size: int) -> None:
    table = table_of([(5, 5)])
    assert sample_patches(table, size, seed=0).equals(table)


def test_each_patch_is_drawn_equally_often() -> None:
    table = table_of([(10, 10)])
    drawn = [sample_patches(table, 10, seed=seed)["number"].to_numpy() for seed in range(400)]
    share = np.bincount(np.concatenate(drawn), minlength=20) / 400
    assert share.min() > 0.4
    assert share.max() < 0.6


def test_squares_are_drawn_whole() -> None:
    table = table_of([(300, 100), (60, 4)])
    sample = sample_patches(table, 100, seed=0, crop=4)
    squares = [table["patient_id"], (table["y"] - 1) // PATCH // 4, (table["x"] - 1) // PATCH // 4]
    drawn = table["number"].isin(sample["number"]).groupby(squares)
    assert set(drawn.mean()) == {0.0, 1.0}
    assert 100 <= len(sample) < 100 + 16
    assert sample.groupby("patient_id")["target"].nunique().tolist() == [2, 2]


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8, 100])
def test_patches_to_look_at_are_of_all_patients_in_turn(count: int) -> None:
    rows = pd.DataFrame({"patient_id": [*"aaaaaaaa", *"bb", "c"]}, index=range(100, 111))
    drawn = draw_evenly(rows, count, seed=0)
    assert len(drawn) == min(count, len(rows))
    assert drawn.index.is_monotonic_increasing
    assert drawn.index.is_unique
    assert drawn["patient_id"].equals(rows.loc[drawn.index, "patient_id"])
    counts = drawn["patient_id"].value_counts().reindex([*"abc"], fill_value=0)
    left = pd.Series({"a": 8, "b": 2, "c": 1}) - counts
    assert counts.max() - counts[left > 0].min() <= 1 or not (left > 0).any()


def test_patches_to_look_at_are_drawn_by_the_seed() -> None:
    rows = pd.DataFrame({"patient_id": [str(number % 5) for number in range(500)]})
    first, again, other = (draw_evenly(rows, 20, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
