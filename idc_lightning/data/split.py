"""From the table of patches to a split of the patients into train, dev and test.

Each way to split is one function, registered in `SPLITS` under the name of its configuration.
Patches of one patient resemble one another, so a patient is never divided.
"""

import csv
import hashlib
import io
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from idc_lightning.config import (
    AnySplit,
    CruzRoaSplitConfig,
    FileSplitConfig,
    KFoldSplitConfig,
    NotebookSplitConfig,
    StratifiedSplitConfig,
)
from idc_lightning.errors import IDCError, listed
from idc_lightning.files import write_text

NAMES = ("train", "dev", "test")

CANDIDATES = 200
"""Splits that are drawn before the most even one is taken."""


class TooFewPatientsError(IDCError):
    """There are too few patients for a split."""


def patients_of(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise the patches of each patient.

    Args:
        table: Patches with patient_id and target.

    Returns:
        One row for each patient, ordered and indexed by patient_id: patches (number) and idc
        (share of IDC patches, 0 to 1).
    """
    groups = table.groupby("patient_id")["target"]
    return pd.DataFrame({"patches": groups.size(), "idc": groups.mean()})


def rows_of(table: pd.DataFrame, split: str) -> np.ndarray:
    """Row numbers of a split's patches in a table with a column split, int64 [n]."""
    return np.flatnonzero((table["split"] == split).to_numpy())


def split_patients(table: pd.DataFrame, config: AnySplit) -> pd.Series:
    """Assign the patients of a table to train, dev and test.

    Args:
        table: Patches with patient_id and target.
        config: Which split, and its values.

    Returns:
        Series of ``"train"``, ``"dev"`` or ``"test"``, ordered and indexed by patient_id. A
        patient that a published split doesn't know is absent.

    Raises:
        TooFewPatientsError: If a split would be empty.
        IDCError: If a split's own list doesn't fit the data.
    """
    patients = patients_of(table)
    splits = SPLITS[config.name](patients, config).rename("split").rename_axis("patient_id")
    empty = [name for name in NAMES if not (splits == name).any()]
    if empty:
        raise _too_few(config.name, len(patients), f"leave no patient for {' and '.join(empty)}")
    return splits.sort_index()


def _too_few(name: str, count: int, reason: str) -> TooFewPatientsError:
    return TooFewPatientsError(
        f"too few patients for split={name}: {count} {reason}; add patients, or "
        "give your own lists by split=file split.path=<csv>"
    )


def stratified(patients: pd.DataFrame, config: StratifiedSplitConfig) -> pd.Series:
    """Spread patients evenly by IDC share and number of patches.

    The patients are put in a row in which neighbours are alike (by classes of IDC share, and by
    size within a class). The row is cut into as many pieces as a split shall have patients, and
    one patient of each piece is drawn. Of `CANDIDATES` such draws, the one is kept whose splits
    differ least from the whole in their IDC share and in their number of patches per patient.
    """
    count = len(patients)
    sizes = {name: max(1, round(count * getattr(config, name))) for name in ("test", "dev")}
    if count - sum(sizes.values()) < 1:
        raise _too_few(config.name, count, "can't be divided in three")
    row = _row_of_alike(patients, classes=max(1, round(min(sizes.values()) ** 0.5)))

    def draw(generator: np.random.Generator) -> np.ndarray:
        labels = np.full(count, "train", dtype=object)
        left = row
        for name, size in sizes.items():
            taken = np.array([generator.choice(piece) for piece in np.array_split(left, size)])
            labels[taken] = name
            left = left[~np.isin(left, taken)]
        return labels

    return pd.Series(_most_even(patients, draw, config.seed), index=patients.index)


def kfold(patients: pd.DataFrame, config: KFoldSplitConfig) -> pd.Series:
    """Take one of several folds of the patients for test, the next one for dev.

    With ``fold`` from 0 to ``folds - 1`` each patient is in test once and in dev once. Folds are
    made as even as the splits of `stratified`: of each piece of the row of alike patients every
    fold gets one, and the most even of `CANDIDATES` draws is kept. It doesn't depend on ``fold``.
    """
    count = len(patients)
    if count < config.folds:
        raise _too_few(config.name, count, f"can't be divided into {config.folds} folds")
    row = _row_of_alike(patients, classes=max(1, round((count / config.folds) ** 0.5)))

    def draw(generator: np.random.Generator) -> np.ndarray:
        folds = np.empty(count, dtype=int)
        for start in range(0, count, config.folds):
            piece = row[start : start + config.folds]
            folds[piece] = generator.permutation(config.folds)[: len(piece)]
        return folds

    folds = _most_even(patients, draw, config.seed)
    dev = (config.fold + 1) % config.folds
    labels = np.select([folds == config.fold, folds == dev], ["test", "dev"], "train")
    return pd.Series(labels, index=patients.index)


def _most_even(
    patients: pd.DataFrame, draw: Callable[[np.random.Generator], np.ndarray], seed: int
) -> np.ndarray:
    """Of `CANDIDATES` labels of the patients, those whose parts differ least from the whole."""
    generator = np.random.default_rng(seed)
    candidates = (draw(generator) for _ in range(CANDIDATES))
    return min(candidates, key=partial(_unevenness, patients))


def _unevenness(patients: pd.DataFrame, labels: np.ndarray) -> float:
    """How much parts differ from the whole in patches per patient and in IDC share, summed."""
    patches = patients["patches"].to_numpy()
    idc = patches * patients["idc"].to_numpy()
    found = 0.0
    for name in np.unique(labels):
        here = labels == name
        found += abs(patches[here].mean() / patches.mean() - 1)
        if idc.any():
            found += abs(idc[here].sum() / patches[here].sum() * patches.sum() / idc.sum() - 1)
    return found


def _row_of_alike(patients: pd.DataFrame, classes: int) -> np.ndarray:
    """Row numbers of the patients, by classes of IDC share, within each up or down in size."""
    by_share = np.argsort(patients["idc"].to_numpy(), kind="stable")
    pieces = []
    for number, members in enumerate(np.array_split(by_share, classes)):
        by_size = members[np.argsort(patients["patches"].to_numpy()[members], kind="stable")]
        pieces.append(by_size if number % 2 == 0 else by_size[::-1])
    return np.concatenate(pieces)


def notebook(patients: pd.DataFrame, config: NotebookSplitConfig) -> pd.Series:
    """Divide as the notebook does: at random, and the held-out part once more."""
    ids = patients.index.tolist()
    try:
        train, held_out = train_test_split(ids, test_size=config.held_out, random_state=config.seed)
        # The notebook takes the first part of the second call as test and the rest as dev.
        test, dev = train_test_split(held_out, train_size=config.test, random_state=config.seed)
    except ValueError as error:
        raise _too_few(config.name, len(ids), "can't be divided twice") from error
    names = {"train": train, "dev": dev, "test": test}
    return pd.Series({patient: name for name, members in names.items() for patient in members})


def cruz_roa_2014(patients: pd.DataFrame, config: CruzRoaSplitConfig) -> pd.Series:
    """Take the patients' lists published with Cruz-Roa et al. 2014.

    A. Cruz-Roa et al., "Automatic detection of invasive ductal carcinoma in whole slide images
    with convolutional neural networks", Proc. SPIE 9041, 2014: 84 patients for training, 29 for
    validation, 49 for test. Two of the training list (8915, 9024) are not in the public data set.
    """
    lists = _published()
    present = lists[lists.index.isin(patients.index)]
    if present.empty:
        raise IDCError(
            f"none of the {len(lists)} patients of split={config.name} is in the data: "
            "take split=stratified"
        )
    return present


def _published() -> pd.Series:
    text = resources.files("idc_lightning.data").joinpath("cruz_roa_2014.csv").read_text()
    rows = csv.DictReader(text.splitlines())
    return pd.Series({row["patient_id"]: row["split"] for row in rows})


def from_file(patients: pd.DataFrame, config: FileSplitConfig) -> pd.Series:
    """Read a CSV with the columns patient_id and split; it must name each patient once."""
    if config.path is None:
        raise IDCError("split.path is not set: split=file needs a CSV, split.path=splits.csv")
    splits = read_splits(config.path)
    problems = {
        "unknown to the data": [i for i in splits.index if i not in patients.index],
        "missing from the file": [i for i in patients.index if i not in splits.index],
    }
    found = [f"{listed(ids)} ({kind})" for kind, ids in problems.items() if ids]
    if found:
        raise IDCError(f"{config.path} doesn't fit the data: patients {'; '.join(found)}")
    return splits


SPLITS: dict[str, Callable[[pd.DataFrame, Any], pd.Series]] = {
    "stratified": stratified,
    "kfold": kfold,
    "notebook": notebook,
    "cruz_roa_2014": cruz_roa_2014,
    "file": from_file,
}
"""Ways to split: a function of the patients' table and the split's configuration."""


def split_notes(splits: pd.Series, table: pd.DataFrame, config: AnySplit) -> list[str]:
    """One line on patients of a published split that the data lacks, and one on the reverse.

    Args:
        splits: What `split_patients` made of the table.
        table: Patches with patient_id.
        config: Which split.
    """
    notes = []
    if isinstance(config, CruzRoaSplitConfig):
        count = f"{len(splits)} of {len(_published())}"
        notes.append(f"{count} patients of split={config.name} are present")
    absent = table["patient_id"].nunique() - len(splits)
    if absent:
        notes.append(f"left out {absent} patients that split={config.name} doesn't name")
    return notes


def read_splits(path: Path) -> pd.Series:
    """Read a splits.csv.

    Returns:
        Series of ``"train"``, ``"dev"`` or ``"test"``, indexed by patient_id, in the file's order.

    Raises:
        IDCError: If the file can't be read, lacks a column, names an unknown split or assigns a
            patient twice.
    """
    try:
        # Text throughout, since pandas would turn the patient 00123 into 123.
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, compression=None)
    except (OSError, ValueError) as error:
        raise IDCError(f"can't read the split {path}: {str(error).splitlines()[0]}") from error
    rows.columns = rows.columns.str.strip()
    missing = [name for name in ("patient_id", "split") if name not in rows.columns]
    if missing:
        raise IDCError(f"{path} has no column {' and '.join(missing)}: patient_id,split are needed")
    rows = rows[["patient_id", "split"]].apply(lambda column: column.str.strip())
    unknown = rows.loc[~rows["split"].isin(NAMES), "split"].unique().tolist()
    if unknown:
        raise IDCError(f"{path} has unknown splits {listed(unknown)}: use train, dev or test")
    double = rows.loc[rows.duplicated("patient_id"), "patient_id"].unique().tolist()
    if double:
        raise IDCError(f"{path} assigns patients more than once: {listed(double)}")
    splits: pd.Series = rows.set_index("patient_id")["split"]
    return splits


def splits_csv(splits: pd.Series) -> str:
    """The text of splits.csv, ordered by patient, so that equal splits give equal text."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("patient_id", "split"), *splits.sort_index().items()])
    return text.getvalue()


def split_hash(splits: pd.Series) -> str:
    """SHA-256 of splits.csv, as 64 hexadecimal digits."""
    return hashlib.sha256(splits_csv(splits).encode()).hexdigest()


def write_splits(splits: pd.Series, path: Path) -> None:
    """Write a splits.csv that `read_splits` reads."""
    write_text(path, splits_csv(splits))


def compare_splits(table: pd.DataFrame) -> pd.DataFrame:
    """Compare what the splits hold.

    Args:
        table: Patches with patient_id, target and split; rows without a split count for none.

    Returns:
        One row for each split and one for all of them together: split, patients, patches,
        idc_patches, idc (share of the patches, 0 to 1), patient_idc (mean over patients of their
        shares), patches_per_patient; and how the last three differ from those of all:
        idc_diff and patient_idc_diff (share minus share), and patches_per_patient_diff (as a share
        of that of all).
    """
    table = table[table["split"].notna()]
    parts = {name: table[table["split"] == name] for name in NAMES} | {"all": table}
    rows = []
    for name, part in parts.items():
        patients = patients_of(part)
        rows.append(
            {
                "split": name,
                "patients": len(patients),
                "patches": len(part),
                "idc_patches": int(part["target"].sum()),
                "idc": part["target"].mean(),
                "patient_idc": patients["idc"].mean(),
                "patches_per_patient": patients["patches"].mean(),
            }
        )
    compared = pd.DataFrame(rows)
    whole = compared.iloc[-1]
    for name in ("idc", "patient_idc"):
        compared[f"{name}_diff"] = compared[name] - whole[name]
    mean = "patches_per_patient"
    compared[f"{mean}_diff"] = compared[mean] / whole[mean] - 1
    return compared


def check_leaks(table: pd.DataFrame) -> None:
    """Stop if a patient or an image stands in two splits.

    Args:
        table: Patches with patient_id, split, path, digest (of the pixels) and blank (one colour
            throughout, as of empty glass, which tells nothing about a patient).

    Raises:
        IDCError: Naming the patients, or the images by pairs of files.
    """
    splits = table.groupby("patient_id")["split"].nunique()
    divided = splits.index[splits > 1].tolist()
    if divided:
        raise IDCError(f"leak: patients {listed(divided)} stand in more than one split")
    images = table[~table["blank"]]
    images = images[images.duplicated("digest", keep=False)]
    across = images.groupby("digest")["split"].transform("nunique") > 1
    if across.any():
        copies = images[across].groupby("digest", sort=False)["path"].agg(" = ".join)
        raise IDCError(
            f"leak: {len(copies)} images stand in more than one split: {listed(copies.tolist())}; "
            "delete the copies, or put these patients in one split by split=file split.path=<csv>"
        )
