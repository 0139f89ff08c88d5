"""Runs read back from checkpoints that are whole, damaged, foreign or of another version."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_model import PATIENTS, told
from helpers_runs import trained

from idc_lightning.config import HardwareConfig
from idc_lightning.decision import UNDECIDED
from idc_lightning.inference import precision_of
from idc_lightning.runs import read_run

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(
        tmp_path_factory.mktemp("read"), "seed=3", "callbacks.checkpoint.monitor=dev/loss"
    )


@pytest.fixture
def changed(run: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the run's checkpoint with some of its content changed."""

    def write(change: Change) -> Path:
        content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        change(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def test_a_run_says_what_it_was_trained_on(run: Path) -> None:
    found = read_run(run)
    assert found.checkpoint == (run / "checkpoints" / "best.ckpt").resolve()
    assert found.folder == run.resolve()
    assert found.name == "run"
    assert found.splits.to_dict() == PATIENTS
    assert found.patients() == {"train": 3, "dev": 2, "test": 1}
    assert found.seed == 3
    assert found.monitor == "dev/loss"
    assert found.precision == "32-true"
    assert found.data.root == run.parent / "tissue"
    assert not found.classifier.training
    assert found.notes() == []


@pytest.mark.parametrize("inside", [True, False])
def test_the_run_folder_is_found_from_inside(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    monkeypatch.chdir(run / "checkpoints" if inside else tmp_path)
    (tmp_path / "link.ckpt").symlink_to(run / "checkpoints" / "best.ckpt")
    found = read_run(Path("best.ckpt" if inside else "link.ckpt"))
    assert found.folder == run.resolve()


def test_a_home_folder_is_known(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = read_run(Path("~/mine.ckpt"))
    assert found.folder is None
    assert found.name == "mine"


def test_the_last_epoch_has_no_decision(run: Path) -> None:
    assert read_run(run).classifier.decided
    last = read_run(run / "checkpoints" / "last.ckpt")
    assert last.decision == UNDECIDED
    assert last.notes()[0].startswith("last.ckpt holds no temperature, bias and threshold")


def test_what_is_no_run_is_told(run: Path, tmp_path: Path) -> None:
    with told(f"run={tmp_path}/no doesn't exist: give a run folder or a checkpoint"):
        read_run(tmp_path / "no")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    with told(f"run={tmp_path}/run holds no checkpoints/best.ckpt"):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("size", [0, 100, 0.5, 0.99])
def test_a_damaged_checkpoint_is_told(run: Path, tmp_path: Path, size: float) -> None:
    whole = (run / "checkpoints" / "best.ckpt").read_bytes()
    end = int(size * len(whole)) if size < 1 else int(size)
    (tmp_path / "cut.ckpt").write_bytes(whole[:end])
    with told("cut.ckpt: it is damaged, incomplete or no checkpoint"):
        read_run(tmp_path / "cut.ckpt")


def test_a_text_and_other_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    with told("text.ckpt: it is damaged, incomplete or no checkpoint"):
        read_run(tmp_path / "text.ckpt")
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "weights.ckpt")
    with told("weights.ckpt is no checkpoint of idc_lightning"):
        read_run(tmp_path / "weights.ckpt")


KEY = "IDCDataModule"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop(KEY),
        lambda c: c.update({KEY: 3}),
        lambda c: c[KEY].pop("splits"),
        lambda c: c[KEY].update(splits=["101"]),
        lambda c: c[KEY].update(splits={"101": "validation"}),
        lambda c: c[KEY].pop("seed"),
        lambda c: c[KEY]["data"].pop("microns_per_pixel"),
        lambda c: c[KEY]["data"].update(unknown=1),
        lambda c: c[KEY]["data"].update(name="other"),
        lambda c: c.pop("callbacks"),
        lambda c: c.update(callbacks={}),
        lambda c: c.update(callbacks=[1]),
    ],
)
def test_a_checkpoint_that_tells_too_little_is_told(
    changed: Callable[[Change], Path], change: Change
) -> None:
    with told("changed.ckpt doesn't say on which patients it was trained", "train again"):
        read_run(changed(change))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["hyper_parameters"]["model"].update(backbone="resnet18"),
        lambda c: c["hyper_parameters"].pop("scheduler"),
        lambda c: c["state_dict"].popitem(),
    ],
)
def test_another_architecture_or_version_is_told(
    changed: Callable[[Change], Path], change: Change
) -> None:
    with told("changed.ckpt is of another architecture or version"):
        read_run(changed(change))


def test_the_precision_is_that_of_the_run_where_the_hardware_has_it(
    run: Path, changed: Callable[[Change], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = HardwareConfig(accelerator="cpu", precision="auto")
    monkeypatch.setattr("idc_lightning.trainer.has_bf16", lambda _: True)
    assert precision_of(read_run(run), auto, "cpu") == "32-true"
    half = read_run(changed(lambda content: content.update(precision="bf16-mixed")))
    assert precision_of(half, auto, "cpu") == "bf16-mixed"
    assert precision_of(half, auto.model_copy(update={"precision": "32-true"}), "cpu") == "32-true"
    # Older checkpoints don't say.
    older = read_run(changed(lambda content: content.pop("precision")))
    assert precision_of(older, auto, "cpu") == "bf16-mixed"
    monkeypatch.setattr("idc_lightning.trainer.has_bf16", lambda _: False)
    assert precision_of(half, auto, "cpu") == "32-true"
    with told("doesn't compute in bfloat16"):
        precision_of(half, auto.model_copy(update={"precision": "bf16-mixed"}), "cpu")
