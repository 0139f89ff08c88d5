"""What is doubtful about a data set, patch by patch: each finding is a row that can be looked up.

Nothing here stops a command; what must not reach training is refused where data is read and split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from idc_lightning.config import AnyData
from idc_lightning.data.grid import PATCH
from idc_lightning.data.index import Index
from idc_lightning.data.size import small_inside
from idc_lightning.data.store import Store

ACROSS_SPLITS = "duplicate across splits"
ACROSS_PATIENTS = "duplicate across patients"
WITHIN_PATIENT = "duplicate within a patient"
SMALL_INSIDE = "small inside"
DUPLICATES = (ACROSS_SPLITS, ACROSS_PATIENTS, WITHIN_PATIENT)

MEANINGS = {
    "broken": "file that can't be read; left out",
    "both labels": "position with a healthy and an IDC patch; both left out",
    ACROSS_SPLITS: "same pixels as a patch of another split: a leak, training would stop",
    ACROSS_PATIENTS: "same pixels as a patch of another patient: one of them is misfiled",
    WITHIN_PATIENT: "same pixels as another patch of the patient",
    SMALL_INSIDE: f"smaller than {PATCH}x{PATCH} px inside the tissue: cut off or of another size",
    "blank": "one colour throughout: no tissue",
    "edge": f"smaller than {PATCH}x{PATCH} px, in the patient's last column or row",
    "gap": "place without a patch that is enclosed by patches",
    "left out": "kind of files that are no part of the data set",
}
"""Kinds of findings, the gravest first, and what they mean."""

COLUMNS = ("kind", "patient_id", "x", "y", "path", "detail")


def find_problems(index: Index, store: Store, notes: Sequence[str] = ()) -> pd.DataFrame:
    """List all that is doubtful.

    Args:
        index: All files, without the positions that have both labels.
        store: What could be read of them, with a column split, which may be missing for a patient.
        notes: Lines on what was left out beside.

    Returns:
        One row for each finding, ordered by `MEANINGS`, patient, y and x: kind, patient_id, x and y
        (Int64, pixels from 1), path (below the data's root), detail. Missing where there is none:
        a gap has no path, files left out have no patient.
    """
    table = store.table
    places = _all_places(index)
    inside = small_inside(table, places)
    others = replace(index, conflicts=index.conflicts[:0])  # which are listed one by one
    rows = [
        _findings("broken", store.broken, store.broken["problem"]),
        _findings("both labels", index.conflicts, _other_labels(index.conflicts)),
        *_duplicates(table),
        _findings(SMALL_INSIDE, table[inside], _sizes(table[inside])),
        _findings("blank", table[table["blank"]], "one colour throughout"),
        _findings("edge", table[table["edge"] & ~inside], _sizes(table[table["edge"] & ~inside])),
        _findings("gap", find_gaps(places), "enclosed by patches"),
        pd.DataFrame({"kind": "left out", "detail": [*notes, *others.notes()]}),
    ]
    found = pd.concat([part for part in rows if not part.empty] or rows[:1], ignore_index=True)
    return found.reindex(columns=list(COLUMNS)).astype({"x": "Int64", "y": "Int64"})


def what_stops_training(findings: pd.DataFrame, data: AnyData) -> list[str]:
    """Lines on findings with which idc-train would stop.

    Args:
        findings: As of `find_problems`.
        data: What is set.
    """
    counts = findings["kind"].value_counts()
    notes = []
    if ACROSS_SPLITS in counts:
        notes.append(
            f"leak: {counts[ACROSS_SPLITS]:,} patches have the pixels of a patch in another split; "
            "idc-train will stop there (health.csv lists them)"
        )
    stops = "idc-train will stop at {} unless data.{} is set"
    if "broken" in counts and data.on_broken == "error":
        notes.append(stops.format("files that can't be read", "on_broken=skip"))
    if "both labels" in counts and data.on_conflict == "error":
        notes.append(stops.format("positions with both labels", "on_conflict=drop"))
    return notes


def _findings(kind: str, patches: pd.DataFrame, detail: pd.Series | str) -> pd.DataFrame:
    return patches.assign(kind=kind, detail=detail)[
        [column for column in COLUMNS if column in patches or column in ("kind", "detail")]
    ]


def _all_places(index: Index) -> pd.DataFrame:
    """Positions that have a file, be it readable or not."""
    return pd.concat([index.table, index.conflicts])[["patient_id", "x", "y"]]


def _other_labels(conflicts: pd.DataFrame) -> pd.Series:
    return "labelled " + conflicts["target"].map({0: "healthy", 1: "IDC"}) + " here"


def _sizes(patches: pd.DataFrame) -> pd.Series:
    return patches["width"].astype(str) + "x" + patches["height"].astype(str) + " px"


def _duplicates(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Patches whose pixels another one has; blank ones aside, which tell nothing of a patient."""
    images = table[~table["blank"]]
    images = images[images.duplicated("digest", keep=False)]
    if images.empty:
        return
    groups = images.groupby("digest")
    splits = groups["split"].transform("nunique").to_numpy()
    patients = groups["patient_id"].transform("nunique").to_numpy()
    kind = np.select([splits > 1, patients > 1], DUPLICATES[:2], default=DUPLICATES[2])
    detail = _copies(images)
    for name in DUPLICATES:
        chosen = kind == name
        yield _findings(name, images[chosen], detail[chosen])


def _copies(images: pd.DataFrame) -> pd.Series:
    """Which other patch has the same pixels."""
    groups = images.groupby("digest")["path"]
    first, last = groups.transform("first"), groups.transform("last")
    other = first.where(first != images["path"], last)
    more = groups.transform("size") - 2
    detail = "same pixels as " + other + more.map(lambda n: f" and {n:,} more" if n else "")
    both = images.groupby("digest")["target"].transform("nunique") > 1
    return detail.where(~both, detail + "; under both labels")


def find_gaps(places: pd.DataFrame) -> pd.DataFrame:
    """Find the places without a patch that are enclosed by patches.

    Enclosed is what can't be reached from outside of the slide by steps to the left, right, up or
    down over places without a patch. Tissue that was discarded, fat and ducts look like this, and
    so do files that were lost.

    Args:
        places: Positions that have a patch: patient_id, x, y.

    Returns:
        patient_id, x and y of each gap, ordered by patient, y and x.
    """
    found = []
    for patient, cells in places.groupby("patient_id", sort=True):
        occupied, columns, rows = _grid(cells)
        row, column = np.nonzero(ndimage.binary_fill_holes(occupied) & ~occupied)
        found.append(pd.DataFrame({"patient_id": patient, "x": columns[column], "y": rows[row]}))
    empty = pd.DataFrame({"patient_id": [], "x": [], "y": []})
    return pd.concat(found, ignore_index=True) if found else empty


def count_pieces(places: pd.DataFrame) -> pd.Series:
    """Number of pieces that a patient's tissue falls into; patches that touch are one piece.

    Args:
        places: Positions that have a patch: patient_id, x, y.

    Returns:
        Int64, indexed by patient_id.
    """
    touching = np.ones((3, 3), dtype=bool)  # also at a corner
    pieces = {
        patient: ndimage.label(_grid(cells)[0], touching)[1]
        for patient, cells in places.groupby("patient_id", sort=True)
    }
    return pd.Series(pieces, dtype="int64").rename_axis("patient_id")


def _grid(
    cells: pd.DataFrame,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where a patient has patches.

    Rows and columns without any patch change neither gaps nor pieces, so that those between two
    others are one; a stray position far away then costs nothing.

    Returns:
        Occupied places [rows, columns], x of the columns and y of the rows.
    """
    (column, x), (row, y) = (_axis(cells[name].to_numpy()) for name in ("x", "y"))
    occupied = np.zeros((len(y), len(x)), dtype=bool)
    occupied[row, column] = True
    return occupied, x, y


def _axis(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Number the used places of an axis; returns each value's number and each number's value."""
    used, which = np.unique(values, return_inverse=True)
    steps = np.minimum(np.diff(used) // PATCH, 2)
    number = np.concatenate([[0], np.cumsum(steps)])
    values_of = np.zeros(number[-1] + 1, dtype=np.int64)
    values_of[number] = used
    return number[which], values_of


def summarise(findings: pd.DataFrame) -> pd.DataFrame:
    """Count the findings of each kind.

    Args:
        findings: Of `find_problems`.

    Returns:
        One row for each of `MEANINGS`: finding, count, patients (number of those affected),
        meaning.
    """
    groups = findings.groupby("kind")
    counts, patients = groups.size(), groups["patient_id"].nunique()
    return pd.DataFrame(
        {
            "finding": list(MEANINGS),
            "count": [int(counts.get(kind, 0)) for kind in MEANINGS],
            "patients": [int(patients.get(kind, 0)) for kind in MEANINGS],
            "meaning": list(MEANINGS.values()),
        }
    )


def describe_patients(
    index: Index,
    table: pd.DataFrame,
    splits: pd.Series,
    findings: pd.DataFrame,
    *,
    microns: float,
) -> pd.DataFrame:
    """Describe each patient of a data set.

    Args:
        index: All files.
        table: Patches that could be read: patient_id, target.
        splits: Split by patient_id; may lack patients.
        findings: Of `find_problems`.
        microns: Width of a pixel in µm.

    Returns:
        One row for each patient, ordered by name: patient_id, split (missing if it doesn't name
        the patient), patches (that could be read), idc_patches, idc (share, 0 to 1), edge,
        small_inside, blank, duplicates, both_labels, broken and gaps (numbers), pieces (of tissue),
        width_mm and height_mm (of the part of the slide that holds patches).
    """
    places = _all_places(index)
    by_patient = places.groupby("patient_id", sort=True)
    patients = pd.DataFrame(index=by_patient.size().index)
    of_patient = table.groupby("patient_id")
    patients["split"] = splits
    patients["patches"] = of_patient.size()
    patients["idc_patches"] = of_patient["target"].sum()
    patients["idc"] = of_patient["target"].mean()
    groups = {
        "edge": ["edge"],
        "small_inside": [SMALL_INSIDE],
        "blank": ["blank"],
        "duplicates": list(DUPLICATES),
        "both_labels": ["both labels"],
        "broken": ["broken"],
        "gaps": ["gap"],
    }
    for name, kinds in groups.items():
        patients[name] = findings.loc[findings["kind"].isin(kinds), "patient_id"].value_counts()
    counts = ["patches", "idc_patches", *groups]
    patients[counts] = patients[counts].fillna(0).astype("int64")
    patients["pieces"] = count_pieces(places)
    for side, name in (("x", "width_mm"), ("y", "height_mm")):
        length = by_patient[side].max() - by_patient[side].min() + PATCH
        patients[name] = length * microns / 1000
    return patients.reset_index()
