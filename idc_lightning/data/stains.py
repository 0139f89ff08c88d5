"""Stain normalisation: the dyes of each slide made as strong as those of a reference.

How much dye tissue takes up differs from laboratory to laboratory, but little within a slide. The
optical density of each colour is multiplied by a factor of the slide, so that its mean over tissue
is that of the reference. White stays white, and no slide depends on another.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

REFERENCE = (0.32, 0.63, 0.42)
"""Mean optical density of tissue in red, green and blue: of the 32 patients in docs/results.md."""

TISSUE = 0.12
"""Optical density above which a pixel is tissue, not glass."""

SAMPLE = 100
"""Patches of a slide that are measured at least, if it has them, evenly spread over its rows."""

LEAST = 10_000
"""Pixels of tissue, four full patches, below which the stains of a slide are left as they are."""

LIMITS = (0.5, 2.0)
"""Factors beyond these are those of ink or of a damaged scan."""

DENSITY = -np.log(np.arange(256).clip(1) / 255)
"""Optical density of each byte, A. Beer's absorbance to base e."""


@dataclass(frozen=True)
class Stains:
    """What normalisation makes of each byte, by slide.

    Attributes:
        tables: Uint8 [S + 1, 3, 256]; the last changes nothing.
        table_of: Number of the table of each place of a pack, int64 [M].
        unmeasured: Patients who have too little tissue.
    """

    tables: npt.NDArray[np.uint8]
    table_of: npt.NDArray[np.int64]
    unmeasured: tuple[str, ...]

    @property
    def key(self) -> str:
        """A hash of all that `apply` depends on."""
        digest = hashlib.blake2b(self.tables.tobytes(), digest_size=12)
        digest.update(self.table_of.tobytes())
        return digest.hexdigest()

    def apply(
        self, pixels: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint8]:
        """Normalise patches.

        Args:
            pixels: Uint8 [..., 50, 50, 3], RGB.
            places: Of these patches in the pack, [...].

        Returns:
            Others of the same shape.
        """
        changed = np.empty_like(pixels)
        for place in np.ndindex(places.shape):
            tables = self.tables[self.table_of[places[place]]]
            for channel in range(3):
                changed[place][..., channel] = tables[channel][pixels[place][..., channel]]
        return changed


def measure_stains(
    patient_ids: pd.Series,
    places: npt.NDArray[np.int64],
    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]],
    count: int,
) -> Stains:
    """Measure the stains of slides.

    Args:
        patient_ids: Of the patches, [N].
        places: Of these in the pack, [N].
        read: Gives pixels at places, uint8 [n, 50, 50, 3].
        count: Places of the pack, M.
    """
    groups = patient_ids.groupby(patient_ids).indices
    tables = [_table(np.ones(3))] * (len(groups) + 1)
    table_of = np.full(count, len(groups), dtype=np.int64)
    unmeasured = []
    for number, (patient, rows) in enumerate(groups.items()):
        step = max(1, len(rows) // SAMPLE)
        factors = _factors(read(places[rows[::step]]))
        if factors is None:
            unmeasured.append(str(patient))
        else:
            tables[number] = _table(factors)
            table_of[places[rows]] = number
    return Stains(np.stack(tables), table_of, tuple(unmeasured))


def _factors(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64] | None:
    """By what the density of each colour is multiplied, [3]; None if there is too little tissue."""
    # Pillow counts bytes several times as fast as numpy.
    histogram = Image.fromarray(pixels.reshape(-1, pixels.shape[-2], 3)).histogram()
    counts = np.reshape(histogram, (3, 256)) * (DENSITY > TISSUE)
    tissue = counts.sum(axis=1)
    if tissue.min() < LEAST:
        return None
    factors: npt.NDArray[np.float64] = REFERENCE / ((counts @ DENSITY) / tissue)
    return factors.clip(*LIMITS)


def _table(factors: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """What becomes of each byte in each colour, uint8 [3, 256]."""
    table: npt.NDArray[np.uint8] = np.rint(255 * np.exp(-np.outer(factors, DENSITY))).astype(
        np.uint8
    )
    return table
