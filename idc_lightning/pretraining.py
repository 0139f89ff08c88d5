"""The weights that a run begins with: another run's, or those of a training on single patches."""

from dataclasses import dataclass
from pathlib import Path

from idc_lightning import ranks
from idc_lightning.callbacks import Throughput
from idc_lightning.checkpoints import FOLDER as CHECKPOINTS
from idc_lightning.checkpoints import PRETRAINING, last_checkpoint
from idc_lightning.classifier import IDCClassifier, Weights, load_classifier
from idc_lightning.config import Config, ContextConfig, PatchPretrainingConfig
from idc_lightning.data.datamodule import Ready
from idc_lightning.data.seen import Seen
from idc_lightning.errors import IDCError
from idc_lightning.runs import Run, read_run, seen_by
from idc_lightning.torch_files import read_checkpoint
from idc_lightning.training import build_data, build_model, fit


@dataclass(frozen=True)
class Start:
    """Weights that another run has learned.

    Attributes:
        named: How the configuration names them.
        seen: What they have learned from.
        classifier: Whose network is taken; None if `load_pretrained` takes the backbone alone.
    """

    named: str
    seen: Seen
    classifier: IDCClassifier | None


def read_start(config: Config) -> Start | None:
    """The weights of another run, if the configuration names such.

    Raises:
        IDCError: If there is no such run, or its network is another one.
    """
    pretraining, weights = config.pretraining, config.model.weights
    if pretraining.name == "patches" and pretraining.run is not None:
        named = f"pretraining.run={pretraining.run}"
        run = _run_of_this_network(pretraining.run, named, config)
        return Start(named, run.seen, run.classifier)
    if weights in ("none", "imagenet"):
        return None
    seen = seen_by(Path(weights))
    return None if seen is None else Start(f"model.weights={weights}", seen, classifier=None)


def _run_of_this_network(path: Path, named: str, config: Config) -> Run:
    run = read_run(path)
    own, other = config.model, run.classifier.model_config
    for what, mine, its in (
        ("model.backbone", own.backbone, other.backbone),
        ("model.head.hidden", own.head.hidden, other.head.hidden),
    ):
        if mine != its:
            raise IDCError(f"{named} has another network: {what}={its}, where this one has {mine}")
    if other.context.name == "grid" and _grid(own.context) != _grid(other.context):
        raise IDCError(f"{named} has another network: model.context.name=grid")
    if own.context.with_single and run.classifier.single is None:
        if config.trainer.epochs == 0:
            raise IDCError(
                f"{named} has no network of single patches beside its own: take a run on crops "
                "that was trained with model.context.with_single=true, or set it to false"
            )
        if run.data.crop > 1:
            raise IDCError(
                f"{named} is a run on crops without a network of single patches beside its own: "
                "take a run on single patches, or set model.context.with_single=false"
            )
    return run


def _grid(context: ContextConfig) -> tuple[str, int, int]:
    """What decides the architecture."""
    return context.name, context.width, context.blocks


def pretrain(
    config: Config,
    pretraining: PatchPretrainingConfig,
    folder: Path,
    ready: Ready,
    place: ranks.Place,
) -> Weights | None:
    """Train on single patches first.

    Args:
        config: Of the run that follows.
        pretraining: Its section.
        folder: Its run folder.
        ready: Its data.
        place: Of this process.

    Returns:
        The weights; None but in the leader, from whom other processes take theirs.
    """
    before, own = config.of_pretraining(pretraining), folder / PRETRAINING
    if place.leads:
        print(f"pretraining on single patches, {pretraining.epochs} epochs", flush=True)
    model, data = build_model(before), build_data(before, place, ready)
    try:
        fit(before, own, data, model, place)
    except IDCError as error:
        raise IDCError(
            f"pretraining, whose values are pretraining.batch_size and pretraining.max_lr: {error}"
        ) from error
    data.free_device()
    if not place.leads:
        return None
    return load_classifier(own / CHECKPOINTS / "best.ckpt").weights()


def seconds_of_pretraining(folder: Path) -> float:
    """Seconds that the pretraining in a run folder took; 0 if there was none."""
    last = last_checkpoint(folder / PRETRAINING)
    if not last.is_file():
        return 0.0
    return float(read_checkpoint(last)["callbacks"][Throughput.__qualname__]["elapsed"])
