"""What a run on crops begins with: weights of a run on single patches, or of one trained first."""

from pathlib import Path

import pandas as pd
from torch import Tensor

from idc_lightning import ranks
from idc_lightning.checkpoints import FOLDER as CHECKPOINTS
from idc_lightning.checkpoints import PRETRAINING
from idc_lightning.classifier import load_classifier
from idc_lightning.config import Config, PatchPretrainingConfig
from idc_lightning.data.datamodule import Ready
from idc_lightning.errors import IDCError, listed
from idc_lightning.runs import read_run
from idc_lightning.training import build_data, build_model, fit


def check_pretraining(config: Config, splits: pd.Series) -> None:
    """Stop if the weights of another run can't be taken, or know patients of dev or test.

    Raises:
        IDCError: If they can't, or do.
    """
    pretraining = config.pretraining
    if pretraining.name == "none" or pretraining.run is None:
        return
    run = read_run(pretraining.run)
    named = f"pretraining.run={pretraining.run}"
    own, other = config.model, run.classifier.model_config
    for what, mine, its in (
        ("model.backbone", own.backbone, other.backbone),
        ("model.head.hidden", own.head.hidden, other.head.hidden),
    ):
        if mine != its:
            raise IDCError(f"{named} has another network: {what}={its}, where this one has {mine}")
    if other.context.name == "grid" and own.context != other.context:
        raise IDCError(f"{named} has another network: model.context.name=grid")
    here = splits.reindex(run.splits.index)
    trained = (run.splits == "train") & here.isin(["dev", "test"])
    tuned = (run.splits == "dev") & (here == "test")
    leaked = run.splits.index[trained | tuned].tolist()
    if leaked:
        raise IDCError(
            f"{named} knew {len(leaked)} patients of this run's dev and test ({listed(leaked)}): "
            "take a run with the same split"
        )


def pretrained(
    config: Config,
    pretraining: PatchPretrainingConfig,
    folder: Path,
    ready: Ready,
    place: ranks.Place,
) -> dict[str, Tensor] | None:
    """Weights of the run on single patches that is named, or of one that is trained first.

    Returns:
        The network's; None but in the leader, from whom the other processes take theirs.
    """
    if pretraining.run is not None:
        return read_run(pretraining.run).classifier.network.state_dict() if place.leads else None
    before, own = config.of_pretraining(pretraining), folder / PRETRAINING
    if place.leads:
        print(f"pretraining on single patches, {pretraining.epochs} epochs", flush=True)
    model, data = build_model(before), build_data(before, place, ready)
    fit(before, own, data, model, place)
    if not place.leads:
        return None
    return load_classifier(own / CHECKPOINTS / "best.ckpt").network.state_dict()
