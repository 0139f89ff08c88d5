from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from helpers_model import TINY, config_of, told
from helpers_scripted import Scripted, batches, fit
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler

from idc_lightning.callbacks import Curves, EpochLines, Throughput
from idc_lightning.config import CallbacksConfig, TrainerConfig
from idc_lightning.loggers import Table, build_loggers
from idc_lightning.trainer import (
    build_callbacks,
    build_profiler,
    build_trainer,
    has_bf16,
    progress_kind,
    resolve_accelerator,
    resolve_precision,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


def callbacks_config(*overrides: str) -> CallbacksConfig:
    return config_of(*overrides).callbacks


def kinds(callbacks: Sequence[object]) -> set[type]:
    return {type(callback) for callback in callbacks}


# Hardware and precision


def pretend(monkeypatch: pytest.MonkeyPatch, *, gpus: int, bf16: bool = False) -> None:
    """Let torch report other hardware."""

    def supported(including_emulation: bool = True) -> bool:
        return bf16 or including_emulation

    able = {"avx512_bf16": bf16, "avx2": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)


def hardware(accelerator: str = "auto", precision: str = "auto") -> TrainerConfig:
    return config_of(
        f"trainer.accelerator={accelerator}",
        f"trainer.precision={precision}",
    ).trainer


@pytest.mark.parametrize(
    ("accelerator", "gpus", "found"),
    [("auto", 0, "cpu"), ("auto", 1, "gpu"), ("cpu", 1, "cpu"), ("gpu", 4, "gpu")],
)
def test_accelerator_is_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, gpus: int, found: str
) -> None:
    pretend(monkeypatch, gpus=gpus)
    assert resolve_accelerator(hardware(accelerator)) == found


def test_an_absent_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=0)
    with told(
        "trainer.accelerator=gpu, but no CUDA GPU is present", "take trainer.accelerator=cpu"
    ):
        resolve_accelerator(hardware("gpu"))


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    for bf16, found in ((True, "bf16-mixed"), (False, "32-true")):
        pretend(monkeypatch, gpus=1, bf16=bf16)
        assert has_bf16(accelerator) == bf16
        assert resolve_precision(hardware(), accelerator) == found
        assert resolve_precision(hardware(precision="32-true"), accelerator) == "32-true"
    pretend(monkeypatch, gpus=1, bf16=True)
    asked = hardware(precision="bf16-mixed")
    assert resolve_precision(asked, accelerator) == "bf16-mixed"


def test_precision_that_the_hardware_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, gpus=1)
    for accelerator in ("cpu", "gpu"):
        with told("trainer.precision=bf16-mixed", accelerator.upper(), "32-true"):
            resolve_precision(hardware(precision="bf16-mixed"), accelerator)
    with told("trainer.precision=16-mixed needs a GPU"):
        resolve_precision(hardware(precision="16-mixed"), "cpu")
    assert resolve_precision(hardware(precision="16-mixed"), "gpu") == "16-mixed"


# Parts of the Trainer


def test_the_trainer_takes_the_configured_values(tmp_path: Path) -> None:
    config = config_of(
        *TINY,
        "trainer.epochs=3",
        "trainer.gradient_clip=0.5",
        "trainer.log_every_n_steps=7",
        "logger=default",
        "callbacks.progress=auto",
    )
    trainer: Any = build_trainer(config, tmp_path, interactive=False)
    assert trainer.max_epochs == 3
    assert trainer.gradient_clip_val == 0.5
    assert trainer.log_every_n_steps == 7
    assert trainer.precision == "32-true"
    assert trainer.accelerator.__class__.__name__ == "CPUAccelerator"
    assert trainer.num_sanity_val_steps == 0
    assert kinds(trainer.loggers) == {TensorBoardLogger, Table}
    assert {Throughput, EpochLines, Curves} <= kinds(trainer.callbacks)
    assert trainer.checkpoint_callback.dirpath == str(tmp_path / "checkpoints")
    assert trainer.checkpoint_callback.monitor == "dev/f1"


def test_a_gpu_that_is_absent_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=0)
    with told("trainer.accelerator=gpu"):
        build_trainer(config_of("trainer=gpu"), tmp_path, interactive=False)
    assert not list(tmp_path.iterdir())


def test_without_loggers_nothing_is_logged(tmp_path: Path) -> None:
    trainer: Any = build_trainer(config_of(*TINY), tmp_path, interactive=True)
    assert trainer.loggers == []
    assert not kinds(trainer.callbacks) & {Curves, EpochLines, RichProgressBar}


@pytest.mark.parametrize(
    ("tensorboard", "csv", "made"),
    [
        (True, True, {TensorBoardLogger, Table}),
        (True, False, {TensorBoardLogger}),
        (False, True, {Table}),
        (False, False, set()),
    ],
)
def test_loggers_write_into_the_run_folder(
    tmp_path: Path, tensorboard: bool, csv: bool, made: set[type]
) -> None:
    config = config_of(f"logger.tensorboard={tensorboard}", f"logger.csv={csv}").logger
    loggers = build_loggers(config, tmp_path, first_step=0)
    assert kinds(loggers) == made
    for logger in loggers:
        logger.log_metrics({"dev/f1": 0.5}, step=1)
        logger.save()
        logger.finalize("success")
    assert (tmp_path / "metrics.csv").is_file() == csv
    assert bool(list(tmp_path.glob("tensorboard/events*"))) == tensorboard


def test_profilers() -> None:
    assert build_profiler(config_of().trainer) is None
    assert isinstance(build_profiler(config_of("debug=profile").trainer), SimpleProfiler)
    advanced = config_of("trainer.profiler=advanced").trainer
    assert isinstance(build_profiler(advanced), AdvancedProfiler)


@pytest.mark.parametrize("interactive", [True, False])
def test_kinds_of_progress(interactive: bool) -> None:
    for kind in ("rich", "plain", "none"):
        config = callbacks_config(f"callbacks.progress={kind}")
        assert progress_kind(config, interactive=interactive) == kind
    found = progress_kind(callbacks_config(), interactive=interactive)
    assert found == ("rich" if interactive else "plain")


def test_callbacks_follow_the_configuration(tmp_path: Path) -> None:
    def made(*overrides: str, progress: str = "none", logs: bool = False) -> list[Callback]:
        return made_for(callbacks_config(*overrides), tmp_path, progress, logs=logs)

    optional = {EarlyStopping, Curves, RichProgressBar, EpochLines}
    assert not kinds(made()) & optional
    assert kinds(made(progress="rich")) & optional == {RichProgressBar}
    assert kinds(made(progress="plain", logs=True)) & optional == {EpochLines, Curves}
    early = ("callbacks=early_stopping", "callbacks.early_stopping.patience=7")
    (stopping,) = [c for c in made(*early) if isinstance(c, EarlyStopping)]
    assert (stopping.monitor, stopping.mode, stopping.patience) == ("dev/loss", "min", 7)


# What callbacks do


def made_for(
    config: CallbacksConfig, folder: Path, progress: str = "none", *, logs: bool = False
) -> list[Callback]:
    sweep = config_of().sweep
    return build_callbacks(config, folder, progress, course="", sweep=sweep, logs=logs, learns=True)


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("dev/f1", [0.2, 0.9, 0.4, 0.3], 1),
        ("dev/loss", [0.1, 0.9, 0.4, 0.3], 0),
        ("dev/auroc", [0.1, 0.2, 0.3, 0.4], 3),
    ],
)
def test_best_is_the_best_epoch_and_last_the_last(
    tmp_path: Path, name: str, values: list[float], best: int
) -> None:
    config = callbacks_config(f"callbacks.checkpoint.monitor={name}")
    trainer = fit(tmp_path, made_for(config, tmp_path), name, values)
    folder = tmp_path / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    written = {n: torch.load(folder / f"{n}.ckpt", weights_only=True) for n in ("best", "last")}
    assert written["best"]["epoch"] == best
    assert written["last"]["epoch"] == len(values) - 1
    assert trainer.checkpoint_callback.best_model_path == str(folder / "best.ckpt")  # type: ignore[union-attr]
    (state,) = [v for k, v in written["last"]["callbacks"].items() if "monitor" in k]
    assert float(state["best_model_score"]) == pytest.approx(values[best])


def test_a_resumed_training_remembers_the_best_epoch(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return made_for(callbacks_config(), tmp_path)

    folder = tmp_path / "checkpoints"
    fit(tmp_path, callbacks(), "dev/f1", [0.2, 0.9, 0.4])
    fit(tmp_path, callbacks(), "dev/f1", [0, 0, 0, 0.5], ckpt_path=folder / "last.ckpt")
    assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == 1
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 3
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize(("seconds", "written"), [(0, 12), (1000, 1)])
def test_the_last_is_written_at_the_end_and_not_too_often_before(
    tmp_path: Path, seconds: int, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    save = lightning.Trainer.save_checkpoint
    monkeypatch.setattr(
        lightning.Trainer,
        "save_checkpoint",
        lambda self, path, *rest, **more: (names.append(Path(path).name), save(self, path, *rest)),
    )
    config = callbacks_config(f"callbacks.checkpoint.last_every={seconds}")
    fit(
        tmp_path,
        made_for(config, tmp_path),
        "dev/f1",
        [0.9, 0, 0, 0],
    )
    assert names.count(".next.ckpt") == written
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3


EARLY = ("callbacks=early_stopping", "callbacks.checkpoint.monitor=dev/loss")


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 6), (9, 8)])
def test_early_stopping_stops(tmp_path: Path, patience: int, epochs: int) -> None:
    config = callbacks_config(*EARLY, f"callbacks.early_stopping.patience={patience}")
    values = [1.0, 0.8, 0.9, 0.7, 0.75, 0.8, 0.6, 0.5]
    callbacks = made_for(config, tmp_path)
    trainer = fit(tmp_path, callbacks, "dev/loss", values)
    assert trainer.current_epoch == epochs


def test_early_stopping_needs_an_improvement_of_min_delta(tmp_path: Path) -> None:
    config = callbacks_config(
        *EARLY,
        "callbacks.early_stopping.patience=2",
        "callbacks.early_stopping.min_delta=0.15",
    )
    callbacks = made_for(config, tmp_path)
    trainer = fit(tmp_path, callbacks, "dev/loss", [1.0, 0.9, 0.87, 0.1, 0.0])
    assert trainer.current_epoch == 3


def test_each_epoch_has_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [EpochLines()], "dev/f1", [0.25, 0.5, 0.75])
    lines = capsys.readouterr().out.splitlines()
    shown = [line.rsplit("  ", 1) for line in lines]
    assert [text for text, _ in shown] == [
        "epoch 1/3  train loss 0.500  F1 0.250",
        "epoch 2/3  train loss 0.500  F1 0.500",
        "epoch 3/3  train loss 0.500  F1 0.750",
    ]
    assert all(seconds in ("0 s", "1 s") for _, seconds in shown)


def test_a_resumed_training_has_lines_of_its_own_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = ModelCheckpoint(tmp_path, filename="first", enable_version_counter=False)
    fit(tmp_path, [saved], "dev/f1", [0.25])
    path = tmp_path / "first.ckpt"
    fit(tmp_path, [EpochLines()], "dev/f1", [0, 0.5, 0.75], ckpt_path=path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 2/3", "epoch 3/3"]


def test_lines_of_a_training_that_stops_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = EarlyStopping("dev/loss", patience=1)
    fit(tmp_path, [EpochLines(), stopping], "dev/loss", [0.1, 0.2, 0.3, 0.4])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/4", "epoch 2/4"]
    assert "dev loss 0.200" in lines[1]


def test_throughput_leaves_the_first_batch_of_each_epoch_out(tmp_path: Path) -> None:
    speed = Throughput()
    fit(tmp_path, [speed], "dev/f1", [0.1, 0.2])
    assert speed.images == 2 * 2 * 4
    assert speed.images_per_second == speed.images / speed.seconds > 0


def test_throughput_is_that_of_all_epochs_after_the_best_is_judged(tmp_path: Path) -> None:
    speed = Throughput()
    best = ModelCheckpoint(tmp_path, filename="best", monitor="dev/f1", mode="max")
    trainer = fit(tmp_path, [speed, best], "dev/f1", [0.9, 0.1, 0.1])
    before, images = speed.elapsed, speed.images
    module = Scripted("dev/f1", [0.5] * 9)
    trainer.validate(module, batches(1), ckpt_path="best", verbose=False, weights_only=True)
    assert speed.images == images == 2 * 3 * 4
    assert before <= speed.elapsed < before + 5
    assert speed.elapsed_before == 0


def test_throughput_of_single_batches_is_unknown(tmp_path: Path) -> None:
    speed = Throughput()
    fit(tmp_path, [speed], "dev/f1", [0.1, 0.2], steps=1)
    assert speed.images_per_second is None
