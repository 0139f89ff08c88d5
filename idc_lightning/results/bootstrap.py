"""Metrics with intervals by bootstrap over patients.

Patches of one patient are not independent, so whole patients are drawn with replacement (B. Efron
and R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 8). Each draw weighs a patient
by how often it was drawn, which lets all draws share one sorting of the probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

CHUNK = 2_000_000
"""Numbers (draws x patches) that are computed at a time, to bound the memory."""


@dataclass(frozen=True)
class Interval:
    """A metric and its interval; None where it is undefined, as AUROC without IDC."""

    value: float | None
    low: float | None
    high: float | None


def bootstrap_metrics(
    true: npt.NDArray[np.int64],
    proba: Floats,
    patients: npt.NDArray[np.str_],
    *,
    threshold: float,
    draws: int,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """Compute the metrics of results.json with percentile intervals.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        patients: Patient of each patch [n].
        threshold: Probability from which a patch counts as IDC.
        draws: Number of bootstrap draws.
        confidence: Share of the draws inside an interval.
        seed: Seed of the draws.

    Returns:
        The metrics of `drawn_metrics`; the value is that of the patches themselves, low and high
        are percentiles of the draws in which the metric is defined, None if there is a single
        patient.
    """
    called = proba >= threshold
    drawn = drawn_metrics(true, proba, called, patients, draws=draws, seed=seed)
    return intervals(drawn, confidence)


def drawn_metrics(
    true: npt.NDArray[np.int64],
    proba: Floats,
    called: npt.NDArray[np.bool_],
    patients: npt.NDArray[np.str_],
    *,
    draws: int,
    seed: int,
) -> dict[str, Floats]:
    """Compute metrics of patches, and of as many draws of their patients.

    The same patients are drawn whatever the predictions, so that two models can be compared draw by
    draw.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        called: Whether a patch is called IDC [n].
        patients: Patient of each patch [n].
        draws: Number of bootstrap draws; of a single patient none are made.
        seed: Seed of the draws.

    Returns:
        f1, balanced_accuracy, precision, recall, specificity, auroc, average_precision and brier
        (the mean squared difference of probability and label), float64 [1 + draws] each, first that
        of the patches themselves; NaN where undefined.
    """
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < 2:  # a single patient says nothing of how others would differ
        draws = 0
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    weights = np.vstack([np.ones(len(names), dtype=np.int64), drawn])
    return _weighted_metrics(true, proba, called, patient, weights)


def intervals(drawn: Mapping[str, Floats], confidence: float) -> dict[str, Interval]:
    """Turn the metrics of `drawn_metrics` to intervals.

    Args:
        drawn: Metrics by name.
        confidence: Share of the draws inside an interval.
    """
    tail = 100 * (1 - confidence) / 2
    return {name: _interval(values, tail) for name, values in drawn.items()}


def differences(
    drawn: Mapping[str, Floats], others: Mapping[str, Floats], confidence: float
) -> dict[str, Interval]:
    """Compare two models on the same patients by the paired bootstrap: the first minus the second.

    Args:
        drawn: Of `drawn_metrics`, by name.
        others: Likewise, of the same patients and with the same seed.
        confidence: Share of the draws inside an interval.
    """
    return intervals({name: values - others[name] for name, values in drawn.items()}, confidence)


def pooled_metrics(
    true: npt.NDArray[np.int64], proba: Floats, *, threshold: float
) -> dict[str, float]:
    """The values of `bootstrap_metrics` without their intervals; NaN where undefined.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        threshold: Probability from which a patch counts as IDC.
    """
    patient, weights = np.zeros(len(true), dtype=np.intp), np.ones((1, 1), dtype=np.int64)
    values = _weighted_metrics(true, proba, proba >= threshold, patient, weights)
    return {name: float(value[0]) for name, value in values.items()}


def _weighted_metrics(
    true: npt.NDArray[np.int64],
    proba: Floats,
    called: npt.NDArray[np.bool_],
    patient: npt.NDArray[np.intp],
    weights: npt.NDArray[np.int64],
) -> dict[str, Floats]:
    """All metrics; one value for each row of weights [draws, patients]."""
    return {
        **_threshold_metrics(true, called, patient, weights),
        **_ranking_metrics(true, proba, patient, weights),
        "brier": _brier_score(true, proba, patient, weights),
    }


def _brier_score(
    true: npt.NDArray[np.int64],
    proba: Floats,
    patient: npt.NDArray[np.intp],
    weights: npt.NDArray[np.int64],
) -> Floats:
    """Mean squared difference; one value for each row of weights [draws, patients]."""
    squared = np.bincount(patient, np.square(proba - true), minlength=weights.shape[1])
    patches = np.bincount(patient, minlength=weights.shape[1]).astype(np.float64)
    score: Floats = (weights @ squared) / (weights @ patches)
    return score


def _interval(values: Floats, tail: float) -> Interval:
    """The first value with percentiles of the others."""
    defined = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]):
        return Interval(None, None, None)
    if not len(defined):
        return Interval(float(values[0]), None, None)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(float(values[0]), float(low), float(high))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide, ``part / whole``, NaN where whole is 0."""
    ratio: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _threshold_metrics(
    true: npt.NDArray[np.int64],
    called: npt.NDArray[np.bool_],
    patient: npt.NDArray[np.intp],
    weights: npt.NDArray[np.int64],
) -> dict[str, Floats]:
    """Metrics of decisions; one value for each row of weights [draws, patients]."""

    def weighted(chosen: npt.NDArray[np.bool_]) -> Floats:
        counts = np.bincount(patient[chosen], minlength=weights.shape[1])
        return (weights @ counts).astype(np.float64)

    tp = weighted((true == 1) & called)
    fn = weighted((true == 1) & ~called)
    fp = weighted((true == 0) & called)
    tn = weighted((true == 0) & ~called)
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "specificity": specificity,
    }


def _ranking_metrics(
    true: npt.NDArray[np.int64],
    proba: Floats,
    patient: npt.NDArray[np.intp],
    weights: npt.NDArray[np.int64],
) -> dict[str, Floats]:
    """AUROC and average precision; one value for each row of weights [draws, patients].

    Patches of equal probability share one point of either curve: the area below ROC is that of
    trapezoids, average precision sums precision over the steps of recall, as scikit-learn does.
    """
    order = np.argsort(-proba, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(proba[order]) != 0, True))
    positive, patient = (true[order] == 1), patient[order]
    auroc, precision = np.empty(len(weights)), np.empty(len(weights))
    rows = max(1, CHUNK // len(true))
    for start in range(0, len(weights), rows):
        chunk = slice(start, start + rows)
        weight = weights[chunk][:, patient].astype(np.float64)
        tp = np.cumsum(weight * positive, axis=1)[:, ends]
        fp = np.cumsum(weight * ~positive, axis=1)[:, ends]
        steps_tp = np.diff(tp, axis=1, prepend=0)
        steps_fp = np.diff(fp, axis=1, prepend=0)
        area = (steps_fp * (tp - steps_tp / 2)).sum(axis=1)
        auroc[chunk] = _ratio(area, tp[:, -1] * fp[:, -1])
        summed = (steps_tp * np.nan_to_num(_ratio(tp, tp + fp))).sum(axis=1)
        precision[chunk] = _ratio(summed, tp[:, -1])
    return {"auroc": auroc, "average_precision": precision}
