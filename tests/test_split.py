from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from helpers_data import data_config, make_patches, real_patients, split_config, tissue
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.split import (
    NAMES,
    TooFewPatientsError,
    check_leaks,
    compare_splits,
    patients_of,
    read_splits,
    rows_of,
    split_hash,
    split_notes,
    split_patients,
    write_splits,
)
from idc_lightning.errors import IDCError


def table_of(counts: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Patches from each patient's numbers of healthy and of IDC patches."""
    rows = [(p, t) for p, numbers in counts.items() for t in (0, 1) for _ in range(numbers[t])]
    return pd.DataFrame(rows, columns=["patient_id", "target"])


def sizes_of(splits: pd.Series) -> dict[str, int]:
    return {name: int((splits == name).sum()) for name in NAMES}


def cohort(count: int, seed: int = 0) -> pd.DataFrame:
    """Patients whose size and IDC share vary as widely as the real ones'."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(6, 240, count)
    idc = np.maximum(1, (patches * rng.beta(1.2, 3, count)).astype(int))
    numbers = zip((patches - idc).tolist(), idc.tolist(), strict=True)
    return table_of({str(8863 + n): pair for n, pair in enumerate(numbers)})


@pytest.fixture(scope="module")
def real() -> pd.DataFrame:
    """The real patients, each with a tenth of its patches."""
    patients = real_patients()
    tenth = np.ceil(patients[["healthy_patches", "idc_patches"]] / 10).astype(int)
    numbers = tenth.itertuples(index=False, name=None)
    return table_of(dict(zip(patients["patient_id"], numbers, strict=True)))


def test_patients_are_summarised() -> None:
    patients = patients_of(table_of({"9": (3, 1), "10": (0, 2), "010": (5, 0)}))
    assert patients.index.tolist() == ["010", "10", "9"]
    assert patients["patches"].tolist() == [5, 2, 4]
    assert patients["idc"].tolist() == [0, 1, 0.25]


def test_rows_of_a_split_are_numbered_from_0() -> None:
    table = pd.DataFrame({"split": ["dev", "train", "dev", None]}, index=[7, 8, 9, 0])
    assert rows_of(table, "dev").tolist() == [0, 2]
    assert rows_of(table, "test").tolist() == []


@pytest.mark.parametrize("seed", [0, 7])
def test_notebook_divides_as_the_notebook_does(seed: int) -> None:
    table = cohort(279)
    splits = split_patients(table, split_config("notebook", seed=seed))
    ids = sorted(table["patient_id"].unique())
    train, rest = train_test_split(ids, test_size=0.3, random_state=seed)
    test, dev = train_test_split(rest, test_size=0.5, random_state=seed)
    assert (len(train), len(dev), len(test)) == (195, 42, 42)
    for name, members in (("train", train), ("dev", dev), ("test", test)):
        assert sorted(members) == splits.index[splits == name].tolist()


def test_notebook_on_the_real_patients(real: pd.DataFrame) -> None:
    splits = split_patients(real, split_config("notebook"))
    assert sizes_of(splits) == {"train": 195, "dev": 42, "test": 42}


@pytest.mark.parametrize(
    ("share", "dev", "test"), [(0.5, 5, 5), (0.7, 3, 7), (0.9, 1, 9), (0.4, 6, 4), (0.1, 9, 1)]
)
def test_notebook_gives_test_its_share_of_the_held_out(share: float, dev: int, test: int) -> None:
    splits = split_patients(cohort(20), split_config("notebook", held_out=0.5, test=share))
    assert sizes_of(splits) == {"train": 10, "dev": dev, "test": test}


def test_stratified_has_the_sizes_that_are_asked_for() -> None:
    table = cohort(279)
    assert sizes_of(split_patients(table, split_config("stratified"))) == {
        "train": 195,
        "dev": 42,
        "test": 42,
    }
    splits = split_patients(table, split_config("stratified", dev=0.1, test=0.25))
    assert sizes_of(splits) == {"train": 181, "dev": 28, "test": 70}


def test_stratified_follows_its_seed_only() -> None:
    table = cohort(60)
    first = split_patients(table, split_config("stratified", seed=1))
    shuffled = table.sample(frac=1, random_state=0)
    pd.testing.assert_series_equal(
        first, split_patients(shuffled, split_config("stratified", seed=1))
    )
    hashes = {
        split_hash(split_patients(table, split_config("stratified", seed=seed)))
        for seed in range(5)
    }
    assert len(hashes) == 5
    assert split_hash(first) in hashes


def unevenness(table: pd.DataFrame, splits: pd.Series) -> tuple[float, float]:
    """How far the splits are off the whole: in IDC share, and in patches per patient."""
    patients = patients_of(table)
    idc = patients["idc"] * patients["patches"]
    share, size = idc.sum() / patients["patches"].sum(), patients["patches"].mean()
    parts = [splits == name for name in NAMES]
    return (
        sum(abs(idc[p].sum() / patients["patches"][p].sum() / share - 1) for p in parts),
        sum(abs(patients["patches"][p].mean() / size - 1) for p in parts),
    )


def assert_more_even_than_random(table: pd.DataFrame) -> None:
    means = {
        name: np.mean(
            [
                unevenness(table, split_patients(table, split_config(name, seed=seed)))
                for seed in range(6)
            ],
            axis=0,
        )
        for name in ("stratified", "notebook")
    }
    assert (means["stratified"] < means["notebook"] / 3).all()


@pytest.mark.parametrize("count", [30, 279])
def test_stratified_resembles_the_whole_more_than_random_splits(count: int) -> None:
    assert_more_even_than_random(cohort(count))


def test_stratified_resembles_the_whole_on_the_real_patients(real: pd.DataFrame) -> None:
    assert_more_even_than_random(real)


def test_stratified_spreads_the_extremes_and_the_middle() -> None:
    # A mean of one half is that of halves, too, and that of none and all.
    shares = {"none": (8, 0), "half": (4, 4), "all": (0, 8)}
    table = table_of({f"{kind} {n}": shares[kind] for kind in shares for n in range(30)})
    for seed in range(5):
        splits = split_patients(table, split_config("stratified", dev=0.2, test=0.2, seed=seed))
        for name in ("dev", "test"):
            kinds = [str(patient).split()[0] for patient in splits.index[splits == name]]
            assert len(kinds) == 18
            assert all(5 <= kinds.count(kind) <= 7 for kind in shares)


def test_stratified_does_without_idc() -> None:
    splits = split_patients(
        table_of({str(n): (n + 1, 0) for n in range(10)}), split_config("stratified")
    )
    assert sizes_of(splits) == {"train": 6, "dev": 2, "test": 2}


def folds_of(table: pd.DataFrame, folds: int = 5, seed: int = 0) -> list[pd.Series]:
    """The split of each fold."""
    return [
        split_patients(table, split_config("kfold", folds=folds, fold=fold, seed=seed))
        for fold in range(folds)
    ]


@pytest.mark.parametrize(
    ("name", "count", "begins"),
    [
        ("stratified", 60, "d509ebf208ee"),
        ("stratified", 5, "068b4f76dbcc"),
        ("kfold", 60, "5d5e7e03f85d"),
        ("kfold", 5, "e437c197de34"),
        ("notebook", 60, "f27cd2c7d3ba"),
    ],
)
def test_a_seed_gives_the_same_split_in_each_version(name: str, count: int, begins: str) -> None:
    table = table_of({str(n): (n % 7 + 1, n * n % 5) for n in range(count)})
    assert split_hash(split_patients(table, split_config(name, seed=3))).startswith(begins)


@given(count=st.integers(3, 40), folds=st.integers(3, 8), seed=st.integers(0, 9))
@settings(max_examples=30)
def test_kfold_puts_each_patient_into_test_and_dev_once(count: int, folds: int, seed: int) -> None:
    table = cohort(count, seed)
    if count < folds:
        with told(f"too few patients for split=kfold: {count} ", f"{folds} folds", "split=file"):
            folds_of(table, folds, seed)
        return
    splits = pd.DataFrame(folds_of(table, folds, seed))
    assert (splits == "test").sum().eq(1).all()
    assert (splits == "dev").sum().eq(1).all()
    sizes = (splits == "test").sum(axis=1)
    assert sizes.max() - sizes.min() <= 1


def test_kfold_resembles_the_whole_more_than_random_folds() -> None:
    for table in (cohort(32), cohort(279)):
        even = np.mean([unevenness(table, split) for split in folds_of(table)], axis=0)
        shuffled = patients_of(table).sample(frac=1, random_state=0).index
        random = [
            pd.Series(
                np.select([np.arange(len(shuffled)) % 5 == fold], ["test"], "train"), shuffled
            ).sort_index()
            for fold in range(5)
        ]
        for split in random:
            split[split.index[split == "train"][::4]] = "dev"
        assert (even < np.mean([unevenness(table, split) for split in random], axis=0) / 2).all()


def test_kfold_follows_its_seed_only() -> None:
    table = cohort(60)
    first = folds_of(table, seed=1)
    again = folds_of(table.sample(frac=1, random_state=0), seed=1)
    for one, other in zip(first, again, strict=True):
        pd.testing.assert_series_equal(one, other)
    assert not folds_of(table, seed=2)[0].equals(first[0])


def test_kfold_knows_its_folds() -> None:
    with told("split", "fold=5 is none of 5 folds", "0 to 4"):
        split_config("kfold", fold=5)


def test_cruz_roa_2014_on_the_real_patients(real: pd.DataFrame) -> None:
    config = split_config("cruz_roa_2014")
    splits = split_patients(real, config)
    assert sizes_of(splits) == {"train": 82, "dev": 29, "test": 49}
    published = real_patients().dropna(subset="cruz_roa_2014").set_index("patient_id")
    expected = published["cruz_roa_2014"].replace("validation", "dev").to_dict()
    assert splits.to_dict() == expected
    assert split_notes(splits, real, config) == [
        "160 of 162 patients of split=cruz_roa_2014 are present",
        "left out 119 patients that split=cruz_roa_2014 doesn't name",
    ]


@pytest.fixture
def lists() -> dict[str, list[str]]:
    """Patients of each of Cruz-Roa's lists, found by offering every number in their range."""
    table = pd.DataFrame({"patient_id": [str(n) for n in range(8000, 17000)], "target": 0})
    splits = split_patients(table, split_config("cruz_roa_2014"))
    return {name: splits.index[splits == name].tolist() for name in NAMES}


def test_cruz_roa_2014_has_the_published_lists(lists: dict[str, list[str]]) -> None:
    assert {name: len(members) for name, members in lists.items()} == {
        "train": 84,
        "dev": 29,
        "test": 49,
    }
    assert {"8915", "9024"} <= set(lists["train"])


def test_a_run_says_how_many_of_cruz_roa_s_patients_are_present(
    tmp_path: Path, lists: dict[str, list[str]]
) -> None:
    known = [patient for name in NAMES for patient in lists[name][:2]]
    root = make_patches(tmp_path / "data", tissue(dict.fromkeys([*known, "7"], (1, 1))))
    data = IDCDataModule(
        data_config(root=str(root)), split_config("cruz_roa_2014"), seed=0, cache=tmp_path
    )
    data.setup()
    assert data.notes() == [
        "6 of 162 patients of split=cruz_roa_2014 are present",
        "left out 1 patients that split=cruz_roa_2014 doesn't name",
    ]
    assert sorted(set(data.table["patient_id"])) == sorted(known)


def test_cruz_roa_2014_without_its_patients(lists: dict[str, list[str]]) -> None:
    config = split_config("cruz_roa_2014")
    nobody = "none of the 162 patients of split=cruz_roa_2014 is in the data: take split=stratified"
    with pytest.raises(IDCError, match=f"^{nobody}$"):
        split_patients(table_of({"1": (1, 1), "08864": (1, 1)}), config)
    one_list = table_of(dict.fromkeys(lists["train"], (1, 1)))
    with pytest.raises(IDCError) as caught:
        split_patients(one_list, config)
    assert str(caught.value) == (
        "too few patients for split=cruz_roa_2014: 84 leave no patient for dev and test; add "
        "patients, or give your own lists by split=file split.path=<csv>"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [("stratified", "can't be divided in three"), ("notebook", "can't be divided twice")],
)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_patients(name: str, reason: str, count: int) -> None:
    with told(f"too few patients for split={name}: {count} {reason}; ", "split=file"):
        split_patients(cohort(count), split_config(name))


def test_three_patients_are_enough_for_stratified() -> None:
    assert sizes_of(split_patients(cohort(3), split_config("stratified"))) == dict.fromkeys(
        NAMES, 1
    )


SHARES = st.floats(0.01, 0.99)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    ids = draw(st.lists(st.text("0123456789aé", min_size=1, max_size=4), unique=True, max_size=25))
    number = st.integers(0, 9)
    numbers = {i: draw(st.tuples(number, number).filter(any)) for i in ids}
    return table_of(numbers)


@settings(max_examples=40)
@given(tables(), SHARES, SHARES, st.sampled_from(["stratified", "notebook"]), st.integers(0, 99))
def test_every_patient_is_in_one_split_and_none_is_empty(
    table: pd.DataFrame, first: float, second: float, name: str, seed: int
) -> None:
    shares = (
        {"held_out": first, "test": second}
        if name == "notebook"
        else {"dev": first * 0.99, "test": (1 - first) * second}
    )
    try:
        splits = split_patients(table, split_config(name, seed=seed, **shares))
    except IDCError:
        # Only where one of the three would be empty.
        count = table["patient_id"].nunique()
        small = min(
            (1 - first, first * second, first * (1 - second))
            if name == "notebook"
            else (1 - sum(shares.values()), 1)
        )
        assert count < 3 or small * count < 2
        return
    assert splits.index.tolist() == sorted(table["patient_id"].unique())
    assert (splits.name, splits.index.name) == ("split", "patient_id")
    assert splits.index.is_unique
    assert set(splits) == set(NAMES)


@pytest.fixture
def six() -> pd.DataFrame:
    return table_of(dict.fromkeys(["007", "7", "8", "9", "a b", "é"], (2, 1)))


ROWS = ["007,train", "7,train", "8,train", "9,dev", "a b,dev", "é,test"]


def from_text(path: Path, table: pd.DataFrame, text: str, encoding: str = "utf-8") -> pd.Series:
    path.write_text(text, encoding=encoding, newline="")
    return split_patients(table, split_config("file", path=str(path)))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("\n".join(["patient_id,split", *ROWS]), "utf-8"),
        ("\n".join(["patient_id,split", *ROWS, "", ""]), "utf-8"),
        ("\r\n".join(["patient_id,split", *ROWS[::-1], ""]), "utf-8-sig"),
        ("\n".join([" patient_id , split ", *(r.replace(",", " ,\t ") for r in ROWS)]), "utf-8"),
        ("\n".join(['"split","note","patient_id"', *(
            f'{s},"x,y","{p}"' for p, s in (r.split(",") for r in ROWS)
        )]), "utf-8"),
    ],
)  # fmt: skip
def test_a_file_is_read_as_text(
    tmp_path: Path, six: pd.DataFrame, text: str, encoding: str
) -> None:
    splits = from_text(tmp_path / "own.csv", six, text, encoding)
    assert [f"{patient},{name}" for patient, name in splits.items()] == ROWS


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (["patient_id,split", *ROWS, "123,dev"], ["123 (unknown to the data)"]),
        (["patient_id,split", *ROWS[1:]], ["007 (missing from the file)"]),
        (
            ["patient_id,split", *ROWS[:-1], "e,test"],
            ["patients e (unknown to the data); é (missing from the file)"],
        ),
        (["patient_id,split", *ROWS, "7,dev"], ["more than once: 7"]),
        (["patient_id,split", *ROWS, "7,train"], ["more than once: 7"]),
        (["patient_id,split", *ROWS, "7 ,dev"], ["more than once: 7"]),
        (["patient_id,split", *ROWS[:-1], "é,validation"], ["unknown splits validation"]),
        (["patient_id,split", *ROWS[:-1], "é,Test"], ["unknown splits Test"]),
        (["patient_id,split", *ROWS[:-1], "é,"], ["unknown split"]),
        (["patient_id,split", *ROWS[:-1], "é"], ["unknown split"]),
        (["patient,split", *ROWS], ["no column patient_id:"]),
        (["patient_id,fold", *ROWS], ["no column split:"]),
        (ROWS, ["no column patient_id and split"]),
        (["patient_id;split", *(r.replace(",", ";") for r in ROWS)], ["patient_id,split"]),
        (["patient_id,split", *(r.replace("test", "dev") for r in ROWS)], ["no patient for test"]),
        (["patient_id,split"], ["007, 7, 8, 9, a b and 1 more (missing from the file)"]),
        ([], ["can't read the split"]),
        (["patient_id,split", '"007,train'], ["can't read the split"]),
        (["patient_id,split", "007,train", "7,train,8,dev"], ["can't read the split"]),
    ],
)
def test_a_file_that_does_not_fit(
    tmp_path: Path, six: pd.DataFrame, rows: list[str], parts: list[str]
) -> None:
    with told(*parts):
        from_text(tmp_path / "own.csv", six, "\n".join(rows))


@pytest.mark.parametrize("name", ["own.csv", "own.zip", "own.gz", "own.xz", "own.bz2", "own.tar"])
def test_a_file_that_is_no_text(tmp_path: Path, six: pd.DataFrame, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff\xfe\x00\x00" * 50)
    with told("can't read the split", name):
        split_patients(six, split_config("file", path=str(tmp_path / name)))


def test_a_file_that_is_absent(tmp_path: Path, six: pd.DataFrame) -> None:
    for path, reason in ((tmp_path, "directory"), (tmp_path / "nowhere.csv", "No such file")):
        with told(f"can't read the split {path}", reason):
            split_patients(six, split_config("file", path=str(path)))
    unset = "split.path is not set: split=file needs a CSV, split.path=splits.csv"
    with pytest.raises(IDCError, match=f"^{unset}$"):
        split_patients(six, split_config("file"))


def test_a_file_in_the_home_folder(
    tmp_path: Path, six: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.csv").write_text("\n".join(["patient_id,split", *ROWS]), encoding="utf-8")
    assert len(split_patients(six, split_config("file", path="~/own.csv"))) == 6


IDS = st.from_regex(r"[0-9A-Za-zé_,;\"'#=.-]{1,6}", fullmatch=True) | st.sampled_from(
    ["007", "NA", "null", "1e5", "True", "a b"]
)


@settings(max_examples=30)
@given(st.dictionaries(IDS, st.sampled_from(NAMES), min_size=1, max_size=12), st.randoms())
def test_a_written_split_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, splits: dict[str, str], random: Random
) -> None:
    path = tmp_path_factory.mktemp("splits") / "made" / "splits.csv"
    written = pd.Series(splits)
    write_splits(written, path)
    read = read_splits(path)
    assert read.to_dict() == splits
    assert read.index.tolist() == sorted(splits)
    others = list(splits.items())
    random.shuffle(others)
    assert split_hash(pd.Series(dict(others))) == split_hash(written) == split_hash(read)


def test_a_written_split_is_ordered_text(tmp_path: Path) -> None:
    write_splits(pd.Series({"8": "dev", "10": "train"}), tmp_path / "splits.csv")
    assert (tmp_path / "splits.csv").read_bytes() == b"patient_id,split\n10,train\n8,dev\n"


def test_the_hash_tells_splits_apart() -> None:
    hashes = {
        split_hash(pd.Series(splits))
        for splits in (
            {"7": "train", "8": "dev"},
            {"7": "dev", "8": "train"},
            {"07": "train", "8": "dev"},
            {"7": "train"},
        )
    }
    assert len(hashes) == 4
    assert all(len(text) == 64 and int(text, 16) for text in hashes)


@pytest.fixture
def patches() -> pd.DataFrame:
    """Each patient has an image of its own, one that its other patch repeats, and empty glass."""
    rows = [
        (patient, split, f"{patient}/{n}.png", digest, digest == "glass")
        for patient, split in (("7", "train"), ("8", "train"), ("9", "dev"), ("10", "test"))
        for n, digest in enumerate(
            [f"{patient} own", f"{patient} twice", f"{patient} twice", "glass"]
        )
    ]
    return pd.DataFrame(rows, columns=["patient_id", "split", "path", "digest", "blank"])


def test_copies_within_a_split_and_empty_glass_are_no_leak(patches: pd.DataFrame) -> None:
    patches.loc[patches["path"] == "8/0.png", "digest"] = "7 own"
    check_leaks(patches)


def test_a_patient_in_two_splits_is_a_leak(patches: pd.DataFrame) -> None:
    patches.loc[patches["path"] == "9/0.png", "split"] = "test"
    with told("leak: patients 9 stand in more than one split"):
        check_leaks(patches)


def test_an_image_in_two_splits_is_a_leak(patches: pd.DataFrame) -> None:
    patches.loc[patches["path"] == "10/0.png", "digest"] = "7 twice"
    with pytest.raises(IDCError) as caught:
        check_leaks(patches)
    assert str(caught.value) == (
        "leak: 1 images stand in more than one split: 7/1.png = 7/2.png = 10/0.png; delete the "
        "copies, or put these patients in one split by split=file split.path=<csv>"
    )


def test_leaks_are_told_in_the_order_of_the_patches(patches: pd.DataFrame) -> None:
    patches.loc[patches["path"].isin(["7/0.png", "10/0.png"]), "digest"] = "z"
    patches.loc[patches["path"].isin(["8/0.png", "9/0.png"]), "digest"] = "a"
    with told("leak: 2 images stand", ": 7/0.png = 10/0.png, 8/0.png = 9/0.png;"):
        check_leaks(patches)


def test_splits_are_compared_with_the_whole() -> None:
    table = table_of({"1": (6, 2), "2": (0, 4), "3": (3, 1), "4": (8, 0), "5": (9, 9)})
    splits = {"1": "train", "2": "train", "3": "dev", "4": "test"}
    compared = compare_splits(table.assign(split=table["patient_id"].map(splits)))
    compared = compared.set_index("split")
    assert compared.index.tolist() == ["train", "dev", "test", "all"]
    assert compared["patients"].tolist() == [2, 1, 1, 4]
    assert compared["patches"].tolist() == [12, 4, 8, 24]
    assert compared["idc_patches"].tolist() == [6, 1, 0, 7]
    assert compared["idc"].tolist() == pytest.approx([6 / 12, 1 / 4, 0, 7 / 24])
    assert compared["patient_idc"].tolist() == pytest.approx([(0.25 + 1) / 2, 0.25, 0, 1.5 / 4])
    assert compared["patches_per_patient"].tolist() == [6, 4, 8, 6]
    assert compared["idc_diff"].tolist() == pytest.approx([5 / 24, -1 / 24, -7 / 24, 0])
    assert compared["patient_idc_diff"].tolist() == pytest.approx([0.25, -0.125, -0.375, 0])
    assert compared["patches_per_patient_diff"].tolist() == pytest.approx([0, -1 / 3, 1 / 3, 0])


@pytest.mark.parametrize("name", ["stratified", "notebook"])
def test_too_few_patients_can_be_told_from_other_errors(name: str) -> None:
    with pytest.raises(TooFewPatientsError):
        split_patients(table_of({"1": (1, 1), "2": (1, 1)}), split_config(name))
    with pytest.raises(IDCError) as caught:
        split_patients(table_of({"1": (1, 1)}), split_config("file"))
    assert not isinstance(caught.value, TooFewPatientsError)
