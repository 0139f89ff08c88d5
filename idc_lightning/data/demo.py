"""Synthetic data set in the layout of the real one, for tests and for trying the program.

Counts and shares of patients follow the real data; tissue is drawn by `demo_tissue`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri

from idc_lightning.data.demo_tissue import (
    PAD,
    STEP,
    Floats,
    Maps,
    draw,
    random_look,
    smooth_noise,
)
from idc_lightning.data.grid import PATCH, file_name
from idc_lightning.errors import IDCError
from idc_lightning.files import made_once
from idc_lightning.processes import shared_out
from idc_lightning.progress import watched

# Minimum, 15 quantiles and maximum of the 279 patients of the public data set "Breast
# Histopathology Images": patches of a patient and share of IDC in them, and the Spearman
# correlation of the two.
_COUNTS = (
    63, 221, 342, 444, 560, 645, 782, 856, 967, 1043, 1134, 1216, 1362, 1504, 1696, 1936, 2395,
)  # fmt: skip
_SHARES = (
    0.010, 0.061, 0.089, 0.114, 0.138, 0.167, 0.205, 0.227, 0.267, 0.315, 0.347, 0.393, 0.447,
    0.521, 0.575, 0.644, 0.904,
)  # fmt: skip
_CORRELATION = -0.22

DRAWING = 1
"""Number of the drawing, to be raised when the same seed gives other bytes."""

_IDS = (8863, 16897)  # range of patients' numbers, the end excluded
_FEWEST = 8  # patches of a patient that leave room for both classes
_MOST = 5000  # mean patches to a patient, which bounds the memory for a slide
_INLINE = 1500  # patches up to which starting processes costs more than it saves
_CELL = PATCH // STEP  # samples of a map to a cell
_BLOCK = 4  # cells to a side of the blocks that are drawn at once
_CUT = 0.3  # share of patients whose tissue reaches the edge of the slide


@dataclass(frozen=True)
class _Patient:
    """One patient to be drawn.

    Attributes:
        patient_id: Name of the folder.
        patches: Number of patches.
        idc: Number of them that are IDC.
        seed: Seeds of the random numbers.
    """

    patient_id: str
    patches: int
    idc: int
    seed: tuple[int, int]


@dataclass(frozen=True)
class _Slide:
    """Where the tissue of a patient lies.

    Attributes:
        maps: What `demo_tissue` draws.
        label: Cells [rows, columns], int8: -1 glass, 0 healthy, 1 IDC.
        height: Height of the slide in px; the last row of cells may be lower than a patch.
        width: Width of the slide in px; the last column of cells may be narrower than a patch.
    """

    maps: Maps
    label: NDArray[np.int8]
    height: int
    width: int


def make_demo(
    root: Path,
    *,
    patients: int,
    patches: int | None,
    seed: int,
) -> None:
    """Write a synthetic data set.

    Args:
        root: Folder that is made and that holds the patients' folders afterwards.
        patients: Number of patients.
        patches: Number of patches in all, or None for as many as real patients would have.
        seed: The same seed gives the same bytes.

    Raises:
        IDCError: If the folder exists or can't be written, a number is out of range, or a process
            is killed.
    """
    root = Path(root)
    if root.exists():
        raise IDCError(f"{root} exists already: delete it or choose another folder for the demo")
    _check(patients, patches, seed)
    cohort = _draw_cohort(patients, patches, seed)
    try:
        with made_once(root) as folder:
            if folder is None:
                raise IDCError(f"{root} has just been made by another process: use that one")
            drawn = _write_all(folder, cohort)
            for _ in watched(drawn, "drawing demo tissue", total=len(cohort)):
                pass
    except OSError as error:
        raise IDCError(f"can't write the demo to {root}: {error.strerror}") from error


def patches_of_demo(*, patients: int, patches: int | None, seed: int) -> int:
    """Number of patches that `make_demo` writes."""
    return sum(patient.patches for patient in _draw_cohort(patients, patches, seed))


def _check(patients: int, patches: int | None, seed: int) -> None:
    most = _IDS[1] - _IDS[0]
    if not 1 <= patients <= most:
        raise IDCError(f"a demo of {patients} patients: choose 1 to {most:,}")
    if patches is not None and not _FEWEST * patients <= patches <= _MOST * patients:
        raise IDCError(
            f"a demo of {patches:,} patches for {patients:,} patients: choose "
            f"{_FEWEST * patients:,} to {_MOST * patients:,} patches or other patients"
        )
    if seed < 0:
        raise IDCError(f"a demo with seed {seed}: choose a seed of 0 or more")


def _draw_cohort(patients: int, patches: int | None, seed: int) -> list[_Patient]:
    """Draw numbers, counts and shares of patients."""
    rng = np.random.default_rng([seed, 0])
    # One draw from each of as many equal parts of the range, so that few patients span it too.
    parts = (np.arange(patients) + rng.uniform(0.02, 0.98, patients)) / patients
    order = rng.permutation(patients)
    other = (np.arange(patients) + rng.uniform(0.02, 0.98, patients)) / patients
    score = _CORRELATION * ndtri(parts[order])
    score += np.sqrt(1 - _CORRELATION**2) * rng.standard_normal(patients)
    levels = np.linspace(0, 1, len(_COUNTS))
    counts = np.interp(parts[order], levels, _COUNTS)
    shares = np.interp(other[np.argsort(np.argsort(score))], levels, _SHARES)
    sizes = counts.round().astype(int) if patches is None else _apportion(counts, patches)
    idc = np.clip((shares * sizes).round().astype(int), 1, sizes - 1)
    numbers = np.sort(rng.choice(np.arange(*_IDS), patients, replace=False))
    return [
        _Patient(str(number), int(size), int(tumour), (seed, index + 1))
        for index, (number, size, tumour) in enumerate(zip(numbers, sizes, idc, strict=True))
    ]


def _apportion(weights: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Share a total out by weights: integers that add up to it, none below `_FEWEST`."""
    exact = (total - _FEWEST * len(weights)) * weights / weights.sum()
    sizes: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    rest = total - _FEWEST * len(weights) - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:rest]] += 1
    return sizes + _FEWEST


def _write_all(folder: Path, cohort: list[_Patient]) -> Iterator[None]:
    """Write all patients, in processes if they are many; yields with each of them."""
    few = sum(patient.patches for patient in cohort) <= _INLINE
    # The largest first, so that no process is left alone with one at the end.
    queue = sorted(cohort, key=lambda patient: -patient.patches)
    calls = [(folder, patient) for patient in queue]
    with shared_out(
        _write_patient, calls, "drew demo tissue", count=len(calls), alone=few
    ) as written:
        yield from written


def _write_patient(folder: Path, patient: _Patient) -> None:
    """Draw a patient's tissue and write its patches."""
    rng = np.random.default_rng(patient.seed)
    slide = _make_slide(rng, patient.patches, patient.idc)
    look = random_look(rng)
    for name in ("0", "1"):
        (folder / patient.patient_id / name).mkdir(parents=True)
    starts = (range(0, side, _BLOCK) for side in slide.label.shape)
    for row, column in itertools.product(*starts):
        labels = slide.label[row : row + _BLOCK, column : column + _BLOCK]
        used = np.argwhere(labels >= 0)
        if not len(used):
            continue
        # Blocks are often only partly tissue: draw no more than the cells that are.
        (first_row, first_column), (last_row, last_column) = used.min(0), used.max(0)
        top, left = (row + first_row) * PATCH, (column + first_column) * PATCH
        bottom = min((row + last_row + 1) * PATCH, slide.height)
        right = min((column + last_column + 1) * PATCH, slide.width)
        block = draw(slide.maps, look, top, left, (bottom - top, right - left))
        for cell_row, cell_column in used:
            y, x = (row + cell_row) * PATCH, (column + cell_column) * PATCH
            label = int(labels[cell_row, cell_column])
            path = folder / patient.patient_id / str(label)
            pixels = block[y - top :, x - left :][:PATCH, :PATCH]
            Image.fromarray(pixels).save(
                path / file_name(patient.patient_id, x + 1, y + 1, label), compress_level=1
            )


def _make_slide(rng: np.random.Generator, patches: int, idc: int) -> _Slide:
    """Lay out the tissue of a patient."""
    cells = max(patches / rng.uniform(0.22, 0.5), 20)
    columns = max(4, round(np.sqrt(cells * rng.uniform(0.7, 1.7))))
    rows = max(4, int(np.ceil(cells / columns)))
    shape = (rows * _CELL + 2 * PAD + 1, columns * _CELL + 2 * PAD + 1)
    outline, rim = _outline(rng, shape)
    # A cell is kept for the tissue in its fullest fifth, so white stays in many that are kept.
    tissue_score = np.partition(_by_cell(outline, rows, columns), -_CELL, axis=2)[..., -_CELL]
    kept, level = _top(tissue_score, patches)

    fat = smooth_noise(rng, shape, 1.3 * _CELL) + rng.uniform(-1.6, -0.2)
    # Fat lies outside and tumour inside, as a rule.
    fat += 0.6 - 0.6 * np.minimum(outline - level, 2.5)
    tumour = smooth_noise(rng, shape, max(shape) / 8) + 0.25 * smooth_noise(rng, shape, _CELL)
    tumour += 0.5 * np.minimum(outline, level + 1.5) - 0.5 * np.clip(fat, -1, 1) - 5 * rim
    tumour_score = _by_cell(tumour, rows, columns).mean(2)
    malignant, tumour_level = _top(np.where(kept, tumour_score, -np.inf), idc)
    # Labels are coarse contours: what is drawn strays from them at the border.
    drawn_tumour = 2 * (tumour - tumour_level) + 0.45 * smooth_noise(rng, shape, 0.5 * _CELL)

    def spots(scale: float, level: float) -> Floats:
        return smooth_noise(rng, shape, scale * _CELL) - np.float32(level)

    maps = Maps(
        tissue=2 * (outline - level),
        tumour=drawn_tumour,
        fat=2 * fat,
        lobules=2 * spots(0.7, rng.uniform(0.3, 1.3)),
        ducts=spots(1.0, rng.uniform(0.6, 1.6)),
        filled=2 * spots(1.5, rng.uniform(-0.6, 0.8)),
        lymphocytes=2 * spots(0.8, rng.uniform(0.5, 1.5)),
        tone=spots(1.5, 0.0) + rng.normal(0, 0.5),
        cords=2 * spots(2.0, rng.uniform(-1.5, 1.5)),
        shift=(spots(0.5, 0.0), spots(0.5, 0.0)),
        flow=(spots(0.9, 0.0), spots(0.9, 0.0)),
    )
    label = np.where(kept, malignant, -1).astype(np.int8)
    height, width = rows * PATCH, columns * PATCH
    return _Slide(
        maps, label, height - int(rng.integers(1, PATCH)), width - int(rng.integers(1, PATCH))
    )


def _outline(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Draw how far inside the tissue a place is, and how near to the slide's edge (0 to 1)."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    cut_bottom, cut_right = rng.random(2) < _CUT / 2
    y0 = rng.uniform(0.3, 0.7) if cut_bottom else rng.uniform(-0.2, 0.2)
    x0 = rng.uniform(0.3, 0.7) if cut_right else rng.uniform(-0.2, 0.2)
    angle = rng.uniform(0, np.pi)
    dy, dx = y[:, None] - np.float32(y0), x[None, :] - np.float32(x0)
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = dy * np.cos(angle) - dx * np.sin(angle)
    field = -1.2 * along**2 - rng.uniform(1.2, 4) * across**2
    field = field + rng.uniform(0.4, 0.9) * smooth_noise(rng, shape, max(shape) / 12)
    field = field + 0.35 * smooth_noise(rng, shape, _CELL) + 0.12 * smooth_noise(rng, shape, 1.5)
    # Samples to the edges; where the tissue isn't cut it keeps away from them.
    down, right = np.arange(shape[0]) - PAD, np.arange(shape[1]) - PAD
    edges = np.minimum.outer(
        down if cut_bottom else np.minimum(down, down[::-1]),
        right if cut_right else np.minimum(right, right[::-1]),
    )
    field = field - 3 * np.exp(-np.maximum(edges, 0) / _CELL)
    nearest = np.minimum.outer(np.minimum(down, down[::-1]), np.minimum(right, right[::-1]))
    rim = np.exp(-np.maximum(nearest, 0) / _CELL)
    return field.astype(np.float32), rim.astype(np.float32)


def _by_cell(field: Floats, rows: int, columns: int) -> Floats:
    """The samples of a map in each cell [rows, columns, samples]."""
    inner = field[PAD : PAD + rows * _CELL, PAD : PAD + columns * _CELL]
    cells = inner.reshape(rows, _CELL, columns, _CELL).swapaxes(1, 2)
    return cells.reshape(rows, columns, _CELL * _CELL)


def _top(score: Floats, count: int) -> tuple[NDArray[np.bool_], float]:
    """The cells of the highest scores, exactly so many, and the lowest score among them."""
    order = np.argsort(-score, axis=None, kind="stable")[:count]
    chosen = np.zeros(score.size, bool)
    chosen[order] = True
    return chosen.reshape(score.shape), float(score.flat[order[-1]])
