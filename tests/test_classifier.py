import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import pytest
import torch
from helpers_model import PATIENTS, TINY, config_of, told, write_tissue
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

import idc_lightning.classifier as classifier
from idc_lightning.classifier import (
    IDCClassifier,
    balanced_weights,
    load_classifier,
    write_decision,
)
from idc_lightning.config import Config
from idc_lightning.data.batches import Batch, Crops
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.decision import UNDECIDED, Decision
from idc_lightning.metrics import idc_probability, patch_metrics
from idc_lightning.results.predictions import predictions_table
from idc_lightning.trainer import build_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


class Run(NamedTuple):
    config: Config
    model: IDCClassifier
    data: IDCDataModule
    trainer: lightning.Trainer
    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def fit(self, ckpt_path: Path | None = None) -> "Run":
        self.trainer.fit(self.model, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True)
        return self


def model_of(config: Config) -> IDCClassifier:
    return IDCClassifier(config.model, config.optimizer, config.scheduler)


def run_of(folder: Path, *overrides: str, callbacks: tuple[Callback, ...] = ()) -> Run:
    config = config_of(*overrides)
    lightning.seed_everything(config.seed, verbose=False)
    trainer = build_trainer(config, folder, interactive=False)
    trainer.callbacks = [*callbacks, *trainer.callbacks]
    data = IDCDataModule(config.data, config.split, seed=config.seed, cache=folder)
    data.setup()
    return Run(config, model_of(config), data, trainer, folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for a small net on six small patients."""
    return *TINY, *write_tissue(tmp_path_factory.mktemp("patients"))


class Record(Callback):
    """The patches that each stage saw, and the last loss of train in each epoch."""

    def __init__(self) -> None:
        self.cells: dict[str, list[int]] = {}
        self.losses: list[float] = []

    def _keep(self, stage: str, batch: Batch) -> None:
        self.cells.setdefault(stage, []).extend(batch["cell"].flatten().tolist())

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: IDCClassifier,
        outputs: object,
        batch: Batch,
        _: int,
    ) -> None:
        self._keep("train", batch)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: IDCClassifier,
        outputs: object,
        batch: Batch,
        _: int,
    ) -> None:
        self._keep("dev", batch)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: IDCClassifier) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


class Fitted(NamedTuple):
    run: Run
    record: Record
    served: list[int]
    logged: dict[str, float]


@pytest.fixture(scope="module")
def fitted(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A training of two epochs; the rows that were served in it; then a test."""
    record, served = Record(), []
    fetch = Crops.__getitems__

    def spy(crops: Crops, numbers: list[int]) -> Batch:
        batch = fetch(crops, numbers)
        served.extend(batch["cell"].flatten().tolist())
        return batch

    run = run_of(
        tmp_path_factory.mktemp("run"),
        *tiny,
        "model.loss.label_smoothing=0.1",
        callbacks=(record,),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Crops, "__getitems__", spy)
        run.fit()
    served = list(served)
    logged = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    (tested,) = run.trainer.test(run.model, datamodule=run.data, verbose=False)
    return Fitted(run, record, served, {**logged, **tested})


def batch_of(grid: int = 1, size: int = 4) -> Batch:
    torch.manual_seed(3)
    cell = torch.arange(size * grid * grid).reshape(size, grid, grid)
    return {
        "image": torch.rand(size, 3, 50 * grid, 50 * grid),
        "shown": cell,
        "cell": cell,
        "label": torch.randint(-1, 2, (size, grid, grid)),
        "patient_id": ["1"] * size,
        "x": torch.ones(size, dtype=torch.int64),
        "y": torch.ones(size, dtype=torch.int64),
    }


# The loss


def test_balanced_weights_are_scikit_learns_and_the_notebooks() -> None:
    labels = np.repeat([0, 1], [20_834, 5_830])
    wanted = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert balanced_weights([20_834, 5_830]).tolist() == pytest.approx(wanted.tolist())
    # The notebook's weights belong to this share of IDC.
    assert [round(w, 4) for w in balanced_weights([717_669, 282_331]).tolist()] == [0.6967, 1.7710]


@pytest.mark.parametrize("grid", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_weighted_cross_entropy_of_labelled_cells(grid: int, smoothing: float) -> None:
    config = config_of(
        *TINY, "model.loss.class_weights=[0.5,2]", f"model.loss.label_smoothing={smoothing}"
    )
    model, batch = model_of(config).eval(), batch_of(grid, size=6)
    assert set(batch["label"].flatten().tolist()) == {-1, 0, 1}
    with torch.no_grad():
        loss = float(model.train_loss(*model._step(batch, 0, "train")))
        logp = torch.log_softmax(model(batch["image"]), dim=-1).double().reshape(-1, 2)
    total = weight_sum = 0.0
    for row, label in zip(logp.tolist(), batch["label"].flatten().tolist(), strict=True):
        if label >= 0:
            weights = (0.5, 2.0)
            total -= (1 - smoothing) * weights[label] * row[label]
            total -= smoothing / 2 * sum(w * p for w, p in zip(weights, row, strict=True))
            weight_sum += weights[label]
    assert loss == pytest.approx(total / weight_sum, rel=1e-5)


@pytest.mark.parametrize(("value", "weights"), [("none", [1.0, 1.0]), ("[0.25,3]", [0.25, 3.0])])
def test_class_weights_that_do_not_depend_on_the_data(value: str, weights: list[float]) -> None:
    model = model_of(config_of(*TINY, f"model.loss.class_weights={value}"))
    assert model.class_weights.tolist() == weights


# A training


def test_each_epoch_sees_each_patch_once(fitted: Fitted) -> None:
    data, cells = fitted.run.data, fitted.record.cells
    train, dev = data.rows("train").tolist(), data.rows("dev").tolist()
    assert (len(train), len(dev)) == (27, 18)
    assert len(cells["train"]) == 2 * 24  # batches of 8, the last one is dropped
    for epoch in (cells["train"][:24], cells["train"][24:]):
        assert len(set(epoch)) == 24
        assert set(epoch) <= set(train)
    assert cells["train"][:24] != cells["train"][24:]
    assert cells["dev"] == dev + dev


def test_data_of_test_are_not_touched_in_training(fitted: Fitted) -> None:
    patients = fitted.run.data.table["patient_id"]
    splits = {PATIENTS[patients.iloc[row]] for row in fitted.served}
    assert splits == {"train", "dev"}


def test_metrics_of_every_stage_are_logged(fitted: Fitted) -> None:
    names = [*patch_metrics(0.5), "loss"]
    wanted = {f"{stage}/{name}" for stage in ("train", "dev", "test") for name in names}
    assert set(fitted.logged) == wanted | {"train/loss_epoch"}
    assert len(set(fitted.record.losses)) == 2


@pytest.mark.parametrize("stage", ["train", "dev", "test"])
def test_logged_metrics_are_those_of_the_kept_logits(fitted: Fitted, stage: str) -> None:
    run = fitted.run
    logged = fitted.logged
    cells, logits = run.model.outputs[stage]
    labels = torch.from_numpy(run.data.table["target"].to_numpy()[cells.numpy()])
    proba = idc_probability(logits).double().numpy()
    assert logged[f"{stage}/f1"] == pytest.approx(f1_score(labels, proba >= 0.5), abs=1e-6)
    weights = balanced_weights([18, 9])
    loss = nn.functional.cross_entropy(logits, labels, weight=weights)  # without smoothing
    name = "train/loss_epoch" if stage == "train" else f"{stage}/loss"
    assert logged[name] == pytest.approx(float(loss), rel=1e-5)
    if stage != "train":
        assert cells.tolist() == run.data.rows(stage).tolist()
        table = predictions_table(run.data.table, cells, logits, UNDECIDED)
        assert set(table["patient_id"]) == {p for p, s in PATIENTS.items() if s == stage}
        assert len(table) == len(cells)


def test_class_weights_are_those_of_train(fitted: Fitted) -> None:
    assert fitted.run.model.class_weights.tolist() == balanced_weights([18, 9]).tolist()


def test_an_interrupted_epoch_leaves_nothing_behind(fitted: Fitted) -> None:
    run = fitted.run
    run.model.eval()._step(batch_of(), 0, "test")
    (again,) = run.trainer.test(run.model, datamodule=run.data, verbose=False)
    assert again == {name: v for name, v in fitted.logged.items() if name.startswith("test/")}


def test_only_what_learns_is_in_the_optimizer(tiny: tuple[str, ...], tmp_path: Path) -> None:
    moved: dict[bool, set[str]] = {}
    for freeze in (True, False):
        run = run_of(
            tmp_path / str(freeze),
            *tiny,
            f"model.freeze_backbone={str(freeze).lower()}",
            "trainer.epochs=1",
        )
        before = {key: value.clone() for key, value in run.model.state_dict().items()}
        run.fit()
        (group,) = run.trainer.optimizers[0].param_groups
        network = run.model.network
        learning = network.head.parameters() if freeze else network.parameters()
        assert {id(p) for p in group["params"]} == {id(p) for p in learning}
        after = run.model.state_dict()
        moved[freeze] = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert not any(key.startswith("network.backbone") for key in moved[True])
    assert "network.head.0.weight" in moved[True]
    assert {"network.backbone.conv1.0.weight", "network.backbone.conv1.1.running_mean"} <= moved[
        False
    ]


def test_the_scheduler_is_stepped_with_each_batch(tiny: tuple[str, ...], tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    cyclic = ("scheduler=cyclic", "scheduler.base_lr=0.001", "scheduler.max_lr=0.004")
    run_of(tmp_path, *tiny, *cyclic, "trainer.epochs=3", callbacks=(Rates(),)).fit()
    # Three batches an epoch, so that the half-cycle of one epoch has three steps.
    rise = [0.001, 0.002, 0.003]
    assert rates == pytest.approx([*rise, 0.004, 0.003, 0.002, *rise])


def test_the_same_seed_gives_the_same_weights(tiny: tuple[str, ...], tmp_path: Path) -> None:
    runs = [run_of(tmp_path / str(n), *tiny, "trainer.epochs=1").fit() for n in range(2)]
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


# BatchNorm of a frozen backbone


def test_adapt_takes_the_statistics_of_train_once(tiny: tuple[str, ...], tmp_path: Path) -> None:
    frozen = ("model.freeze_backbone=true", "model.frozen_batchnorm=adapt", "data.drop_last=false")
    model = run_of(tmp_path, *tiny, *frozen).fit().model
    data = run_of(tmp_path / "data", *tiny).data
    pixels = torch.from_numpy(data.store.read(data.rows("train"))).permute(0, 3, 1, 2)
    convolution, layer = model.network.backbone.conv1[:2]
    with torch.no_grad():
        values = convolution(model.network.normalize(pixels.float() / 255))
    mean, variance = values.mean(dim=(0, 2, 3)), values.var(dim=(0, 2, 3))
    torch.testing.assert_close(layer.running_mean, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer.running_var, variance, rtol=5e-3, atol=1e-5)
    # One pass by batches of 10, though there were two epochs.
    assert int(layer.num_batches_tracked) == 3


def test_imagenet_statistics_are_kept(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = run_of(tmp_path, *tiny, "model.freeze_backbone=true", "trainer.epochs=1")
    layer = run.model.network.backbone.conv1[1]
    layer.running_mean += 3
    run.fit()
    assert set(layer.running_mean.tolist()) == {3.0}


# Pretrained weights and resuming


def test_a_training_starts_from_the_pretrained_weights(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(9)
    state = {
        k: v + 0.01 for k, v in model_of(config_of(*tiny)).network.backbone.state_dict().items()
    }
    torch.save(state, tmp_path / "weights.pth")
    weights = ("model.freeze_backbone=true", f"model.weights={tmp_path}/weights.pth")
    run = run_of(tmp_path / "run", *tiny, *weights, "trainer.epochs=1").fit()
    loaded = run.model.network.backbone.state_dict()
    for key, value in loaded.items():
        if value.is_floating_point():
            assert torch.equal(value, state[key]), key


def test_weights_that_cannot_be_had_are_told(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = run_of(tmp_path, *tiny, f"model.weights={tmp_path}/absent.pth")
    with told(f"no such checkpoint: {tmp_path}/absent.pth"):
        run.fit()


class Keep(Callback):
    """Copies the last checkpoint of the first epoch."""

    def __init__(self, to: Path) -> None:
        self.to = to

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.current_epoch == 1 and not self.to.exists():
            shutil.copy(trainer.checkpoint_callback.last_model_path, self.to)  # type: ignore[union-attr]


@pytest.mark.parametrize("scheduler", ["onecycle", "cyclic", "cosine", "none"])
def test_a_resumed_training_ends_as_one_that_was_not_interrupted(
    tiny: tuple[str, ...], tmp_path: Path, scheduler: str
) -> None:
    often = "callbacks.checkpoint.last_every=0"
    same = (*tiny, f"scheduler={scheduler}", "model.head.dropout=0", often)
    whole = run_of(tmp_path / "whole", *same, callbacks=(Keep(tmp_path / "first.ckpt"),)).fit()
    resumed = run_of(tmp_path / "resumed", *same, "seed=0")
    nn.init.constant_(resumed.model.network.head[0].weight, 5)
    resumed.fit(ckpt_path=tmp_path / "first.ckpt")
    wanted = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)


def test_a_resumed_training_keeps_what_the_checkpoint_brings(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = (
        *tiny,
        "model.freeze_backbone=true",
        "model.frozen_batchnorm=adapt",
        "scheduler=none",
    )
    first = run_of(tmp_path / "first", *frozen, "trainer.epochs=1").fit()
    (tmp_path / "gone.pth").touch()  # it can't be read any more

    def refuse(*_: object) -> None:
        raise AssertionError("the statistics were taken again")

    monkeypatch.setattr(classifier, "adapt_batchnorm", refuse)
    resumed = run_of(tmp_path / "second", *frozen, f"model.weights={tmp_path}/gone.pth")
    resumed.fit(ckpt_path=first.checkpoints / "last.ckpt")
    assert resumed.trainer.current_epoch == 2
    wanted = first.model.network.backbone.state_dict()
    for key, value in resumed.model.network.backbone.state_dict().items():
        assert torch.equal(value, wanted[key]), key
    assert torch.equal(resumed.model.class_weights, first.model.class_weights)


def test_another_split_is_refused_when_resuming(
    tiny: tuple[str, ...], fitted: Fitted, tmp_path: Path
) -> None:
    swapped = (tmp_path / "other.csv").write_text(
        "patient_id,split\n101,dev\n102,train\n103,train\n104,train\n105,dev\n9,test\n"
    )
    assert swapped
    run = run_of(tmp_path, *tiny, f"split.path={tmp_path}/other.csv")
    with told("another split of the patients"):
        run.fit(ckpt_path=fitted.run.checkpoints / "last.ckpt")


# A training that diverges


DIVERGING = ("scheduler=none", "optimizer.lr=1e30", "optimizer.momentum=0.9")


def test_a_loss_that_is_not_finite_is_told(tiny: tuple[str, ...], tmp_path: Path) -> None:
    run = run_of(tmp_path, *tiny, *DIVERGING)
    with told("diverged: the loss is nan at step 1 (epoch 0)", "learning rate 1e+30", "max_lr"):
        run.fit()


def test_logits_that_are_not_finite_are_told_at_the_end_of_the_epoch(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, whose loss isn't waited for.
    monkeypatch.setattr(IDCClassifier, "_check_finite", lambda *_: None)
    run = run_of(tmp_path, *tiny, *DIVERGING)
    with told("diverged: logits of dev are not finite after step 3 (epoch 0)", "1e+30"):
        run.fit()
    assert not list(run.checkpoints.glob("*.ckpt"))


# Checkpoints


def plain(value: object) -> bool:
    """Whether nothing but tensors and plain values is in it."""
    if isinstance(value, dict):
        return all(plain(key) and plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str, Tensor)


def test_a_decision_is_kept_in_the_checkpoint_and_nothing_else_of_it_changes(
    fitted: Fitted, tmp_path: Path
) -> None:
    path = tmp_path / "best.ckpt"
    shutil.copy(fitted.run.checkpoints / "best.ckpt", path)
    before = torch.load(path, weights_only=True)
    decision = Decision(temperature=1.7, bias=-0.1, threshold=0.123456789012345)
    assert not load_classifier(path).decided
    write_decision(path, decision)
    model = load_classifier(path)
    assert model.decided
    assert model.decision == decision
    after = torch.load(path, weights_only=True)
    assert plain(after)
    assert after["hyper_parameters"].pop("decision") == asdict(decision)
    assert before["hyper_parameters"].pop("decision") is None
    assert before["hyper_parameters"] == after["hyper_parameters"]
    for name, weight in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], weight)
    assert after["optimizer_states"]
    images = [content["IDCDataModule"]["seen"].pop("images") for content in (before, after)]
    assert torch.equal(*images)
    assert after["IDCDataModule"] == before["IDCDataModule"]
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


def test_a_model_takes_a_decision_into_its_next_checkpoints(tiny: tuple[str, ...]) -> None:
    model = model_of(config_of(*tiny))
    assert model.decision == UNDECIDED
    decision = Decision(temperature=2.0, bias=0.5, threshold=0.25)
    model.decide_by(decision)
    assert model.decision == decision
    assert model.hparams["decision"] == asdict(decision)


@pytest.mark.parametrize("name", ["best", "last"])
def test_a_checkpoint_loads_alone_and_gives_the_same_logits(fitted: Fitted, name: str) -> None:
    path = fitted.run.checkpoints / f"{name}.ckpt"
    content = torch.load(path, weights_only=True)
    assert plain(content)
    model = IDCClassifier.load_from_checkpoint(path, weights_only=True).eval()
    assert model.hparams["decision"] is None
    assert model.model_config == fitted.run.config.model
    assert model.optimizer_config == fitted.run.config.optimizer
    assert model.scheduler_config == fitted.run.config.scheduler
    assert model.class_weights.tolist() == balanced_weights([18, 9]).tolist()
    image = batch_of()["image"]
    with torch.inference_mode():
        logits = load_classifier(path)(image)
        assert torch.equal(logits, model(image))
        if name == "last":
            assert torch.equal(logits, fitted.run.model.eval()(image))
    assert not load_classifier(path).training


def edited(fitted: Fitted, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the checkpoint with other content."""
    content = torch.load(fitted.run.checkpoints / "best.ckpt", weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def test_checkpoint_of_another_architecture_is_told(fitted: Fitted, tmp_path: Path) -> None:
    def other_head(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["model"]["head"]["hidden"] = [9]

    def other_backbone(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["model"]["backbone"] = "squeezenet1_1"

    for change in (other_head, other_backbone):
        path = edited(fitted, tmp_path / "other.ckpt", change)
        with told(f"{path} is of another architecture or version: "):
            load_classifier(path)


def test_checkpoint_of_another_version_is_told(fitted: Fitted, tmp_path: Path) -> None:
    def renamed(content: dict[str, Any]) -> None:
        head = content["hyper_parameters"]["model"]["head"]
        head["droput"] = head.pop("dropout")

    path = edited(fitted, tmp_path / "renamed.ckpt", renamed)
    with told(f"{path} is of another", "model.head.dropout is missing", "model.head.droput"):
        load_classifier(path)

    def without(content: dict[str, Any]) -> None:
        del content["hyper_parameters"]["optimizer"]

    path = edited(fitted, tmp_path / "without.ckpt", without)
    with told(f"{path} is of another", "optimizer"):
        load_classifier(path)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {}},
        {"hyper_parameters": {"model": {}}},
        {"hyper_parameters": {"lr": 0.1}, "state_dict": {}},
        {"hyper_parameters": [1], "state_dict": {}},
        {"hyper_parameters": {"model": {}}, "state_dict": [1]},
        {"hyper_parameters": {"model": 5}, "state_dict": {}},
        {"hyper_parameters": {"model": {}}, "state_dict": {}, "pytorch-lightning_version": "2.6.0"},
        {"fc.weight": torch.zeros(2, 2)},
    ],
)
def test_foreign_checkpoint_is_told(tmp_path: Path, content: object) -> None:
    path = tmp_path / "foreign.ckpt"
    torch.save(content, path)
    with told(str(path)):
        load_classifier(path)


def test_broken_weights_are_told(fitted: Fitted, tmp_path: Path) -> None:
    def no_tensor(content: dict[str, Any]) -> None:
        content["state_dict"]["network.head.0.bias"] = 5

    path = edited(fitted, tmp_path / "broken.ckpt", no_tensor)
    with told(str(path)):
        load_classifier(path)


def test_truncated_and_absent_checkpoints_are_told(fitted: Fitted, tmp_path: Path) -> None:
    path = tmp_path / "part.ckpt"
    content = (fitted.run.checkpoints / "best.ckpt").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with told(f"can't read {path}", "damaged"):
        load_classifier(path)
    with told(f"no such checkpoint: {tmp_path}/absent.ckpt"):
        load_classifier(tmp_path / "absent.ckpt")


class Trap:
    """Stops the program when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return exit, (3,)


def test_checkpoint_with_an_object_is_never_run(fitted: Fitted, tmp_path: Path) -> None:
    def trapped(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["trap"] = Trap()

    path = edited(fitted, tmp_path / "trap.ckpt", trapped)
    with told(f"can't read {path}", "could run code"):
        load_classifier(path)


def test_wrong_values_are_told_with_their_section() -> None:
    config = config_of(*TINY)
    values = config.model.model_dump(mode="json")
    values["head"]["hidden"] = [0]
    with told("model.head.hidden.0=0"):
        IDCClassifier(values, config.optimizer, config.scheduler)
    values["head"]["hidden"] = [4]
    values["backbone"] = "resnt18"
    with told("model.backbone=resnt18", "did you mean resnet18"):
        IDCClassifier(values, config.optimizer, config.scheduler)


def test_logits_have_the_shape_of_the_grid() -> None:
    model = model_of(config_of(*TINY)).eval()
    with torch.inference_mode():
        assert model(torch.rand(2, 3, 150, 150)).shape == (2, 3, 3, 2)
    assert math.isclose(float(model.class_weights.sum()), 2)
