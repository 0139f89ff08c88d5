"""Numbers that would be wrong: intervals that miss the truth, and what chance seems to tell."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from helpers_campaign import Campaign, result, run
from helpers_command import SMALL
from helpers_data import make_patches

from idc_lightning.data.grid import PATCH
from idc_lightning.results.bootstrap import Drawn, drawn_metrics

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


def test_intervals_hold_the_truth_in_95_of_100_studies(campaign: Campaign) -> None:
    rng = campaign.rng("intervals")

    def drawn(study: Study, draws: int) -> Drawn:
        true, proba, names = study
        return drawn_metrics(true, proba, proba >= 0.5, names, draws=draws, seed=0)

    whole = [drawn(study, 0) for study in simulated(rng, 20_000)]
    truth = whole[0].intervals(0.95), whole[1].differences(whole[0], 0.95)
    held: dict[tuple[str, int, str], list[bool]] = {}
    for patients in SIZES:
        for _ in range(STUDIES):
            first, second = (drawn(study, 500) for study in simulated(rng, patients))
            found = first.intervals(0.95), second.differences(first, 0.95)
            for kind, values, wanted in zip(("metric", "difference"), found, truth, strict=True):
                for name, interval in values.items():
                    if interval.low is not None:
                        inside = interval.low <= wanted[name].value <= interval.high
                        held.setdefault((kind, patients, name), []).append(inside)
    for kind in ("metric", "difference"):
        for patients in SIZES:
            shares = {name: np.mean(held[kind, patients, name]) for name in truth[0]}
            lowest, highest = min(shares, key=shares.get), max(shares, key=shares.get)
            mean = np.mean(list(shares.values()))
            campaign.count(
                f"intervals of a {kind}, {patients} patients",
                f"{100 * mean:.1f} % hold the truth, from {100 * shares[lowest]:.1f} ({lowest}) to "
                f"{100 * shares[highest]:.1f} ({highest}), of studies:",
                STUDIES,
            )
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
