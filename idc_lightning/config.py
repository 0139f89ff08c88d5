"""Every tunable of the project, with its type and its allowed values.

The values stand in ``conf/``, which Hydra composes; `read_config` turns the composition into the
frozen models below or names every key that is wrong. No model has a default, so that each value
that a run uses can be read in ``conf/`` and in the run folder's ``.hydra/config.yaml``.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from idc_lightning.conf_folder import unknown_key, usage
from idc_lightning.errors import IDCError

Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Positive = Annotated[Finite, Field(gt=0)]
NotNegative = Annotated[Finite, Field(ge=0)]
Share = Annotated[Finite, Field(gt=0, lt=1)]
Probability = Annotated[Finite, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]
BatchSize = Annotated[int, Field(ge=2, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
# YAML takes a bare on and off for true and false.
Switch = BeforeValidator(lambda v: {True: "on", False: "off"}[v] if type(v) is bool else v)
Rule = Literal["max_f1", "sensitivity"] | Share
PatientName = Annotated[str, Field(coerce_numbers_to_str=True)]
# Hydra takes a folder called 10253 for a number.
Place = Annotated[Path, BeforeValidator(lambda v: str(v) if type(v) is int else v)]
Monitored = Literal[
    "dev/loss",
    "dev/f1",
    "dev/balanced_accuracy",
    "dev/precision",
    "dev/recall",
    "dev/specificity",
    "dev/auroc",
    "dev/average_precision",
]


Ranking = Literal["f1", "balanced_accuracy", "auroc", "average_precision", "brier"]

SHOWN = (
    "data.root",
    "data.workers",
    "data.device_resident",
    "data.features",
    "data.microns_per_pixel",
    "callbacks.progress",
    "callbacks.checkpoint.last_every",
    "trainer.timeout",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "logger",
    "report",
    "sweep",
    "cache",
)
"""Values of a training that can't change its result: places, and what is only shown or logged."""

OF_DEMO = ("data.patients", "data.patches", "data.seed")
"""Values by which synthetic tissue is drawn."""

PACKED = ("data", "data.root", "data.on_broken", "data.on_conflict", *OF_DEMO)
"""What decides which patches there are, of which some are chosen and changed later."""

OF_SEARCH = ("sweep.pruning", "sweep.study", "sweep.trial")
"""Values that only a job of a search uses."""

OF_LEARNING = (
    "optimizer",
    "scheduler",
    "data.augment.",
    "data.batch_size",
    "model.loss.",
    "model.freeze_backbone",
    "model.frozen_batchnorm",
    "model.head.bias",
    "model.head.dropout",
    "trainer.gradient_clip",
    "callbacks.ema_decay",
    "callbacks.early_stopping",
    "callbacks.checkpoint.monitor",
)
"""Values that only a training of at least one epoch uses."""

NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
"""What Hydra may take for a number."""

BOUND = ("onecycle", "cosine")
"""Schedulers whose rates depend on the number of epochs."""


class Section(BaseModel):
    """A part of the configuration: nothing but the declared keys, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AugmentConfig(Section):
    """Random changes of train images; each image has its own draw."""

    horizontal_flip: bool
    vertical_flip: bool
    turns: bool
    stain_jitter: NotNegative
    brightness: NotNegative

    @property
    def is_finite(self) -> bool:
        """Whether each patch has a few views only, and no colours drawn anew each time."""
        return self.stain_jitter == 0 and self.brightness == 0


class DataConfig(Section):
    """What every data set has in common."""

    root: Place | None
    edge_patches: Literal["pad", "resize", "drop"]
    on_broken: Literal["error", "skip"]
    on_conflict: Literal["error", "drop"]
    sample: Count | None
    microns_per_pixel: Positive
    stain_normalisation: Literal["none", "slide"]
    crop: Annotated[int, Field(ge=1, le=64, strict=True)]
    window: Count
    margin: Annotated[int, Field(ge=0, strict=True)]
    batch_size: BatchSize
    eval_batch_size: Count
    drop_last: bool
    workers: Annotated[int, Field(ge=0, strict=True)]
    device_resident: Annotated[Literal["auto", "on", "off"], Switch]
    features: Annotated[Literal["auto", "off"], Switch]
    augment: AugmentConfig

    @property
    def is_synthetic(self) -> bool:
        """Whether the tissue is drawn."""
        return False

    @property
    def judged_at_once(self) -> int:
        """Patches in a batch of dev or test; of crops whole slides, one by one."""
        return self.eval_batch_size if self.crop == 1 else 1

    @model_validator(mode="after")
    def _crops_fit(self) -> "DataConfig":
        # BatchNorm can't be trained on a single patch, which a crop may hold.
        if self.batch_size < 2 * self.crop**2:
            raise ValueError(
                f"batch_size={self.batch_size} holds less than two crops of {self.crop}x"
                f"{self.crop} patches: take {2 * self.crop**2} or more"
            )
        if self.window <= 2 * self.margin:
            raise ValueError(
                f"window={self.window} leaves nothing to judge within a margin of {self.margin}"
            )
        return self


class DemoDataConfig(DataConfig):
    """Synthetic tissue, made on first use."""

    name: Literal["demo"]
    patients: Count
    patches: Count | None
    seed: Seed

    @property
    def is_synthetic(self) -> bool:
        """As of `DataConfig`; its values may be used of a folder of somebody's own."""
        return self.root is None


class IDCDataConfig(DataConfig):
    """A folder or .zip in the layout of the public data set."""

    name: Literal["idc"]


class StratifiedSplitConfig(Section):
    """Patients spread evenly over the splits by IDC share and number of patches."""

    name: Literal["stratified"]
    dev: Share
    test: Share
    seed: Seed

    @model_validator(mode="after")
    def _leaves_train(self) -> "StratifiedSplitConfig":
        if self.dev + self.test >= 1:
            raise ValueError("dev and test together must stay below 1, the rest is train")
        return self


class KFoldSplitConfig(Section):
    """One of several folds of patients for test, the next one for dev, all others for train."""

    name: Literal["kfold"]
    folds: Annotated[Count, Field(ge=3)]
    fold: Annotated[int, Field(ge=0, strict=True)]
    seed: Seed

    @model_validator(mode="after")
    def _has_the_fold(self) -> "KFoldSplitConfig":
        if self.fold >= self.folds:
            raise ValueError(
                f"fold={self.fold} is none of {self.folds} folds, which are 0 to {self.folds - 1}"
            )
        return self


class NotebookSplitConfig(Section):
    """Two calls of scikit-learn's train_test_split, as in the notebook."""

    name: Literal["notebook"]
    held_out: Share
    test: Share
    seed: Seed


class CruzRoaSplitConfig(Section):
    """The patients' lists of Cruz-Roa et al. 2014."""

    name: Literal["cruz_roa_2014"]


class FileSplitConfig(Section):
    """A CSV file with the columns patient_id and split."""

    name: Literal["file"]
    path: Path | None


class HeadConfig(Section):
    """Layers between the backbone's features and the logits."""

    hidden: list[Count]
    dropout: Probability
    bias: Finite


class LossConfig(Section):
    """Cross-entropy over healthy and IDC."""

    class_weights: (
        Literal["balanced", "none"] | Annotated[list[Positive], Field(min_length=2, max_length=2)]
    )
    label_smoothing: Probability


class ContextConfig(Section):
    """How a patch takes note of its neighbours beside the crop that it is seen in."""

    name: Literal["none", "smooth", "grid"]
    bandwidth: Literal["auto"] | Annotated[Positive, Field(le=16)]
    width: Count
    blocks: Count
    with_single: bool


class ModelConfig(Section):
    """Backbone, head and loss."""

    backbone: str
    weights: str
    freeze_backbone: bool
    frozen_batchnorm: Literal["imagenet", "adapt"]
    compile: bool
    test_time_augmentation: bool
    head: HeadConfig
    context: ContextConfig
    loss: LossConfig


class NoPretrainingConfig(Section):
    """The net begins with ``model.weights``."""

    name: Literal["none"]


class PatchPretrainingConfig(Section):
    """The net learns on single patches before it learns on crops."""

    name: Literal["patches"]
    run: Place | None
    epochs: Count
    batch_size: BatchSize
    max_lr: Positive


class SGDConfig(Section):
    """Stochastic gradient descent."""

    name: Literal["sgd"]
    lr: Positive
    momentum: Probability
    nesterov: bool
    weight_decay: NotNegative

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "SGDConfig":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0")
        return self


class AdamWConfig(Section):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    lr: Positive
    betas: tuple[Probability, Probability]
    weight_decay: NotNegative


class CyclicConfig(Section):
    """Triangular cycles between two rates, stepped with each batch."""

    name: Literal["cyclic"]
    base_lr: Positive
    max_lr: Positive
    half_cycle: Positive
    unit: Literal["epochs", "steps"]
    cycle_momentum: tuple[Probability, Probability] | None

    @model_validator(mode="after")
    def _ordered(self) -> "CyclicConfig":
        if self.base_lr > self.max_lr:
            raise ValueError(f"base_lr={self.base_lr:g} is above max_lr={self.max_lr:g}")
        if self.cycle_momentum is not None and self.cycle_momentum[0] > self.cycle_momentum[1]:
            raise ValueError("cycle_momentum must rise from its first to its second value")
        return self


class OneCycleConfig(Section):
    """One rise to the highest rate and one long fall, stepped with each batch."""

    name: Literal["onecycle"]
    max_lr: Positive
    warmup: Share


class CosineConfig(Section):
    """Half a cosine from the optimizer's rate to a last one, stepped with each batch."""

    name: Literal["cosine"]
    min_lr: NotNegative


class ConstantConfig(Section):
    """The optimizer's rate throughout."""

    name: Literal["none"]


class HardwareConfig(Section):
    """On what and in which precision."""

    accelerator: Literal["auto", "cpu", "gpu"]
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"]


class TrainerConfig(HardwareConfig):
    """How long, on what and in which precision."""

    devices: Count | Literal["auto"]
    sync_batchnorm: bool
    timeout: Positive
    epochs: Annotated[int, Field(ge=0, strict=True)]
    gradient_clip: Positive | None
    deterministic: bool | Literal["warn"]
    log_every_n_steps: Count
    profiler: Literal["simple", "advanced"] | None


class CheckpointConfig(Section):
    """Which epoch is the best, and how often the last one is written."""

    monitor: Monitored
    last_every: NotNegative


class EarlyStoppingConfig(Section):
    """When to stop before the last epoch."""

    monitor: Monitored
    patience: Count
    min_delta: NotNegative


class LRRangeTestConfig(Section):
    """A search for the learning rate before training."""

    start: Positive
    end: Positive
    ramp: Literal["linear", "exponential"]
    steps: Annotated[int, Field(ge=10, strict=True)] | None
    smoothing: Annotated[Finite, Field(gt=0, le=1)]
    stop_factor: Annotated[Finite, Field(gt=1)]
    apply: bool

    @model_validator(mode="after")
    def _rises(self) -> "LRRangeTestConfig":
        if self.start >= self.end:
            raise ValueError(f"start={self.start:g} must be below end={self.end:g}")
        return self


class CallbacksConfig(Section):
    """What happens beside the training itself."""

    checkpoint: CheckpointConfig
    early_stopping: EarlyStoppingConfig | None
    lr_range_test: LRRangeTestConfig | None
    ema_decay: Share | None
    progress: Literal["auto", "rich", "plain", "none"]


class LoggerConfig(Section):
    """Where losses and metrics are written."""

    tensorboard: bool
    csv: bool


class JudgeConfig(Section):
    """How predictions are judged."""

    draws: Count
    confidence: Share


class ResultsConfig(JudgeConfig):
    """How the numbers of results.json are made."""

    threshold: Rule
    sensitivity: Share


class AgainResultsConfig(JudgeConfig):
    """The same for a run that has a threshold already."""

    threshold: Rule | None
    sensitivity: Share


class PredictResultsConfig(JudgeConfig):
    """The same where the run's dev patients, on whom a rule would choose, aren't there."""

    threshold: Share | None


class ReportConfig(Section):
    """Figures and report.html."""

    enabled: bool
    patients: list[PatientName] | None
    gallery: Count


class PruningConfig(Section):
    """When a search stops a job before its last epoch."""

    epochs: Count
    trials: Count


class SweepConfig(Section):
    """What belongs to a sweep, not to one of its jobs, but for its place in a search."""

    resume: bool
    metric: Ranking
    pruning: PruningConfig | None
    study: Path | None
    trial: Annotated[int, Field(ge=0, strict=True)] | None


class SearchConfig(Section):
    """Which jobs a search proposes."""

    trials: Count
    batch: Count
    startup: Count
    params: dict[str, str]


class AgainDataConfig(Section):
    """Other data than the run's own."""

    root: Place | None
    on_broken: Literal["error", "skip"]
    on_conflict: Literal["error", "drop"]


class InputConfig(Section):
    """How new patches are read."""

    on_broken: Literal["error", "skip"]
    on_conflict: Literal["error", "drop"]


AnyData = Annotated[DemoDataConfig | IDCDataConfig, Field(discriminator="name")]
AnySplit = Annotated[
    StratifiedSplitConfig
    | KFoldSplitConfig
    | NotebookSplitConfig
    | CruzRoaSplitConfig
    | FileSplitConfig,
    Field(discriminator="name"),
]
AnyPretraining = Annotated[
    NoPretrainingConfig | PatchPretrainingConfig, Field(discriminator="name")
]
AnyOptimizer = Annotated[SGDConfig | AdamWConfig, Field(discriminator="name")]
AnyScheduler = Annotated[
    CyclicConfig | OneCycleConfig | CosineConfig | ConstantConfig, Field(discriminator="name")
]


def _idle_sensitivity(rule: Rule | None, typed: AbstractSet[str]) -> str | None:
    """A line on a sensitivity that the rule of the threshold doesn't use."""
    if "results.sensitivity" not in typed or rule == "sensitivity":
        return None
    return (
        f"results.sensitivity has no effect, since results.threshold={_shown(rule)}: add "
        "results.threshold=sensitivity"
    )


class CommandConfig(Section):
    """All that a command takes.

    Attributes:
        command: Its name, and that of its root in ``conf/``.
    """

    command: ClassVar[str]

    def idle(self, typed: AbstractSet[str]) -> str | None:
        """What is wrong with a key that was typed if nothing would use its value; None if all are.

        Args:
            typed: Keys of the command line, e.g. ``{"optimizer.lr"}``.
        """
        return None


class Config(CommandConfig):
    """The whole configuration of a run, as `idc-train` takes it."""

    command: ClassVar[str] = "train"

    data: AnyData
    split: AnySplit
    model: ModelConfig
    pretraining: AnyPretraining
    optimizer: AnyOptimizer
    scheduler: AnyScheduler
    trainer: TrainerConfig
    callbacks: CallbacksConfig
    logger: LoggerConfig
    results: ResultsConfig
    report: ReportConfig
    sweep: SweepConfig
    cache: Path
    seed: Seed

    @property
    def learns_on_features(self) -> bool:
        """Whether the head is trained on cached features of a frozen backbone."""
        frozen = self.model.freeze_backbone and self.data.features == "auto"
        # A backbone that sees crops gives a patch other features in each of them.
        alone = self.data.crop == 1 or self.model.context.name == "grid"
        return frozen and self.data.augment.is_finite and alone

    @model_validator(mode="after")
    def _single_patches_were_learned(self) -> "Config":
        if not self.model.context.with_single:
            return self
        if self.data.crop == 1:
            raise ValueError(
                "model.context.with_single=true needs a network that sees crops: add data.crop=4, "
                "or set it to false"
            )
        if self.pretraining.name != "patches":
            raise ValueError(
                "model.context.with_single=true needs a network of single patches: add "
                "pretraining=patches, or set it to false"
            )
        return self

    @model_validator(mode="after")
    def _judged_images_are_there(self) -> "Config":
        wanted = {
            "model.test_time_augmentation": self.model.test_time_augmentation,
            "model.context.with_single": self.model.context.with_single,
        }
        for key in (key for key, value in wanted.items() if value and self.learns_on_features):
            raise ValueError(
                f"{key}=true needs images, where features of the frozen backbone are stored: add "
                "data.features=off"
            )
        return self

    @model_validator(mode="after")
    def _something_was_learned(self) -> "Config":
        if self.trainer.epochs > 0:
            return self
        if self.pretraining.name != "patches" or self.pretraining.run is None:
            raise ValueError(
                "trainer.epochs=0 learns nothing: add pretraining=patches pretraining.run=<the run "
                "whose network is judged>"
            )
        if self.callbacks.lr_range_test is not None:
            raise ValueError("callbacks=lr_range_test learns, which trainer.epochs=0 doesn't")
        return self

    @model_validator(mode="after")
    def _grid_has_neighbours(self) -> "Config":
        if self.model.context.name == "grid" and self.data.crop == 1:
            raise ValueError(
                "model.context.name=grid has no neighbours to see with data.crop=1: add data.crop=8"
            )
        reach = 2 * self.model.context.blocks
        if self.model.context.name == "grid" and self.data.margin < reach:
            raise ValueError(
                f"data.margin={self.data.margin} is less than the {reach} patches that "
                f"model.context.blocks={self.model.context.blocks} see on every side"
            )
        return self

    def of_pretraining(self, pretraining: PatchPretrainingConfig) -> "Config":
        """The configuration of the training that comes first, of the same net."""
        data = {"crop": 1, "batch_size": pretraining.batch_size}
        callbacks = {"lr_range_test": None, "early_stopping": None}
        context = self.model.context.model_copy(update={"name": "none", "with_single": False})
        optimizer, scheduler = with_highest_rate(self.optimizer, self.scheduler, pretraining.max_lr)
        return self.model_copy(
            update={
                "pretraining": NoPretrainingConfig(name="none"),
                "model": self.model.model_copy(update={"context": context}),
                "data": self.data.model_copy(update=data),
                "optimizer": optimizer,
                "scheduler": scheduler,
                "trainer": self.trainer.model_copy(update={"epochs": pretraining.epochs}),
                "callbacks": self.callbacks.model_copy(update=callbacks),
                "sweep": self.sweep.model_copy(update={"study": None, "trial": None}),
            }
        )

    def idle(self, typed: AbstractSet[str]) -> str | None:
        """As `CommandConfig.idle`."""
        return (
            _idle_demo(self.data, typed)
            or self._idle_learning(typed)
            or self._idle_rate(typed)
            or self._idle_search(typed)
            or self._idle_network(typed)
            or self._idle_features(typed)
            or self._idle_context(typed)
            or _idle_sensitivity(self.results.threshold, typed)
        )

    def _idle_learning(self, typed: AbstractSet[str]) -> str | None:
        """A line on a value of training where nothing is learned."""
        idle = sorted(key for key in typed if key.startswith(OF_LEARNING))
        if idle and self.trainer.epochs == 0:
            return f"{idle[0]} has no effect, since trainer.epochs=0 learns nothing"
        return None

    def _idle_search(self, typed: AbstractSet[str]) -> str | None:
        """A line on a value of a search without one."""
        idle = sorted(key for key in typed if key.startswith(OF_SEARCH))
        if idle and (self.sweep.study is None or self.sweep.trial is None):
            return f"{idle[0]} has no effect without a search: add hydra/sweeper=optuna"
        return None

    def _idle_network(self, typed: AbstractSet[str]) -> str | None:
        """A line on a value of a part that the network hasn't."""
        if "model.head.dropout" in typed and not self.model.head.hidden:
            return "model.head.dropout has no effect, since model.head.hidden=[] has no layers"
        if "model.frozen_batchnorm" in typed and not self.model.freeze_backbone:
            return "model.frozen_batchnorm has no effect: add model.freeze_backbone=true"
        return None

    def _idle_features(self, typed: AbstractSet[str]) -> str | None:
        """A line on how a backbone is computed, where training doesn't compute it so."""
        if "data.features" in typed and not self.model.freeze_backbone:
            return (
                "data.features has no effect, since a backbone that learns is computed in each "
                "step: leave it out, or add model.freeze_backbone=true"
            )
        if "data.device_resident" in typed and self.learns_on_features:
            return (
                "data.device_resident has no effect, since the head learns on features of the "
                "frozen backbone, not on images: leave it out, or add data.features=off"
            )
        return None

    def _idle_context(self, typed: AbstractSet[str]) -> str | None:
        """A line on a value of context without it, or of a pretraining that isn't done."""
        uses = {"bandwidth": "smooth", "width": "grid", "blocks": "grid"}
        for key, name in uses.items():
            if f"model.context.{key}" in typed and self.model.context.name != name:
                return f"model.context.{key} has no effect: add model.context.name={name}"
        pretraining = self.pretraining
        trains = pretraining.name == "patches" and pretraining.run is None
        if pretraining.name == "patches" and not trains:
            own = {f"pretraining.{name}" for name in ("epochs", "batch_size", "max_lr")}
            idle = sorted(typed & {*own, "model.weights"})
            if idle:
                return f"{idle[0]} has no effect, since pretraining.run={pretraining.run} is taken"
        if self.data.crop == 1:
            idle = sorted(typed & {"data.window", "data.margin"})
            return f"{idle[0]} has no effect on single patches: add data.crop=8" if idle else None
        if "data.eval_batch_size" in typed and not trains and not self.model.freeze_backbone:
            return (
                "data.eval_batch_size has no effect, since dev and test are taken by whole slides: "
                "give data.window"
            )
        return None

    def _idle_rate(self, typed: AbstractSet[str]) -> str | None:
        """A line on a learning rate that something else sets."""
        scheduler, search = self.scheduler.name, self.callbacks.lr_range_test
        if "optimizer.lr" in typed and scheduler in ("cyclic", "onecycle"):
            return (
                f"optimizer.lr has no effect, since scheduler={scheduler} sets the rate: give "
                "scheduler.max_lr, or take scheduler=cosine or scheduler=none"
            )
        if "optimizer.momentum" in typed and sets_momentum(self.scheduler):
            return (
                "optimizer.momentum has no effect, since scheduler.cycle_momentum sets it: add "
                "scheduler.cycle_momentum=null"
            )
        rates = sorted(typed & {"optimizer.lr", "scheduler.base_lr", "scheduler.max_lr"})
        if rates and search is not None and search.apply:
            return (
                f"{rates[0]} would be replaced by the range test, unless that proposes nothing: "
                "leave it out, or add callbacks.lr_range_test.apply=false"
            )
        return None

    def deciding_values(self) -> dict[str, Any]:
        """The values that can change a result, as plain ones.

        Places and what is only shown or logged are left out, so that the same experiment has the
        same values on another machine.
        """
        return deciding(self.model_dump(mode="json"))

    def digest(self) -> str:
        """SHA-256 of the `deciding_values`, as 64 hexadecimal digits."""
        return _hash(self.deciding_values())

    def course(self) -> str:
        """SHA-256 of the values that decide how a training goes on from one of its checkpoints.

        Those of `digest` without the number of epochs, unless the learning rate depends on it.
        """
        values = self.deciding_values()
        if self.scheduler.name not in BOUND:
            del values["trainer"]["epochs"]
        return _hash(values)


def _idle_demo(data: AnyData, typed: AbstractSet[str]) -> str | None:
    """A line on a value of synthetic tissue where it is other tissue."""
    idle = sorted(typed & set(OF_DEMO))
    if idle and not data.is_synthetic:
        return f"{idle[0]} has no effect, since data.root={data.root} is no synthetic tissue"
    return None


def sets_momentum(scheduler: AnyScheduler) -> bool:
    """Whether a scheduler moves the momentum, too."""
    return isinstance(scheduler, CyclicConfig) and scheduler.cycle_momentum is not None


def with_highest_rate(
    optimizer: AnyOptimizer, scheduler: AnyScheduler, max_lr: float, base_lr: float | None = None
) -> tuple[AnyOptimizer, AnyScheduler]:
    """Optimizer and scheduler with another highest rate.

    A cyclic scheduler and that of one cycle set the rate; with any other it is the optimizer's.

    Args:
        optimizer: Whose rate may change.
        scheduler: Likewise.
        max_lr: The highest rate.
        base_lr: The lowest rate of a cyclic scheduler; None keeps its own, if that isn't above.

    Raises:
        IDCError: If a rate isn't above the one that it falls to.
    """
    if isinstance(scheduler, CosineConfig) and scheduler.min_lr >= max_lr:
        raise IDCError(
            f"scheduler.min_lr={scheduler.min_lr:g} isn't below the rate {max_lr:.3g} that it "
            "starts from: lower it"
        )
    rates: dict[str, float] = {"max_lr": max_lr}
    if isinstance(scheduler, CyclicConfig):
        rates["base_lr"] = min(scheduler.base_lr, max_lr) if base_lr is None else base_lr
    if isinstance(scheduler, CyclicConfig | OneCycleConfig):
        return optimizer, parse(AnyScheduler, {**dict(scheduler), **rates}, "scheduler")
    return parse(AnyOptimizer, {**dict(optimizer), "lr": max_lr}, "optimizer"), scheduler


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def deciding(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Of a configuration of `idc-train`, as plain values, those that can change a result."""
    found = {}
    for key, value in values.items():
        name = f"{within}{key}"
        if name not in SHOWN:
            found[key] = deciding(value, f"{name}.") if isinstance(value, Mapping) else value
    return found


class ExploreConfig(CommandConfig):
    """What `idc-explore` takes."""

    command: ClassVar[str] = "explore"

    data: AnyData
    split: AnySplit
    report: ReportConfig
    cache: Path
    seed: Seed

    def idle(self, typed: AbstractSet[str]) -> str | None:
        """As `CommandConfig.idle`."""
        return _idle_demo(self.data, typed)


class CompareConfig(CommandConfig):
    """What `idc-compare` takes."""

    command: ClassVar[str] = "compare"

    folder: Place
    metric: Ranking
    reference: Place | None
    results: JudgeConfig
    seed: Seed


class PrepareConfig(CommandConfig):
    """What `idc-prepare` takes."""

    command: ClassVar[str] = "prepare"

    data: AnyData
    cache: Path
    clean: bool

    def idle(self, typed: AbstractSet[str]) -> str | None:
        """As `CommandConfig.idle`."""
        unread = sorted(key for key in typed if key == "data" or key.startswith("data."))
        if unread and self.clean:
            return f"{unread[0]} has no effect, since clean=true empties the cache: leave it out"
        idle = [key for key in unread if key not in PACKED]
        if idle:
            return f"{idle[0]} has no effect on idc-prepare, which packs all patches: leave it out"
        return _idle_demo(self.data, typed)


class EvaluateConfig(CommandConfig):
    """What `idc-evaluate` takes."""

    command: ClassVar[str] = "evaluate"

    run: Place
    data: AgainDataConfig
    results: AgainResultsConfig
    report: ReportConfig
    cache: Path
    trainer: HardwareConfig

    def idle(self, typed: AbstractSet[str]) -> str | None:
        """As `CommandConfig.idle`."""
        unread = sorted(typed & {"data.on_broken", "data.on_conflict"})
        if unread and self.data.root is None:
            return (
                f"{unread[0]} has no effect, since the run's own data is read as it was in "
                "training: give other data by data.root=<folder>"
            )
        return _idle_sensitivity(self.results.threshold, typed)


class PredictConfig(CommandConfig):
    """What `idc-predict` takes."""

    command: ClassVar[str] = "predict"

    run: Place
    input: Place
    data: InputConfig
    results: PredictResultsConfig
    report: ReportConfig
    cache: Path
    trainer: HardwareConfig


AnyCommand = TypeVar("AnyCommand", bound=CommandConfig)


def read_config(cfg: DictConfig, schema: type[AnyCommand]) -> AnyCommand:
    """Check a composed configuration.

    Args:
        cfg: What Hydra composed from ``conf/`` and the overrides.
        schema: What the command takes.

    Raises:
        IDCError: Naming each key that is unknown, missing or has a value that isn't allowed.
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise IDCError(
            f"configuration: {error.full_key} is missing: {usage(schema.command)}"
        ) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise IDCError(f"configuration: {error.full_key}: {reason}") from error
    config: AnyCommand = parse(schema, values)
    return config


def refuse_misread(config: CommandConfig, overrides: Iterable[str]) -> None:
    """Raise an IDCError if a name was typed that Hydra took for a number, and spells otherwise.

    Of a folder 2024_01_15 it would look for 20240115.
    """
    for override in overrides:
        key, _, text = override.lstrip("+").partition("=")
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part, None)
        read = found if isinstance(found, list | tuple) else [found]
        names = {str(name) for name in read if isinstance(name, str | Path)}
        for word in (each.strip() for each in text.strip("[]").split(",")):
            taken = {name for name in names if _number(name) == _number(word) is not None}
            if taken and word not in names:
                raise IDCError(
                    f"{key}={word} is taken for the number {taken.pop()}: put the name in quotes, "
                    f"'{key}=\"{word}\"'"
                )


def _number(text: str) -> float | None:
    """The number for which Hydra takes a text, if it does."""
    return float(text.replace("_", "")) if NUMBER.fullmatch(text) else None


def refuse_idle(config: CommandConfig, overrides: Iterable[str]) -> None:
    """Raise an IDCError if a value was typed that nothing would use."""
    idle = config.idle({override.partition("=")[0].lstrip("+") for override in overrides})
    if idle is not None:
        raise IDCError(idle)


def parse(schema: Any, values: Any, where: str = "") -> Any:  # noqa: ANN401 - unions are no type
    """Turn plain values into a section, or name all that is wrong with them.

    Args:
        schema: The section's class, or a union of classes.
        values: A mapping of plain values.
        where: The section's place in the configuration, e.g. ``"model"``.

    Returns:
        An instance of the schema.

    Raises:
        IDCError: Naming each key that is unknown, missing or has a value that isn't allowed.
    """
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        command = getattr(schema, "command", "train")
        problems = [_problem(where, values, dict(item), command) for item in error.errors()]
        raise IDCError(f"configuration: {'; '.join(dict.fromkeys(problems))}") from error


def _problem(
    where: str,
    values: Any,  # noqa: ANN401
    item: Mapping[str, Any],
    command: str,
) -> str:
    """One line on one of pydantic's errors, with the key as the user typed it."""
    kind, value = item["type"], item["input"]
    key = ".".join([where, *_typed_key(values, item["loc"], missing=kind == "missing")]).strip(".")
    if kind == "extra_forbidden":
        return unknown_key(key, command)
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_not_found":
        return f"{key}.name is missing"
    if kind == "union_tag_invalid":
        return f"{key}.name={item['ctx']['tag']} should be one of {item['ctx']['expected_tags']}"
    message = str(item["msg"]).removeprefix("Input ").removesuffix(" for <class 'pathlib.Path'>")
    if kind == "value_error":
        return f"{key}: {message.removeprefix('Value error, ')}".removeprefix(": ")
    shown = "" if isinstance(value, Mapping | BaseModel) else f"={_shown(value)}"
    return f"{key}{shown} {message}"


def _typed_key(
    values: Any,  # noqa: ANN401
    location: tuple[str | int, ...],
    *,
    missing: bool,
) -> list[str]:
    """Drop the names of union members that pydantic puts between the keys."""
    keys: list[str] = []
    for index, part in enumerate(location):
        absent = missing and index == len(location) - 1
        if isinstance(values, Mapping) and (part in values or absent):
            keys.append(str(part))
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            keys.append(str(part))
            values = values[part] if part < len(values) else None
    return keys


def _shown(value: object) -> str:
    """A value as it would be typed on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
