"""Metrics with intervals by bootstrap over patients.

Patches of one patient are not independent, so whole patients are drawn with replacement (B. Efron
and R. Tibshirani, "An Introduction to the Bootstrap", 1993, section 8). Each draw weighs a patient
by how often it was drawn, which lets all draws share one sorting of the probabilities.

Cohorts have few patients, of whom percentiles of the draws are too narrow: with five of them, those
of 95 % held the truth in 80 % of simulated studies. So intervals are those of Student's t with a
degree of freedom less than there are patients, whose standard error is that of the draws, widened
by sqrt(n / (n - 1)) since draws spread as if the cohort were the population (T. Hesterberg, "What
Teachers Should Know About the Bootstrap", The American Statistician 69, 2015); metrics are taken on
the scale of the logit, which keeps them between 0 and 1 and makes them less skewed.
`tests/campaigns/test_science.py` counts how often they hold the truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, stdtrit

Floats = npt.NDArray[np.float64]

CHUNK = 2_000_000
"""Numbers (draws x patches) that are computed at a time, to bound the memory."""


@dataclass(frozen=True)
class Interval:
    """A metric and its interval; None where it is undefined, as AUROC without IDC.

    Its ends are None, too, where nothing is known of other patients: there is only one, or one
    without whom the metric would be undefined, as recall with IDC in a single patient.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Drawn:
    """Metrics of patches, and of draws of their patients.

    Attributes:
        values: f1, balanced_accuracy, precision, recall, specificity, auroc, average_precision and
            brier (the mean squared difference of probability and label), float64 [1 + draws] each,
            first that of the patches themselves; NaN where undefined.
        bearing: By metric, the number of patients of whom at least one is needed to define it; of
            those of whom it needs two kinds, as AUROC does, that of the rarer kind.
        patients: How many patients there are.
        patches: How many patches.
    """

    values: Mapping[str, Floats]
    bearing: Mapping[str, int]
    patients: int
    patches: int

    def intervals(self, confidence: float) -> dict[str, Interval]:
        """Each metric with its interval.

        Args:
            confidence: Share of all studies such as this one whose intervals hold the truth.
        """
        # No value is nearer to 0 or 1 than half a patch, where the logit has no end.
        least = 0.5 / self.patches
        return {
            name: self._interval(values, confidence, self.bearing[name], least)
            for name, values in self.values.items()
        }

    def differences(self, other: "Drawn", confidence: float) -> dict[str, Interval]:
        """Compare two models on the same patients by the paired bootstrap: this minus the other.

        Args:
            other: Of the same patients, drawn with the same seed.
            confidence: As of `intervals`.
        """
        return {
            name: self._interval(
                values - other.values[name],
                confidence,
                min(self.bearing[name], other.bearing[name]),
            )
            for name, values in self.values.items()
        }

    def _interval(
        self, values: Floats, confidence: float, bearing: int, least: float | None = None
    ) -> Interval:
        """The first value with the interval that follows from the others.

        Args:
            values: Float64 [1 + draws].
            confidence: As of `intervals`.
            bearing: How many patients define it.
            least: On the scale of the logit, the value nearest to 0; None for differences.
        """
        value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
        if not np.isfinite(value):
            return Interval(None, None, None)
        if bearing < 2 or len(draws) < 2:
            return Interval(value, None, None)
        n = self.patients
        width = stdtrit(n - 1, 0.5 + confidence / 2) * np.sqrt(n / (n - 1))
        if least is None:
            reach = width * draws.std(ddof=1)
            return Interval(value, max(value - reach, -1.0), min(value + reach, 1.0))
        centre, *drawn = logit(np.clip([value, *draws], least, 1 - least))
        reach = width * np.std(drawn, ddof=1)
        low, high = expit(centre - reach), expit(centre + reach)
        return Interval(value, float(min(low, value)), float(max(high, value)))


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
    """Compute the metrics of results.json with their intervals.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        patients: Patient of each patch [n].
        threshold: Probability from which a patch counts as IDC.
        draws: Number of bootstrap draws.
        confidence: Share of all studies such as this one whose intervals hold the truth.
        seed: Seed of the draws.

    Returns:
        The metrics of `Drawn`.
    """
    called = proba >= threshold
    drawn = drawn_metrics(true, proba, called, patients, draws=draws, seed=seed)
    return drawn.intervals(confidence)


def drawn_metrics(
    true: npt.NDArray[np.int64],
    proba: Floats,
    called: npt.NDArray[np.bool_],
    patients: npt.NDArray[np.str_],
    *,
    draws: int,
    seed: int,
) -> Drawn:
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
    """
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < 2:  # a single patient says nothing of how others would differ
        draws = 0
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    weights = np.vstack([np.ones(len(names)), drawn])
    values = _weighted_metrics(true, proba, called, patient, weights)
    bearing = _bearing(true, called, patient)
    return Drawn(values, bearing, patients=len(names), patches=len(true))


def pooled_metrics(
    true: npt.NDArray[np.int64], proba: Floats, *, threshold: float
) -> dict[str, float]:
    """The values of `bootstrap_metrics` without their intervals; NaN where undefined.

    Args:
        true: Labels [n], 0 healthy, 1 IDC.
        proba: Probabilities of IDC [n].
        threshold: Probability from which a patch counts as IDC.
    """
    one = np.zeros(len(true), dtype=np.str_)
    drawn = drawn_metrics(true, proba, proba >= threshold, one, draws=0, seed=0)
    return {name: float(value[0]) for name, value in drawn.values.items()}


def _weighted_metrics(
    true: npt.NDArray[np.int64],
    proba: Floats,
    called: npt.NDArray[np.bool_],
    patient: npt.NDArray[np.intp],
    weights: Floats,
) -> dict[str, Floats]:
    """All metrics; one value for each row of weights [draws, patients]."""
    return {
        **_threshold_metrics(true, called, patient, weights),
        **_ranking_metrics(true, proba, patient, weights),
        "brier": _brier_score(true, proba, patient, weights),
    }


def _bearing(
    true: npt.NDArray[np.int64], called: npt.NDArray[np.bool_], patient: npt.NDArray[np.intp]
) -> dict[str, int]:
    """As of `Drawn`."""

    def having(chosen: npt.NDArray[np.bool_]) -> int:
        return len(np.unique(patient[chosen]))

    idc, healthy = having(true == 1), having(true == 0)
    return {
        "f1": having((true == 1) | called),
        "balanced_accuracy": min(idc, healthy),
        "precision": having(called),
        "recall": idc,
        "specificity": healthy,
        "auroc": min(idc, healthy),
        "average_precision": idc,
        "brier": having(np.full(len(true), True)),
    }


def _brier_score(
    true: npt.NDArray[np.int64],
    proba: Floats,
    patient: npt.NDArray[np.intp],
    weights: Floats,
) -> Floats:
    """Mean squared difference; one value for each row of weights [draws, patients]."""
    squared = np.bincount(patient, np.square(proba - true))
    score: Floats = (weights @ squared) / (weights @ np.bincount(patient))
    return score


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide, ``part / whole``, NaN where whole is 0."""
    ratio: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _threshold_metrics(
    true: npt.NDArray[np.int64],
    called: npt.NDArray[np.bool_],
    patient: npt.NDArray[np.intp],
    weights: Floats,
) -> dict[str, Floats]:
    """Metrics of decisions; one value for each row of weights [draws, patients]."""

    def weighted(chosen: npt.NDArray[np.bool_]) -> Floats:
        counts = np.bincount(patient[chosen], minlength=weights.shape[1])
        found: Floats = weights @ counts
        return found

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
    weights: Floats,
) -> dict[str, Floats]:
    """AUROC and average precision; one value for each row of weights [draws, patients].

    Patches of equal probability share one point of either curve: the area below ROC is that of
    trapezoids, average precision sums precision over the steps of recall, as scikit-learn does.
    """
    order = np.argsort(-proba)
    ends = np.flatnonzero(np.append(np.diff(proba[order]) != 0, True))
    positive, patient = (true[order] == 1), patient[order]
    auroc, precision = [], []
    for some in np.array_split(weights, ceil(len(weights) * len(true) / CHUNK)):
        weight = some[:, patient]
        tp = np.cumsum(weight * positive, axis=1)[:, ends]
        fp = np.cumsum(weight * ~positive, axis=1)[:, ends]
        steps_tp, steps_fp = np.diff(tp, prepend=0), np.diff(fp, prepend=0)
        area = (steps_fp * (tp - steps_tp / 2)).sum(axis=1)
        auroc.append(_ratio(area, tp[:, -1] * fp[:, -1]))
        summed = (steps_tp * np.nan_to_num(_ratio(tp, tp + fp))).sum(axis=1)
        precision.append(_ratio(summed, tp[:, -1]))
    return {"auroc": np.concatenate(auroc), "average_precision": np.concatenate(precision)}
