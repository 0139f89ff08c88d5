"""Numbers that would be wrong: intervals that miss the truth, and what chance seems to tell."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from helpers_campaign import Campaign, result, run
from helpers_command import SMALL
from helpers_data import make_patches

from idc_lightning.data.grid import PATCH
from idc_lightning.results.bootstrap import Interval, drawn_metrics

pytestmark = pytest.mark.campaign

STUDIES = 600
"""That are simulated of each size."""

SIZES = (5, 8, 16, 32)
"""Patients of a study."""

SHUFFLES = 20
"""Data sets whose labels tell nothing."""

Study = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.str_]]


def simulated(rng: np.random.Generator, patients: int) -> tuple[Study, Study]:
    """The same clustered patches as judged by two models; the second is the better one.

    Patients differ in number of patches, share of IDC, how well they are judged, and how surely.
    """
    sizes = rng.integers(5, 40, patients)
    names = np.repeat([f"p{number}" for number in range(patients)], sizes)
    share, ease, shift = np.repeat(
        np.stack([rng.random(patients), rng.random(patients), 0.8 * rng.normal(size=patients)]),
        sizes,
        axis=1,
    )
    true = (rng.random(len(names)) < 0.1 + 0.6 * share).astype(np.int64)
    first = (2 * true - 1) * (0.2 + ease) + rng.normal(size=len(names))
    second = first + 0.4 * (2 * true - 1) + 0.4 * rng.normal(size=len(names)) + shift
    return (true, 1 / (1 + np.exp(-first)), names), (true, 1 / (1 + np.exp(-second)), names)


def percentiles(values: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, Interval]:
    """The intervals that draws give by themselves, beside which ours are shown."""
    found = {}
    for name, (value, *drawn) in values.items():
        defined = np.array(drawn)[np.isfinite(drawn)]
        low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) > 1 else (None, None)
        found[name] = Interval(value, low, high)
    return found


def test_intervals_hold_the_truth_in_95_of_100_studies(campaign: Campaign) -> None:
    rng = campaign.rng("intervals")

    def intervals(pair: tuple[Study, Study], draws: int) -> dict[str, dict[str, Interval]]:
        one, two = (
            drawn_metrics(true, proba, proba >= 0.5, names, draws=draws, seed=0)
            for true, proba, names in pair
        )
        apart = {name: values - one.values[name] for name, values in two.values.items()}
        return {
            "intervals of a metric": one.intervals(0.95),
            "intervals of a difference": two.differences(one, 0.95),
            "percentiles of a metric": percentiles(one.values),
            "percentiles of a difference": percentiles(apart),
        }

    truth = intervals(simulated(rng, 20_000), 0)
    held: dict[tuple[str, int], dict[str, list[bool]]] = {}
    for patients in SIZES:
        for _ in range(STUDIES):
            for kind, found in intervals(simulated(rng, patients), 500).items():
                of_kind = held.setdefault((kind, patients), {name: [] for name in found})
                for name, interval in found.items():
                    if interval.low is not None:
                        inside = interval.low <= truth[kind][name].value <= interval.high
                        of_kind[name].append(inside)
    for (kind, patients), of_kind in held.items():
        shares = {name: np.mean(inside) for name, inside in of_kind.items()}
        lowest, highest = min(shares, key=shares.get), max(shares, key=shares.get)
        mean = np.mean(list(shares.values()))
        campaign.count(
            f"{kind}, {patients} patients",
            f"{100 * mean:.1f} % hold the truth, from {100 * shares[lowest]:.1f} ({lowest}) to "
            f"{100 * shares[highest]:.1f} ({highest}), of studies:",
            STUDIES,
        )
        if kind.startswith("intervals"):
            assert 0.93 <= mean <= 0.97


def test_labels_that_tell_nothing_are_not_told(tmp_path: Path, campaign: Campaign) -> None:
    rng = campaign.rng("labels")
    part, inside = "AUROC of shuffled labels", 0
    for number in range(SHUFFLES):
        folder = tmp_path / str(number)
        patches = [
            (f"{patient}", PATCH * x + 1, PATCH * y + 1, int(rng.random() < 0.4))
            for patient in range(16)
            for x in range(6)
            for y in range(6)
        ]
        make_patches(folder / "tissue", patches)
        words = [word for word in SMALL if not word.startswith(("data.patients", "data.patches"))]
        ended = run(
            "train",
            *words,
            "data=idc",
            "data.root=tissue",
            "cache=cache",
            "trainer.epochs=3",
            f"seed={number}",
            "hydra.run.dir=run",
            within=folder,
        )
        assert ended.returncode == 0, ended.stderr
        auroc = result(folder / "run")["test"]["auroc"]
        holds = auroc["low"] <= 0.5 <= auroc["high"]
        campaign.count(part, "interval holds .5" if holds else "interval lies beside .5")
        inside += holds
    # Of 20, 16 or fewer would be inside in 1 of 60 campaigns.
    assert inside >= SHUFFLES - 3
