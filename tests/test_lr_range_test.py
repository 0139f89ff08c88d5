import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers_model import TINY, config_of, told, write_tissue
from helpers_runs import QUICK
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from PIL import Image
from torch import Tensor

import idc_lightning.lr_range_test as lr_range_test
from idc_lightning.callbacks import Curves
from idc_lightning.classifier import IDCClassifier
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.figures.learning_rate import draw_range_test
from idc_lightning.lr_bounds import Proposal
from idc_lightning.lr_range_test import LRRangeTest, RangeTestResult
from idc_lightning.train import train
from idc_lightning.trainer import build_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")

SEARCH = (
    "callbacks=lr_range_test",
    "callbacks.progress=none",
    "callbacks.lr_range_test.ramp=exponential",
    "callbacks.lr_range_test.start=1e-5",
    "callbacks.lr_range_test.end=10",
    "callbacks.lr_range_test.steps=60",
    "data.batch_size=16",
)
BRIEF = (*SEARCH, "callbacks.lr_range_test.steps=12")
CYCLE = ("scheduler=cyclic", "scheduler.half_cycle=3", "scheduler.unit=steps")
PROPOSED = Proposal(1e-4, 3e-2)


class Rates(Callback):
    """The rate with which each step of the training itself was made."""

    def __init__(self) -> None:
        self.used: list[float] = []
        self.training = False

    def on_train_epoch_start(self, *_: object) -> None:
        self.training = True

    def on_before_optimizer_step(
        self, trainer: object, module: object, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.training:
            self.used.append(optimizer.param_groups[0]["lr"])


class Run:
    """A training with the callbacks of its configuration."""

    def __init__(self, folder: Path, *overrides: str, ckpt_path: Path | None = None) -> None:
        config = config_of(*overrides)
        lightning.seed_everything(config.seed, verbose=False)
        self.folder = folder
        self.rates = Rates()
        self.trainer: Any = build_trainer(config, folder, interactive=False)
        self.trainer.callbacks.append(self.rates)
        self.data = IDCDataModule(config.data, config.split, seed=config.seed, cache=folder)
        self.model = IDCClassifier(config.model, config.optimizer, config.scheduler)
        self.trainer.fit(self.model, datamodule=self.data, ckpt_path=ckpt_path, weights_only=True)

    @property
    def test(self) -> LRRangeTest:
        (found,) = [c for c in self.trainer.callbacks if isinstance(c, LRRangeTest)]
        return found

    @property
    def result(self) -> RangeTestResult:
        assert self.test.result is not None
        return self.test.result

    @property
    def last(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for a small net on six patients of 48 patches."""
    return *TINY, *write_tissue(tmp_path_factory.mktemp("patients"), healthy=24, idc=24)


@pytest.fixture(scope="module")
def cycled(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose cycles follow a real search."""
    return Run(tmp_path_factory.mktemp("run"), *tiny, *SEARCH, *CYCLE, "logger=default")


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every curve proposes the same."""
    monkeypatch.setattr(lr_range_test, "propose_bounds", lambda *_: PROPOSED)


# The rates that the training uses


def test_the_cycle_runs_between_the_proposed_bounds(cycled: Run) -> None:
    result = cycled.result
    assert result.applied
    assert result.base_lr is not None
    assert result.max_lr is not None
    assert 1e-5 <= result.base_lr < result.max_lr < 10
    # Half a cycle takes 3 of the 9 steps of each epoch.
    assert len(cycled.rates.used) == 18
    between = np.linspace(result.base_lr, result.max_lr, 4)
    cycle = [*between[:3], *between[:0:-1]]
    assert cycled.rates.used == pytest.approx(cycle * 3)


def test_one_cycle_reaches_the_proposed_maximum(
    tiny: tuple[str, ...], tmp_path: Path, proposed: None
) -> None:
    run = Run(tmp_path, *tiny, *BRIEF, "scheduler=onecycle", "scheduler.warmup=0.5")
    assert max(run.rates.used) == pytest.approx(3e-2)
    assert run.model.hparams["scheduler"]["max_lr"] == 3e-2
    assert run.model.hparams["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize("scheduler", ["cosine", "none"])
def test_else_the_optimizer_takes_the_proposed_maximum(
    tiny: tuple[str, ...], tmp_path: Path, proposed: None, scheduler: str
) -> None:
    run = Run(tmp_path, *tiny, *BRIEF, f"scheduler={scheduler}", "optimizer=adamw")
    assert run.rates.used[0] == 3e-2
    assert (run.rates.used[-1] < 1e-3) == (scheduler == "cosine")
    assert run.model.hparams["optimizer"]["lr"] == 3e-2
    assert run.model.hparams["scheduler"]["name"] == scheduler


def test_rates_that_do_not_fit_the_scheduler_are_told() -> None:
    def model(*overrides: str) -> IDCClassifier:
        config = config_of(*TINY, *overrides)
        return IDCClassifier(config.model, config.optimizer, config.scheduler)

    with told("scheduler.min_lr=0.05 isn't below the rate 0.03"):
        model("scheduler=cosine", "scheduler.min_lr=0.05").set_rates(1e-4, 3e-2)
    with told("base_lr=0.03 is above max_lr=0.0001"):
        model("scheduler=cyclic").set_rates(3e-2, 1e-4)


# All of it is undone


UNDONE = ("scheduler=onecycle", "optimizer.momentum=0.9", "model.head.dropout=0.5")


@pytest.mark.parametrize(
    "more",
    [
        ("callbacks.ema_decay=0.9",),
        ("data.workers=1", "data.augment.stain_jitter=0.2", "trainer.gradient_clip=0.5"),
        ("model.freeze_backbone=true", "model.frozen_batchnorm=adapt", "optimizer=adamw"),
    ],
)
def test_a_test_that_is_not_applied_changes_no_weight(
    tiny: tuple[str, ...], tmp_path: Path, more: tuple[str, ...]
) -> None:
    overrides = [o for o in (*UNDONE, *more) if "momentum" not in o or "adamw" not in str(more)]
    batch = "data.batch_size=16"
    plain = Run(tmp_path / "plain", *tiny, batch, *overrides)
    tested = Run(
        tmp_path / "tested", *tiny, *SEARCH, "callbacks.lr_range_test.apply=false", *overrides
    )
    assert not any(isinstance(callback, LRRangeTest) for callback in plain.trainer.callbacks)
    assert not tested.result.applied
    assert len(pd.read_csv(tmp_path / "tested" / "learning_rate_search.csv")) > 12
    assert tested.rates.used == plain.rates.used
    states = [torch.load(run.last, weights_only=True) for run in (plain, tested)]
    for key in ("state_dict", "optimizer_states", "current_model_state", "averaging_state"):
        assert same(*(state.get(key) for state in states)), key
    assert same(plain.model.state_dict(), tested.model.state_dict())
    assert torch.equal(plain.model.outputs["train"][0], tested.model.outputs["train"][0])


def same(one: Any, other: Any) -> bool:
    """Whether two parts of checkpoints are equal to the last bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_the_test_itself_learns(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """So that it matters that it is undone."""
    seen: list[dict[str, Tensor]] = []
    search = LRRangeTest._search

    def spy(self: LRRangeTest, trainer: Any, module: IDCClassifier) -> pd.DataFrame:
        seen.append({k: v.clone() for k, v in module.state_dict().items()})
        curve = search(self, trainer, module)
        seen.append({k: v.clone() for k, v in module.state_dict().items()})
        return curve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LRRangeTest, "_search", spy)
        Run(tmp_path, *tiny, *SEARCH, "trainer.epochs=1")
    before, after = seen
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"network.head.0.weight", "network.backbone.conv1.0.weight"} <= moved
    assert {
        "network.backbone.conv1.1.running_mean",
        "network.backbone.conv1.1.num_batches_tracked",
    } <= moved


def test_the_scale_of_the_loss_is_undone() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    trainer: Any = lightning.Trainer(accelerator="cpu", plugins=[plugin], logger=False)
    config = config_of(*TINY)
    model = IDCClassifier(config.model, config.optimizer, config.scheduler)
    scaler.scale(torch.ones(1))
    with lr_range_test._undone(trainer, model):
        scaler.update(8.0)
    assert scaler.get_scale() == 1024.0


# What it leaves


def test_the_curve_is_written(cycled: Run) -> None:
    curve = pd.read_csv(cycled.folder / "learning_rate_search.csv")
    assert list(curve) == ["step", "lr", "loss", "smoothed"]
    assert curve["step"].tolist() == list(range(len(curve)))
    wanted = np.geomspace(1e-5, 10, 60)[: len(curve)]
    assert curve["lr"].to_numpy() == pytest.approx(wanted, rel=1e-6)
    smoothed = curve["loss"].ewm(alpha=0.2, adjust=False).mean()
    assert curve["smoothed"].to_numpy() == pytest.approx(smoothed.to_numpy(), rel=1e-6)
    # It stopped where it should, and not before.
    over = curve["smoothed"] > 4 * curve["smoothed"].cummin()
    assert not over[:-1].any()
    assert len(curve) == 60 or over.iloc[-1]


def test_the_picture_is_drawn(cycled: Run) -> None:
    picture = cycled.test.picture
    assert picture is not None
    assert picture.path == cycled.folder / "figures" / "learning_rate_search.png"
    with Image.open(picture.path) as image:
        assert image.width > 2.5 * image.height
    assert "lowest point" in picture.caption


def test_the_new_rates_are_logged(cycled: Run) -> None:
    bounds = {"base_lr": cycled.result.base_lr, "max_lr": cycled.result.max_lr}
    for path in (cycled.folder / "hparams.yaml", cycled.folder / "tensorboard" / "hparams.yaml"):
        logged = yaml.safe_load(path.read_text())["scheduler"]
        assert {name: logged[name] for name in bounds} == bounds
    curves = pd.read_csv(cycled.folder / "metrics.csv")["lr-SGD"].dropna()
    assert curves.tolist() == pytest.approx(cycled.rates.used)
    kinds = [type(callback) for callback in cycled.trainer.callbacks]
    assert kinds.index(LRRangeTest) < kinds.index(Curves)


def test_one_line_tells_the_proposal(
    tiny: tuple[str, ...], tmp_path: Path, proposed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Run(tmp_path, *tiny, *BRIEF, *CYCLE, "trainer.epochs=1")
    line = "learning rate range test: base 0.0001, max 0.03, "
    assert f"{line}applied as both bounds of the cycle\n" in capsys.readouterr().out
    Run(tmp_path, *tiny, *BRIEF, "callbacks.lr_range_test.apply=false", "trainer.epochs=1")
    told_so = f"{line}not applied (callbacks.lr_range_test.apply=false)\n"
    assert told_so in capsys.readouterr().out


def test_without_a_fall_the_configured_rates_stay(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = ("callbacks.lr_range_test.start=1e-9", "callbacks.lr_range_test.end=1e-8")
    run = Run(tmp_path, *tiny, *BRIEF, *flat, *CYCLE, "trainer.epochs=1")
    assert (run.result.base_lr, run.result.max_lr, run.result.applied) == (None, None, False)
    printed = capsys.readouterr().out
    assert "range test: no proposal, the configured rates stay: the loss did not fall" in printed
    assert max(run.rates.used) == pytest.approx(0.006)
    assert run.model.hparams["scheduler"]["max_lr"] == 0.006
    assert (tmp_path / "figures" / "learning_rate_search.png").is_file()


def test_a_search_takes_an_epoch_unless_told(tiny: tuple[str, ...], tmp_path: Path) -> None:
    Run(
        tmp_path,
        *tiny,
        *SEARCH,
        "callbacks.lr_range_test.steps=null",
        "callbacks.lr_range_test.end=1e-4",
        "trainer.epochs=1",
    )
    assert len(pd.read_csv(tmp_path / "learning_rate_search.csv")) == 9


def test_a_loss_that_is_not_finite_ends_the_search(tiny: tuple[str, ...], tmp_path: Path) -> None:
    wild = ("callbacks.lr_range_test.start=1e25", "callbacks.lr_range_test.end=1e30")
    run = Run(tmp_path, *tiny, *SEARCH, *wild, "trainer.epochs=1")
    curve = pd.read_csv(tmp_path / "learning_rate_search.csv")
    assert len(curve) < 10
    assert not math.isfinite(curve["loss"].iloc[-1]) or curve["smoothed"].iloc[-1] > 4
    assert np.isfinite(curve["loss"][:-1]).all()
    assert "lower its start if the loss diverged" in run.result.note
    # The training that follows doesn't know of it.
    assert all(bool(torch.isfinite(weight).all()) for weight in run.model.state_dict().values())


@pytest.mark.parametrize("last", [0.9, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_any_curve_can_be_drawn(tmp_path: Path, ramp: Any, last: float) -> None:
    for number in (1, 40):
        loss = [*np.linspace(0.8, 0.4, number), last]
        columns = {"step": range(number + 1), "lr": np.linspace(1e-6, 0.1, number + 1)}
        curve = pd.DataFrame({**columns, "loss": loss, "smoothed": loss})
        for bounds in (None, (1e-6, 0.1)):
            picture = draw_range_test(tmp_path / "a.png", curve, ramp=ramp, bounds=bounds)
            assert picture.path.is_file()
            assert ("No bounds" in picture.caption) == (bounds is None)


# Resuming


def test_a_resumed_training_goes_on_with_the_found_rates(
    cycled: Run,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = torch.load(cycled.last, weights_only=True)
    rates = content["hyper_parameters"]["scheduler"]
    bounds = cycled.result.base_lr, cycled.result.max_lr
    assert (rates["base_lr"], rates["max_lr"]) == bounds
    assert type(rates["base_lr"]) is type(rates["max_lr"]) is float

    def refuse(*_: object) -> None:
        raise AssertionError("the test was made again")

    monkeypatch.setattr(LRRangeTest, "_search", refuse)
    overrides = (*tiny, *SEARCH, *CYCLE, "trainer.epochs=4")
    resumed = Run(tmp_path, *overrides, ckpt_path=cycled.last)
    assert "range test: left out, since a resumed training" in capsys.readouterr().out
    assert resumed.rates.used == pytest.approx(cycled.rates.used)
    assert resumed.result == cycled.result
    again = torch.load(resumed.last, weights_only=True)["hyper_parameters"]["scheduler"]
    assert (again["base_lr"], again["max_lr"]) == bounds
    assert not (tmp_path / "learning_rate_search.csv").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_of_a_head_on_features_are_clipped(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("idc_lightning.trainer.has_bf16", lambda _: True)
    frozen = (*tiny, *BRIEF, "model.freeze_backbone=true", "trainer.epochs=1", *QUICK)
    frozen = (*frozen, f"trainer.precision={precision}")
    still = ("callbacks.lr_range_test.start=1e-13", "callbacks.lr_range_test.end=1e-12")
    clipped = ("trainer.gradient_clip=1e-9",)
    losses = {}
    for name, more in {"clipped": clipped, "still": still, "free": ()}.items():
        (tmp_path / name).mkdir()
        train(config_of(*frozen, *more), tmp_path / name)
        losses[name] = pd.read_csv(tmp_path / name / "learning_rate_search.csv")["loss"]
    assert losses["clipped"].tolist() == pytest.approx(losses["still"].tolist(), abs=1e-4)
    assert abs(losses["free"].iloc[-1] - losses["still"].iloc[-1]) > 0.01
