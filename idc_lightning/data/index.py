"""From a folder of patches to a table of them, by file names alone.

The file name is the truth. A folder that contradicts it stops the run; hidden files, foreign files
and the nested second copy that the public archive holds are counted and left out.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from idc_lightning.data.grid import FILE_NAME, PATCH
from idc_lightning.errors import IDCError, listed

COLUMNS = ("patient_id", "x", "y", "target", "path")


@dataclass(frozen=True)
class Index:
    """The patches of a data set and what else lies beside them.

    Attributes:
        root: Folder that holds the patients' folders.
        table: One row for each patch, ordered by patient, y and x: patient_id (str), x and y
            (int64, pixels, from 1), target (int64, 0 healthy, 1 IDC), path (str, below root).
        hidden: Number of files and folders whose names begin with a dot.
        foreign: Number of files and folders that are no part of the layout.
        nested: Number of patches in nested copies of the data set.
        conflicts: The patches left out because their position has both labels, as in ``table``.
    """

    root: Path
    table: pd.DataFrame
    hidden: int
    foreign: int
    nested: int
    conflicts: pd.DataFrame

    def notes(self) -> list[str]:
        """One line on each kind of file that was left out."""
        kinds = {
            "hidden files": self.hidden,
            "files that are no patches": self.foreign,
            "patches in a nested copy of the data set": self.nested,
            "patches with both labels at one position": len(self.conflicts),
        }
        return [f"left out {count:,} {kind}" for kind, count in kinds.items() if count]


@dataclass
class _Found:
    """What a walk through the folders met; folders and names run in parallel."""

    folders: list[tuple[str, str]]
    names: list[list[str]]
    hidden: int = 0
    foreign: int = 0
    nested: int = 0


def read_index(root: Path, *, on_conflict: str = "error") -> Index:
    """Make the table of all patches below a folder.

    Only names are read: neither the files' contents nor their attributes.

    Args:
        root: Folder of the patients' folders, or the folder just above it.
        on_conflict: ``"error"`` or ``"drop"`` for positions of a patient with both labels.

    Raises:
        IDCError: If there is no patch, a folder can't be read or contradicts a file name, a
            position isn't on the grid, or a position has both labels and ``on_conflict`` is
            ``"error"``.
    """
    try:
        root = _patients_folder(root)
        found = _walk(root)
    except OSError as error:
        raise IDCError(f"can't read {error.filename}: {error.strerror}") from error
    table, foreign = _table(root, found)
    if table.empty:
        raise _no_patches(root)
    table, conflicts = without_conflicts(root, table, on_conflict)
    return Index(root, table, found.hidden, found.foreign + foreign, found.nested, conflicts)


def _no_patches(root: Path) -> IDCError:
    return IDCError(
        f"no patches in {root}: data.root must hold folders like "
        f"10253/0/10253_idx5_x1351_y1101_class0.png"
    )


def _patients_folder(root: Path) -> Path:
    """The folder itself, or its only child that holds patients."""
    if not root.is_dir():
        raise IDCError(f"no such folder: {root}; set data.root to the folder of the patients")
    if _is_data_set(root):
        return root
    inside = sorted(Path(entry.path) for entry in _folders(root) if _is_data_set(Path(entry.path)))
    if len(inside) > 1:
        names = listed([folder.name for folder in inside])
        raise IDCError(f"{root} holds several data sets ({names}): set data.root to one of them")
    if not inside:
        raise _no_patches(root)
    return inside[0]


def _is_data_set(folder: Path) -> bool:
    """Whether a folder holds patients' folders.

    Raises:
        OSError: If it can't be read.
    """
    return any(_is_patient(Path(entry.path)) for entry in _folders(folder))


def _is_patient(folder: Path) -> bool:
    """Whether a folder holds class folders, which aren't patients named 0 or 1."""
    classes = [folder / label for label in ("0", "1") if (folder / label).is_dir()]
    return any(not (inner / "0").is_dir() and not (inner / "1").is_dir() for inner in classes)


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (e for e in entries if e.is_dir() and not e.name.startswith("."))


def _walk(root: Path) -> _Found:
    """Collect the names in <patient>/<0|1>/ and count all else."""
    found = _Found([], [])
    with os.scandir(root) as patients:
        for patient in patients:
            if patient.name.startswith("."):
                found.hidden += 1
            elif not patient.is_dir():
                found.foreign += 1
            elif _is_patient(Path(patient.path)):
                _walk_patient(patient, found)
            elif _is_data_set(Path(patient.path)):
                found.nested += _patches_below(patient.path)
            else:
                found.foreign += 1
    return found


def _patches_below(folder: str) -> int:
    names = (name for _, _, files in os.walk(folder) for name in files)
    return sum(FILE_NAME.fullmatch(name) is not None for name in names)


def _walk_patient(patient: os.DirEntry[str], found: _Found) -> None:
    with os.scandir(patient.path) as labels:
        for label in labels:
            if label.name.startswith("."):
                found.hidden += 1
            elif label.name in ("0", "1") and label.is_dir():
                names = []
                with os.scandir(label.path) as files:
                    for file in files:
                        if file.name.startswith("."):
                            found.hidden += 1
                        elif file.is_dir():
                            found.foreign += 1
                        else:
                            names.append(file.name)
                found.folders.append((patient.name, label.name))
                found.names.append(names)
            else:
                found.foreign += 1


def _table(root: Path, found: _Found) -> tuple[pd.DataFrame, int]:
    """Parse all names at once; returns the table and the number of foreign files."""
    counts = [len(names) for names in found.names]
    files = pd.DataFrame(
        {
            "folder": np.repeat([patient for patient, _ in found.folders], counts),
            "label": np.repeat([label for _, label in found.folders], counts),
            "name": [name for names in found.names for name in names],
        },
        dtype=object,  # names that are no UTF-8 fit into no other
    )
    parts = files["name"].str.extract(rf"^{FILE_NAME.pattern}\Z")
    is_patch = parts["target"].notna()
    files, parts = files[is_patch], parts[is_patch]
    files["path"] = files["folder"] + "/" + files["label"] + "/" + files["name"]
    _check_folders(root, files, parts)
    table = pd.DataFrame(
        {
            "patient_id": parts["patient_id"].astype(str),
            "x": parts["x"].astype("int64"),
            "y": parts["y"].astype("int64"),
            "target": parts["target"].astype("int64"),
            "path": files["path"].astype(str),
        }
    ).reset_index(drop=True)
    check_grid(root, table)
    return table, int((~is_patch).sum())


def check_grid(root: Path, table: pd.DataFrame) -> None:
    """Stop if a patch doesn't lie on the grid of cells.

    Args:
        root: Folder that the table's paths start from.
        table: Patches with x, y and path.

    Raises:
        IDCError: Naming the patches.
    """
    off_grid = table[(table["x"] % PATCH != 1) | (table["y"] % PATCH != 1)]
    if not off_grid.empty:
        raise IDCError(
            f"{len(off_grid)} patches of {root} don't lie on the grid of {PATCH} px (x and y are "
            f"1, 51, 101, ...): {listed(off_grid['path'].tolist())}"
        )


def _check_folders(root: Path, files: pd.DataFrame, parts: pd.DataFrame) -> None:
    """Stop if a file lies in the folder of another patient or class."""
    for column, part, kind in (("folder", "patient_id", "patient"), ("label", "target", "class")):
        wrong = files.loc[files[column] != parts[part], "path"]
        if not wrong.empty:
            raise IDCError(
                f"{len(wrong)} files of {root} lie in the folder of another {kind} than their "
                f"names say: {named(sorted(wrong))}; move or "
                "delete them"
            )


def named(paths: Iterable[str]) -> str:
    """Paths for a message; one that would break its line is quoted and escaped."""
    return listed([path if path.isprintable() else ascii(path) for path in paths])


def without_conflicts(
    root: Path, table: pd.DataFrame, on_conflict: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take out the patches that share their position with another one of the patient.

    Args:
        root: Folder that the table's paths start from.
        table: Patches with patient_id, x, y and path.
        on_conflict: ``"error"`` or ``"drop"``.

    Returns:
        The patches that are left, and those that were taken out; both ordered by patient, y and x.

    Raises:
        IDCError: If there are such patches and ``on_conflict`` is ``"error"``.
    """
    table = table.sort_values(["patient_id", "y", "x", "path"])
    double = table.duplicated(["patient_id", "x", "y"], keep=False)
    if on_conflict == "error" and double.any():
        raise IDCError(
            f"{int(double.sum())} patches of {root} share their position with another one of "
            f"their patient, which has another label or other pixels: "
            f"{named(sorted(table.loc[double, 'path']))}; delete the wrong ones, or set "
            "data.on_conflict=drop to leave them out"
        )
    return table[~double].reset_index(drop=True), table[double].reset_index(drop=True)
