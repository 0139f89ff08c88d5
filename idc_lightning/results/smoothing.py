"""Averages of logits over the neighbours of a patch: context that nothing has to learn.

Labels are regions, so that what lies around a patch says much of it. This is the least that a net
which sees its neighbours has to be better than.
"""

from math import ceil

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from idc_lightning.data.crops import Slides, place_of
from idc_lightning.decision import Decision
from idc_lightning.results.calibration import fit_calibration

BANDWIDTHS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Among which the best is looked for."""

REACH = 2.5
"""Bandwidths from a patch to the last neighbours that count, which weigh 4 %."""

CHUNK = 4096
"""Patches whose neighbours are looked up at once."""


def smooth(patches: pd.DataFrame, logits: Tensor, bandwidth: float) -> Tensor:
    """Average the logits of each patch and its neighbours on the same slide by a Gaussian.

    The estimate of E. Nadaraya and G. Watson (1964) over the patches that are there: background
    counts neither way.

    Args:
        patches: patient_id, x and y (pixels, from 1) of n patches.
        logits: Float32 [n, K].
        bandwidth: Standard deviation of the Gaussian in patches; 0 changes nothing.

    Returns:
        Float32 [n, K].
    """
    if bandwidth == 0:
        return logits
    slides = Slides(patches, np.arange(len(patches)))
    reach = ceil(REACH * bandwidth)
    near = np.exp(-np.square(np.arange(-reach, reach + 1) / bandwidth) / 2)
    weights = np.multiply.outer(near, near)
    values = logits.numpy().astype(np.float64)
    found = np.empty_like(values)
    for start in range(0, len(patches), CHUNK):
        some = slice(start, start + CHUNK)
        corners = place_of(
            slides.slide[some], slides.row[some] - reach, slides.column[some] - reach
        )
        cells = slides.cells(corners, len(near), len(near))
        share = np.where(cells < 0, 0, weights)
        total = np.einsum("nij,nijk->nk", share, values[cells])
        found[some] = total / share.sum(axis=(1, 2))[:, None]
    return torch.from_numpy(found).float()


def fit_bandwidth(patches: pd.DataFrame, logits: Tensor, labels: npt.NDArray[np.int64]) -> float:
    """The bandwidth whose averages, once calibrated, make the labels of dev most likely.

    Args:
        patches: As of `smooth`.
        logits: Float32 [n, 2].
        labels: Int64 [n], 0 healthy, 1 IDC.

    Returns:
        One of `BANDWIDTHS`, 0 if averages aren't better.
    """

    def loss(bandwidth: float) -> float:
        averages = smooth(patches, logits, bandwidth)
        calibrated = Decision(*fit_calibration(averages.numpy(), labels), threshold=0.5)
        proba = calibrated.probability(averages).numpy().astype(np.float64)
        return float(log_loss(labels, proba, labels=[0, 1]))

    return min(BANDWIDTHS, key=loss)
