"""The model card says what the configuration says."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers_model import config_of

from idc_lightning.classifier import IDCClassifier
from idc_lightning.decision import UNDECIDED
from idc_lightning.report.card import LIMITS, SYNTHETIC, model_card

PATIENTS = {"train": 8, "dev": 2, "test": 3}


def card_of(*overrides: str) -> dict[str, str]:
    config = config_of("model.backbone=shufflenet_v2_x0_5", *overrides)
    model = IDCClassifier(config.model, config.optimizer, config.scheduler)
    return model_card(model, config.data, PATIENTS)


def test_it_is_for_research_and_says_on_whom_it_must_not_be_judged() -> None:
    card = card_of("data=idc")
    assert "Not for diagnosis" in card["Intended use"]
    assert card["Patients"].startswith("8 train, 2 dev, 3 test. It must not be judged on its train")
    assert card["Known limits"] == LIMITS


@pytest.mark.parametrize(
    ("context", "bandwidth", "said"),
    [
        (
            (),
            0.0,
            "A patch shows 0.2 mm of tissue and is judged alone: what lies around it is not seen.",
        ),
        (("data.crop=8",), 0.0, "judged in sight of the tissue around it: regions smaller than"),
        ((), 1.5, "judged by an average over its neighbours (a Gaussian of 1.5 patches): regions"),
        (
            ("data.crop=8",),
            2.0,
            "judged in sight of the tissue around it and by an average over its neighbours (",
        ),
        (
            ("data.crop=8", "pretraining=patches", "model.context.with_single=true"),
            0.0,
            "judged by two networks, of which one sees the tissue around it: regions smaller",
        ),
    ],
)
def test_it_tells_what_a_patch_is_judged_by(
    context: tuple[str, ...], bandwidth: float, said: str
) -> None:
    config = config_of("model.backbone=shufflenet_v2_x0_5", *context)
    model = IDCClassifier(config.model, config.optimizer, config.scheduler)
    model.decide_by(replace(UNDECIDED, bandwidth=bandwidth))
    assert said in model_card(model, config.data, PATIENTS)["Context"]


def test_the_width_of_a_patch_is_that_of_its_pixels() -> None:
    assert card_of("data.microns_per_pixel=2")["Context"].startswith("A patch shows 0.1 mm")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("model.weights=none",), "began with random weights, all of it learned"),
        (
            ("model.weights=imagenet", "model.freeze_backbone=true"),
            "began with ImageNet weights, and only the head learned",
        ),
        (("model.weights=my/file.pt",), "began with weights of my/file.pt"),
    ],
)
def test_the_network_is_told_as_it_was_made(overrides: tuple[str, ...], text: str) -> None:
    network = card_of(*overrides, "model.head.hidden=[16,4]")["Network"]
    assert text in network
    assert "hidden layers of the head 16-4" in network
    assert card_of("model.head.hidden=[]")["Network"].endswith("head none.")


@pytest.mark.parametrize(
    ("scheduler", "has_rate"), [("onecycle", False), ("cyclic", False), ("cosine", True)]
)
def test_only_rates_that_are_used_are_told(scheduler: str, has_rate: bool) -> None:
    optimizer = card_of(f"scheduler={scheduler}")["Optimizer"]
    assert ("lr 0.01" in optimizer) == has_rate
    assert optimizer.startswith("sgd (momentum" if not has_rate else "sgd (lr")
    assert card_of("scheduler=notebook")["Optimizer"].startswith("sgd (nesterov")


def test_synthetic_tissue_is_no_evidence(tmp_path: Path) -> None:
    assert card_of()["Known limits"] == SYNTHETIC
    assert card_of()["Data"].startswith("Synthetic")
    # The demo's values on a folder of somebody's own are no synthetic tissue.
    own = card_of(f"data.root={tmp_path}")
    assert own["Known limits"] == LIMITS
    assert "Synthetic" not in own["Data"]
