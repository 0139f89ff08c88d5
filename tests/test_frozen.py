import json
import os
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_command import SMALL as RUN_OF_SECONDS
from helpers_model import TINY, config_of, told, write_tissue
from helpers_process import TRAIN, forked, side_by_side
from torch import Tensor, nn

from idc_lightning import classifier, frozen
from idc_lightning.data.demo import make_demo
from idc_lightning.data.features import Features, stored_dtype
from idc_lightning.frozen import compute_features, features_note
from idc_lightning.models import network
from idc_lightning.models.network import Head, Normalize
from idc_lightning.torch_files import read_checkpoint
from idc_lightning.train import train

FROZEN = ("model.freeze_backbone=true", "logger=default", "report=none")

SMALL = ("trainer.log_every_n_steps=2", "data.batch_size=4")


def trained(folder: Path, *overrides: str) -> Path:
    data = write_tissue(folder / "data")
    config = config_of(*TINY, *FROZEN, *data, f"cache={folder}/cache", *overrides)
    run = folder / "-".join(["run", *(o.replace("/", "_") for o in overrides)])[:80]
    train(config, run)
    return run


def test_a_run_on_features_learns_what_one_on_images_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "BLOCK", 3)  # an epoch has several, and the last is shorter
    runs = [trained(tmp_path, f"data.features={mode}", *SMALL) for mode in ("auto", "off")]
    on_features, on_images = (
        read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs
    )
    for name, value in on_images.items():
        torch.testing.assert_close(on_features[name], value, rtol=1e-4, atol=1e-5, msg=name)
    curves = [pd.read_csv(run / "metrics.csv").groupby("step").first() for run in runs]
    logged = ["train/loss", "lr-SGD", "dev/loss"]
    assert curves[0]["train/loss"].notna().sum() > 4
    pd.testing.assert_frame_equal(curves[0][logged], curves[1][logged], rtol=1e-4)
    predictions = [pd.read_csv(run / "predictions" / "test.csv")["proba"] for run in runs]
    assert predictions[0].to_numpy() == pytest.approx(predictions[1].to_numpy(), abs=1e-4)


def test_the_head_learns_in_float32_whatever_the_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_float32(*given: Any, precision: str, context: object, **more: Any) -> Features:
        return compute_features(*given, precision="32-true", context=nullcontext, **more)

    monkeypatch.setattr(classifier, "compute_features", in_float32)
    monkeypatch.setattr("idc_lightning.trainer.has_bf16", lambda _: True)  # as any CPU, slowly
    runs = [
        trained(tmp_path, f"trainer.precision={name}", *SMALL) for name in ("32-true", "bf16-mixed")
    ]
    full, mixed = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in runs)
    for name, value in full.items():
        assert torch.equal(mixed[name], value), name


@pytest.mark.parametrize("mode", ["auto", "off"])
@pytest.mark.parametrize("stops", [False, True])
def test_one_thread_trains_the_head_and_all_work_otherwise(
    mode: str, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(kind: type[nn.Module]) -> None:
        forward = kind.forward

        def counting(self: nn.Module, given: Tensor) -> Tensor:
            training = torch.is_grad_enabled() or kind is not Head
            threads.setdefault((kind, training), set()).add(torch.get_num_threads())
            if stops and kind is Head:
                raise ValueError("stopped")
            return forward(self, given)

        monkeypatch.setattr(kind, "forward", counting)

    threads: dict[tuple[type[nn.Module], bool], set[int]] = {}
    watched(Head)
    watched(Normalize)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="stopped") if stops else nullcontext():
            trained(tmp_path, f"data.features={mode}", "trainer.epochs=1")
        assert torch.get_num_threads() == 2
        assert threads[Head, True] == {1}
        assert threads[Normalize, True] == {2}
        assert stops or 2 in threads[Head, False]
    finally:
        torch.set_num_threads(before)


def test_features_are_computed_once_for_all_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(tmp_path, "trainer.epochs=1")
    assert "computing the frozen backbone once" in capsys.readouterr().out
    trained(tmp_path, "model.head.dropout=0.3")
    assert "computing the frozen backbone once" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "reason"),
    [("data.augment.stain_jitter=0.1", "stain_jitter"), ("data.features=off", "data.features=off")],
)
def test_a_backbone_that_is_computed_anew_says_why(override: str, reason: str) -> None:
    config = config_of(*TINY, *FROZEN, override)
    assert not config.learns_on_features
    assert reason in features_note(config)[0]
    plain = config_of(*TINY, *FROZEN)
    assert plain.learns_on_features
    assert features_note(plain) == []


class InFloat32(nn.Module):
    """Multiplies by weights of float32, as the last layers of some backbones do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.tensor(1 / 3), requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.inner(image).float() * self.scale
        return found


@pytest.mark.parametrize("wrapped", [False, True])
def test_features_are_kept_as_the_backbone_gives_them(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idc_lightning.trainer.has_bf16", lambda _: True)
    if wrapped:
        build = network.build_backbone
        monkeypatch.setattr(
            network, "build_backbone", lambda name: (InFloat32(build(name)[0]), build(name)[1])
        )
    trained(tmp_path, "trainer.precision=bf16-mixed", "trainer.epochs=1")
    (folder,) = (tmp_path / "cache" / "features").glob("[!.]*")
    assert stored_dtype(folder) == (torch.float32 if wrapped else torch.bfloat16)


def test_features_that_exceed_the_precision_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def huge(self: network.PatchNetwork, image: Tensor) -> Tensor:
        return torch.full((len(image), self.width, 1, 1), 1e9).half()

    monkeypatch.setattr(network.PatchNetwork, "pooled", huge)
    with told("features of the frozen backbone are not finite", "trainer.precision=32-true"):
        trained(tmp_path, "trainer.epochs=1")


@pytest.mark.parametrize(("name", "threads"), [("LokyProcess-1", 5), ("MainProcess", 1)])
def test_features_are_computed_by_all_threads_while_other_jobs_wait(
    name: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(self: network.PatchNetwork, image: Tensor) -> Tensor:
        used.add(torch.get_num_threads())
        return pooled(self, image)

    used: set[int] = set()
    pooled = network.PatchNetwork.pooled
    monkeypatch.setattr(network.PatchNetwork, "pooled", watched)
    monkeypatch.setattr(frozen, "current_process", lambda: SimpleNamespace(name=name))
    monkeypatch.setattr("joblib.cpu_count", lambda: 5)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained(tmp_path, "trainer.epochs=1")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert used == {1, threads}


def test_two_runs_on_a_cold_cache_decode_and_compute_once(tmp_path: Path) -> None:
    typed = (
        *RUN_OF_SECONDS[2:],
        "model.freeze_backbone=true",
        "data.augment.stain_jitter=0",
        "cache=cache",
    )
    make_demo(tmp_path / "tissue", patients=12, patches=480, seed=0)
    data = ("data=idc", "data.root=tissue")
    words = [(*data, *typed, f"hydra.run.dir={name}") for name in "ab"]
    ended = side_by_side(
        forked(TRAIN, each, within=tmp_path, environment=os.environ) for each in words
    )
    assert [run.returncode for run in ended] == [0, 0], ended
    said = "".join(run.stdout for run in ended)
    assert said.count("packing 480 patches once") == 1
    # Train in its eight views and dev, then test: each by one of them.
    counts = [int(n.replace(",", "")) for n in re.findall(r"once: ([\d,]+) views", said)]
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in "ab"]
    patches = results[0]["patches"]
    assert sorted(counts) == sorted([8 * patches["train"] + patches["dev"], patches["test"]])
    assert results[0]["dev"] == results[1]["dev"]
