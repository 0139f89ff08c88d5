"""New patches in folders of any depth, labelled or not: their table, as the index makes it.

The file name is the truth, as for a data set (`idc_lightning.data.index`), but class and ``_idx5``
may be missing in it, and it doesn't matter in which folder a patch lies.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from idc_lightning.data.decode import read_file
from idc_lightning.data.grid import NO_LABEL, NUMBER, PATIENT_NAME
from idc_lightning.data.index import check_grid, named, without_conflicts
from idc_lightning.errors import IDCError

NAME = re.compile(
    rf"(?:(?P<with_idx5>{PATIENT_NAME})_idx5|(?P<without>{PATIENT_NAME})(?<!_idx5))"
    rf"_x(?P<x>{NUMBER})_y(?P<y>{NUMBER})(?:_class(?P<target>[01]))?\.png"
)
"""Name of a patch, in which ``_idx5`` and the class may be missing."""

POSITION = ["patient_id", "x", "y"]


@dataclass(frozen=True)
class Loose:
    """Patches below a folder and what else lies there.

    Attributes:
        root: The folder.
        table: One row for each patch, ordered by patient, y and x: patient_id (str), x and y
            (int64, pixels, from 1), target (int64, 0 healthy, 1 IDC, -1 without a label), path
            (below root).
        hidden: Number of files and folders whose names begin with a dot.
        foreign: Number of files whose names aren't those of patches.
        copies: Number of patches left out since the same one lies there once more.
        conflicts: Number of patches left out because another one has their position.
    """

    root: Path
    table: pd.DataFrame
    hidden: int
    foreign: int
    copies: int
    conflicts: int

    def notes(self) -> list[str]:
        """One line on each kind of file that was left out."""
        kinds = {
            "hidden files": self.hidden,
            "files whose names aren't those of patches": self.foreign,
            "copies of patches": self.copies,
            "patches that share their position with another one": self.conflicts,
        }
        return [f"left out {count:,} {kind}" for kind, count in kinds.items() if count]


def read_loose(root: Path, *, on_conflict: str = "error") -> Loose:
    """Make the table of all patches below a folder.

    Args:
        root: A folder with patches at any depth; links to folders are followed.
        on_conflict: ``"error"`` or ``"drop"`` for positions of a patient with several patches,
            unless these are copies of one file.

    Raises:
        IDCError: If there is no patch, a folder can't be read or is that of another class, a
            position isn't on the grid, or a position has several patches and ``on_conflict`` is
            ``"error"``.
    """
    if not root.is_dir():
        problem = "is no folder" if root.exists() else "doesn't exist"
        raise IDCError(f"input={root} {problem}: give a folder of patches")
    paths, hidden = _walk(root)
    table = _table(paths)
    if table.empty:
        raise IDCError(
            f"no patches in input={root}: names must be like 10253_idx5_x1351_y1101.png or "
            "10253_idx5_x1351_y1101_class0.png"
        )
    _check_folders(root, table)
    check_grid(root, table)
    single = _without_copies(root, table)
    kept, conflicts = without_conflicts(root, single, on_conflict)
    return Loose(
        root=root,
        table=kept,
        hidden=hidden,
        foreign=len(paths) - len(table),
        copies=len(table) - len(single),
        conflicts=len(conflicts),
    )


def _walk(root: Path) -> tuple[list[str], int]:
    """Paths of all files below a folder, relative to it, and the number of hidden ones."""
    paths: list[str] = []
    hidden = 0
    been: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        raise IDCError(f"can't read {error.filename}: {error.strerror}") from error

    for folder, inside, names in os.walk(root, onerror=fail, followlinks=True):
        status = Path(folder).stat()
        place = (status.st_dev, status.st_ino)
        if place in been:  # a link has led here
            inside.clear()
            continue
        been.add(place)
        folders = sorted(name for name in inside if not name.startswith("."))
        files = sorted(name for name in names if not name.startswith("."))
        hidden += len(inside) - len(folders) + len(names) - len(files)
        inside[:] = folders
        below = Path(folder).relative_to(root)
        paths += [str(below / name) for name in files]
    return paths, hidden


def _table(paths: list[str]) -> pd.DataFrame:
    """The patches among files."""
    files = pd.Series(paths, dtype=object)  # names that are no UTF-8 fit into no other
    names = files.map(lambda path: Path(path).name).astype(object)
    parts = names.str.extract(rf"^{NAME.pattern}\Z")
    is_patch = parts["x"].notna()
    parts = parts[is_patch]
    return pd.DataFrame(
        {
            "patient_id": parts["with_idx5"].fillna(parts["without"]).astype(str),
            "x": parts["x"].astype("int64"),
            "y": parts["y"].astype("int64"),
            "target": parts["target"].fillna(NO_LABEL).astype("int64"),
            "path": files[is_patch],
        }
    ).reset_index(drop=True)


def _check_folders(root: Path, table: pd.DataFrame) -> None:
    """Stop if a labelled patch lies in the folder of the other class."""
    folder = table["path"].map(lambda path: Path(path).parent.name)
    # A patient may be called 0 or 1, too.
    of_class = folder.isin(["0", "1"]) & (folder != table["patient_id"])
    wrong = of_class & (table["target"] != NO_LABEL) & (folder != table["target"].astype(str))
    if wrong.any():
        raise IDCError(
            f"{int(wrong.sum())} files of {root} lie in the folder of another class than their "
            f"names say: {named(table.loc[wrong, 'path'])}; move or delete them"
        )


def _without_copies(root: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Keep one of the files that are the same patch, as those of a data set's second copy are.

    These have one position and the same bytes. Of a labelled and an unlabelled one the former is
    kept; copies with both labels are none.
    """
    double = table[table.duplicated(POSITION, keep=False)]
    double = double.sort_values([*POSITION, "target"], ascending=False, kind="stable")
    double = double.assign(content=double["path"].map(lambda path: _digest(root / path)))
    groups = double.assign(known=double["target"].where(double["target"] != NO_LABEL)).groupby(
        [*POSITION, "content"]
    )
    agree = groups["known"].transform("nunique") <= 1
    copies = double.index[agree & double.duplicated([*POSITION, "content"])]
    return table.drop(index=copies)


def _digest(path: Path) -> str:
    """A hash of a file; of one that can't be read, which is told later, its name."""
    try:
        return hashlib.blake2b(read_file(path), digest_size=16).hexdigest()
    except OSError:
        return str(path)
