"""bfloat16 and float32 tell the same of the same patches."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from helpers_model import TINY, config_of, write_tissue
from helpers_runs import QUICK, evaluation

from idc_lightning.evaluate import evaluate
from idc_lightning.train import train

SPLITS = ("dev", "test")


class Tolerance(NamedTuple):
    """Largest difference of a probability, of all on average, and of a metric."""

    probability: float
    mean: float
    metric: float


ONE_NET = Tolerance(0.08, 0.01, 0.06)
"""Of one net that computes in both precisions."""

TWO_NETS = Tolerance(0.3, 0.04, 0.08)
"""Of two whose heads, without hidden layers, were trained in one precision each.

One of the 22 IDC patches of test is 0.045 of its recall.
"""


class Outcome(NamedTuple):
    predictions: dict[str, pd.DataFrame]
    metrics: dict[str, float]


def outcome(folder: Path) -> Outcome:
    results = json.loads((folder / "results.json").read_text())
    return Outcome(
        {split: pd.read_csv(folder / "predictions" / f"{split}.csv") for split in SPLITS},
        {
            f"{split} {name}": found["value"]
            for split in SPLITS
            for name, found in results[split].items()
        },
    )


def confuse(tissue: Path) -> None:
    """Label some dark patches as healthy, so that no net can tell all of them."""
    for path in sorted(tissue.glob("*/1/*.png"))[::4]:
        path.rename(path.parents[1] / "0" / path.name.replace("class1", "class0"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """A run in each precision, and each of them judged again in the other one."""
    folder = tmp_path_factory.mktemp("precision")
    tissue = write_tissue(folder, healthy=50, idc=30)
    confuse(folder / "tissue")
    net = (
        "model.backbone=resnet18",
        "model.freeze_backbone=true",
        "model.frozen_batchnorm=adapt",
        "model.head.hidden=[]",  # a hidden layer makes much of the smallest difference
        "data.augment={horizontal_flip:false,vertical_flip:false,turns:false}",
        "trainer.epochs=4",
    )
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        # Any CPU computes in bfloat16, most of them slowly.
        patch.setattr("idc_lightning.trainer.has_bf16", lambda _: True)
        for own, other in (("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")):
            values = (*TINY, *tissue, *QUICK, *net, f"trainer.precision={own}")
            train(config_of(*values, f"cache={folder}/cache"), folder / own)
            found[own] = outcome(folder / own)
            again = folder / f"{own} again"
            evaluate(evaluation(folder / own, f"trainer.precision={other}"), again)
            found[f"{own} in {other}"] = outcome(again)
    return found


@pytest.mark.parametrize(
    ("one", "other", "close"),
    [
        ("32-true", "32-true in bf16-mixed", ONE_NET),
        ("bf16-mixed", "bf16-mixed in 32-true", ONE_NET),
        ("32-true", "bf16-mixed", TWO_NETS),
    ],
)
def test_both_precisions_give_the_same_probabilities_and_metrics(
    computed: dict[str, Outcome], one: str, other: str, close: Tolerance
) -> None:
    first, second = computed[one], computed[other]
    for split in SPLITS:
        expected, found = (o.predictions[split]["proba"].to_numpy() for o in (first, second))
        assert expected.std() > 0.2  # nets that tell nothing would agree, too
        apart = np.abs(found - expected)
        assert 0 < apart.max() <= close.probability  # 0 if both were computed in one precision
        assert apart.mean() <= close.mean
    assert 0.8 < first.metrics["dev auroc"] < 1
    assert first.metrics.keys() == second.metrics.keys()
    for name, value in first.metrics.items():
        if "calibration" not in name:  # of so few patches, its bins depend on single ones
            assert second.metrics[name] == pytest.approx(value, abs=close.metric), name
