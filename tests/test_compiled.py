import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_model import TINY, config_of, told, write_tissue
from torch import Tensor, nn

import idc_lightning.models.network as network_module
from idc_lightning.classifier import load_classifier
from idc_lightning.config import HeadConfig
from idc_lightning.models.compiled import compile_backbone
from idc_lightning.models.network import PatchNetwork
from idc_lightning.torch_files import read_checkpoint
from idc_lightning.train import train

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""How well weights and probabilities agree in float32 after some steps; logits do to 1e-5."""

needs_tools = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("g++") is None
    or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="torch.compile needs g++ and Python.h on Linux",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec.*")


@pytest.fixture(scope="module", autouse=True)
def small_backbone() -> Iterator[None]:
    """One convolution in place of a classifier of torchvision, which takes a minute to compile."""

    def build(_: str) -> tuple[nn.Module, int]:
        layers = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU()
        return nn.Sequential(*layers), 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "build_backbone", build)
        yield


@pytest.fixture
def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that compiled code computes; tests share what was compiled for one."""
    sizes: list[int] = []
    real = torch.compile

    def spy(*args: Any, **values: Any) -> Callable[..., Tensor]:
        run = real(*args, **values)

        def count(image: Tensor) -> Tensor:
            sizes.append(len(image))
            return run(image)

        return count

    monkeypatch.setattr(torch, "compile", spy)
    return sizes


def trained(folder: Path, *overrides: str) -> Path:
    config = config_of(
        *TINY,
        *write_tissue(folder / "data"),
        f"cache={folder}/cache",
        "report=none",
        "results.draws=20",
        *overrides,
    )
    run = folder / "run"
    train(config, run)
    return run


@needs_tools
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("callbacks.ema_decay=0.9", "callbacks=lr_range_test", "callbacks.lr_range_test.steps=10"),
        ("model.freeze_backbone=true",),
        ("model.freeze_backbone=true", "data.features=off", "model.frozen_batchnorm=adapt"),
    ],
    ids=["whole net", "range test and average", "frozen, on features", "frozen, on images"],
)
def test_a_compiled_run_learns_what_another_one_learns(
    tmp_path: Path, compiled_calls: list[int], overrides: tuple[str, ...]
) -> None:
    plain = trained(tmp_path / "plain", *overrides)
    assert not compiled_calls
    compiled = trained(tmp_path / "compiled", *overrides, "model.compile=true")
    assert compiled_calls
    for name in ("best.ckpt", "last.ckpt"):
        expected, found = (
            read_checkpoint(run / "checkpoints" / name)["state_dict"] for run in (plain, compiled)
        )
        assert found.keys() == expected.keys()
        for weight, value in expected.items():
            torch.testing.assert_close(found[weight], value, **CLOSE, msg=weight)
    for split in ("dev", "test"):
        expected, found = (
            pd.read_csv(run / "predictions" / f"{split}.csv") for run in (plain, compiled)
        )
        assert found["proba"].to_numpy() == pytest.approx(expected["proba"].to_numpy(), abs=1e-4)


@needs_tools
def test_a_checkpoint_of_a_compiled_run_gives_the_same_logits_uncompiled(
    tmp_path: Path, compiled_calls: list[int]
) -> None:
    run = trained(tmp_path, "trainer.epochs=1", "model.compile=true")
    plain, compiled = (load_classifier(run / "checkpoints" / "best.ckpt") for _ in range(2))
    compile_backbone(compiled.network)
    compiled_calls.clear()
    for size in (10, 4):
        image = torch.rand(size, 3, 50, 50, generator=torch.Generator().manual_seed(size))
        with torch.inference_mode():
            expected = plain(image)
            assert len(expected.unique()) == 2 * size
            torch.testing.assert_close(compiled(image), expected, rtol=1e-5, atol=1e-5)
    assert compiled_calls == [10, 4]


def net() -> PatchNetwork:
    return PatchNetwork("small", HeadConfig(hidden=[], dropout=0.0, bias=0.0))


@pytest.mark.skipif(sys.platform == "win32", reason="looks for other compilers")
def test_a_compiler_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with told("model.compile=true", "C++ compiler", "model.compile=false"):
        compile_backbone(net())
    monkeypatch.setenv("CXX", "ccache my-g++ -O2")
    with told("'ccache my-g++ -O2'"):
        compile_backbone(net())


@pytest.mark.skipif(sys.platform == "win32", reason="looks for other compilers")
def test_a_compiler_of_the_environment_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-g++" else None)
    monkeypatch.setenv("CXX", "my-g++ -O2")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    compile_backbone(net())
    (tmp_path / "Python.h").unlink()
    with told("model.compile=true", f"{tmp_path} has no Python.h", "python3-dev"):
        compile_backbone(net())
