"""The weights that a run begins with: another run's, or those of a training on single patches."""

from dataclasses import dataclass
from pathlib import Path

from idc_lightning import ranks
from idc_lightning.callbacks import Throughput
from idc_lightning.checkpoints import FOLDER as CHECKPOINTS
from idc_lightning.checkpoints import PRETRAINING, last_checkpoint
from idc_lightning.classifier import IDCClassifier, Weights, load_classifier
from idc_lightning.config import AnyData, Config, ModelConfig, PatchPretrainingConfig
from idc_lightning.data.datamodule import Ready
from idc_lightning.data.seen import Seen
from idc_lightning.errors import IDCError
from idc_lightning.results.run_folders import RESULTS
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
        IDCError: If there is no such run, it hasn't ended, or its network is another one or has
            seen other images than those that it is to judge.
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
    path, learns = path.expanduser(), config.trainer.epochs > 0
    run = read_run(path, named=named)
    if path.is_dir() and path.resolve().name != PRETRAINING and not (path / RESULTS).is_file():
        raise IDCError(
            f"{named} holds no {RESULTS}: it failed, was killed or runs still. Let it end, or name "
            "its checkpoints/best.ckpt, which is that of its best epoch so far"
        )
    own, other = config.model, run.classifier.model_config
    grid = other.context.name == "grid" or (own.context.name == "grid" and not learns)
    mine, its = (_architecture(model, grid=grid) for model in (own, other))
    for what, value in its.items():
        if mine[what] != value:
            raise IDCError(
                f"{named} has another network: {what}={value}, where this one has {mine[what]}"
            )
    if own.context.with_single and run.classifier.single is None:
        if not learns:
            raise IDCError(
                f"{named} has no network of single patches beside its own: take a run on crops "
                "that was trained with model.context.with_single=true, or set it to false"
            )
        if run.data.crop > 1:
            raise IDCError(
                f"{named} is a run on crops without a network of single patches beside its own: "
                "take a run on single patches, or set model.context.with_single=false"
            )
    if own.context.with_single or not learns:
        _check_sight(named, run.data, config.data, of_all=not learns)
    return run


def _architecture(model: ModelConfig, *, grid: bool) -> dict[str, object]:
    """What decides the shapes of weights, with or without those of a net over the grid."""
    shapes: dict[str, object] = {
        "model.backbone": model.backbone,
        "model.head.hidden": model.head.hidden,
    }
    if grid:
        names = ("name", "width", "blocks")
        shapes |= {f"model.context.{name}": getattr(model.context, name) for name in names}
    return shapes


def _check_sight(named: str, before: AnyData, data: AnyData, *, of_all: bool) -> None:
    """Raise an IDCError if a network that learns no more would see other images than before.

    Args:
        named: How the run was typed whose network it is.
        before: The data on which it was trained.
        data: The data that it is to judge.
        of_all: Whether no network learns; else one does, and that of single patches doesn't.
    """
    keys = ["stain_normalisation", "edge_patches"]
    if of_all and (before.crop > 1) != (data.crop > 1):
        keys.insert(0, "crop")
    for key in keys:
        its, mine = getattr(before, key), getattr(data, key)
        if its != mine != "drop":  # of which nothing is seen
            raise IDCError(
                f"{named} has learned with data.{key}={its}, where this run has {mine}, to which a "
                f"network that learns no more can't adapt: type data.{key}={its}"
            )


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
