"""Whether probabilities can be believed, and from which one on a patch is called IDC.

Temperature, bias and threshold are fitted on dev and stored with the network; test only ever uses
them.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

from idc_lightning.config import Rule

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

TEMPERATURES = (0.2, 20.0)
"""Where a temperature is looked for; one that separates all of dev would fall towards 0."""

BIASES = (-20.0, 20.0)
"""Likewise."""

BINS = 15
"""As in C. Guo et al. 2017."""


def fit_calibration(logits: npt.NDArray[np.float32], labels: Labels) -> tuple[float, float]:
    """The temperature and bias that make labels most likely, by softmax(logits / T + (0, b)).

    Temperature scaling (C. Guo et al., "On calibration of modern neural networks", ICML 2017) with
    a bias (A. Alexandari et al., "Maximum likelihood with bias-corrected calibration ...", ICML
    2020), which for two classes is J. Platt's ("Probabilistic outputs for support vector machines",
    1999). All patches weigh the same, whatever the loss of the training did. The order of the
    probabilities stays that of the logits.

    Args:
        logits: Float32 [n, 2] of dev.
        labels: Int64 [n], 0 healthy, 1 IDC.

    Returns:
        Temperature and bias, inside `TEMPERATURES` and `BIASES`; (1, 0) where labels can't tell, as
        they are all the same or logits don't differ between the classes.
    """
    # How far the logit of IDC is above that of healthy.
    margin = np.diff(logits.astype(np.float64), axis=1)[:, 0]
    if len(np.unique(labels)) < 2 or not margin.any():
        return 1.0, 0.0

    def loss(values: Floats) -> tuple[float, Floats]:
        """Mean negative log-likelihood and its gradient, by slope (1 / T) and bias."""
        calibrated = values[0] * margin + values[1]
        wrong = expit(calibrated) - labels
        value = np.logaddexp(0, np.where(labels == 1, -calibrated, calibrated)).mean()
        return float(value), np.array([(wrong * margin).mean(), wrong.mean()])

    # The loss is convex in both.
    slopes = (1 / TEMPERATURES[1], 1 / TEMPERATURES[0])
    found = minimize(loss, [1.0, 0.0], jac=True, bounds=[slopes, BIASES], method="L-BFGS-B")
    slope, bias = found.x.tolist()
    return 1 / slope, bias


def choose_threshold(true: Labels, proba: Floats, rule: Rule, sensitivity: float) -> float:
    """The probability from which a patch counts as IDC, ``proba >= threshold``.

    Args:
        true: Labels [n] of dev, 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        rule: ``"max_f1"`` for the highest F1, of equals the one nearest to 0.5; ``"sensitivity"``
            for the highest threshold that reaches a recall; or the threshold itself.
        sensitivity: The recall that is wanted.

    Returns:
        A number above 0 and below 1. It lies midway between two probabilities that occur, so that
        it doesn't hang on the rounding of one patch; 0.5 where dev has no IDC.
    """
    if not isinstance(rule, str):
        return float(rule)
    positives = int((true == 1).sum())
    thresholds, tp, called = _steps(true, proba)
    if positives == 0 or not len(thresholds):
        return 0.5
    if rule == "sensitivity":
        reached = np.flatnonzero(tp / positives >= sensitivity)
        return float(thresholds[reached[0] if len(reached) else -1])
    f1 = 2 * tp / (called + positives)
    best = thresholds[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _steps(true: Labels, proba: Floats) -> tuple[Floats, Labels, Labels]:
    """Thresholds from high to low, one for each distinct decision, inside (0, 1).

    Returns:
        Thresholds [k], IDC patches that reach each [k], patches that reach each [k].
    """
    order = np.argsort(-proba, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(proba[order]) != 0, True))
    values, tp = proba[order][ends], np.cumsum(true[order] == 1)[ends]
    below = np.append(values[1:], 0.0)
    middle = below + (values - below) / 2
    # Neighbours among the float64 have nothing between them.
    thresholds = np.where(middle > below, middle, values)
    inside = (thresholds > 0) & (thresholds < 1)
    return thresholds[inside], tp[inside], ends[inside] + 1


def brier_score(true: Labels, proba: Floats) -> float:
    """Mean squared difference of probability and label; 0 is best.

    G. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review
    78, 1950, in its form for two classes.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
    """
    return float(np.square(proba - true).mean())


def expected_calibration_error(true: Labels, proba: Floats, bins: int = BINS) -> float:
    """Mean distance of probability and observed share over the bins, weighted by their patches.

    M. Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015,
    with bins of equal width and the probability of IDC; 0 is best.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        bins: Number of bins from 0 to 1.
    """
    table = reliability(true, proba, bins)
    distance = (table["observed"] - table["proba"]).abs()
    return float((distance * table["patches"]).sum() / table["patches"].sum())


def reliability(true: Labels, proba: Floats, bins: int = BINS) -> pd.DataFrame:
    """What share of patches is IDC, by their probability.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        bins: Number of bins from 0 to 1 of equal width; a bin holds its upper edge.

    Returns:
        One row for each bin that isn't empty: ``proba`` (mean), ``observed`` (share of IDC),
        ``patches`` (number).
    """
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    patches = pd.DataFrame({"proba": proba, "observed": true == 1})
    grouped = patches.groupby(np.digitize(proba, edges, right=True))
    return grouped.mean().assign(patches=grouped.size()).reset_index(drop=True)
