import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import pytest
import torch
from helpers_model import told
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models
from torchvision.models import Weights, WeightsEnum

from idc_lightning.config import HeadConfig
from idc_lightning.errors import IDCError
from idc_lightning.models.backbone import build_backbone, load_pretrained
from idc_lightning.models.network import PatchNetwork
from idc_lightning.torch_files import read_checkpoint

State = dict[str, Tensor]

NAME = "shufflenet_v2_x0_5"
"""A small backbone, for tests in which any will do."""


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision's downloads fail, and its cache be empty."""

    def refuse(*_: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)


def state_of(name: str, seed: int = 1) -> State:
    torch.manual_seed(seed)
    return models.get_model(name).state_dict()


def save(content: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def assert_loaded(backbone: nn.Module, state: State) -> None:
    loaded = backbone.state_dict()
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("resnet50", "fc"),
        ("densenet121", "classifier"),
        ("efficientnet_b0", "classifier"),
        ("mobilenet_v3_small", "classifier"),
        ("regnet_y_400mf", "fc"),
        ("shufflenet_v2_x0_5", "fc"),
        ("mnasnet0_5", "classifier"),
    ],
)
def test_pooled_map_is_what_torchvision_classifies(name: str, classifier: str) -> None:
    torch.manual_seed(0)
    reference = models.get_model(name).eval()
    setattr(reference, classifier, nn.Identity())
    backbone, width = build_backbone(name)
    load_pretrained_state(backbone, reference.state_dict())
    image = torch.rand(2, 3, 50, 50)
    with torch.inference_mode():
        features = backbone.eval()(image).mean(dim=(2, 3))
        wanted = reference(image)
    assert features.shape == (2, width)
    assert wanted.std() > 0
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def load_pretrained_state(backbone: nn.Module, state: State) -> None:
    backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})


@pytest.mark.parametrize(
    "name", ["densenet121", "efficientnet_b0", "convnext_tiny", "vgg11_bn", "squeezenet1_1", NAME]
)
def test_every_architecture_maps_patches_and_crops(name: str) -> None:
    network = PatchNetwork(name, HeadConfig(hidden=[4], dropout=0.0, bias=0.0)).eval()
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 50, 50)).shape == (2, 1, 1, 2)
        assert network(torch.rand(1, 3, 150, 150)).shape == (1, 3, 3, 2)


def test_backbone_is_made_for_training() -> None:
    assert all(module.training for module in build_backbone(NAME)[0].modules())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet81", "did you mean resnet18"),
        ("ResNet-18", "did you mean resnet18"),
        ("efficentnet_b0", "efficientnet_b0"),
        ("fasterrcnn_resnet50_fpn", "is no classifier of torchvision"),
        ("", "resnet18 is one"),
    ],
)
def test_unknown_name_is_told_with_a_hint(name: str, hint: str) -> None:
    with told(f"model.backbone={name} ", hint):
        build_backbone(name)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "googlenet", "inception_v3", "alexnet"])
def test_architecture_that_gives_no_map_of_patches_is_told(name: str) -> None:
    with told(f"model.backbone={name} ", "take a convolutional one, e.g. resnet18"):
        build_backbone(name)


def test_weights_none_leave_the_random_ones() -> None:
    backbone, _ = build_backbone(NAME)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    load_pretrained(backbone, NAME, "none")
    assert_loaded(backbone, before)


def test_imagenet_weights_are_taken_from_torch_home(tmp_path: Path) -> None:
    state = state_of(NAME)
    url = models.get_model_weights(NAME).DEFAULT.url
    save(state, tmp_path / "torch_home" / "hub" / "checkpoints" / Path(url).name)
    backbone, _ = build_backbone(NAME)
    load_pretrained(backbone, NAME, "imagenet")
    assert_loaded(backbone, state)


def test_imagenet_weights_offline_tell_where_to_put_the_file(tmp_path: Path) -> None:
    url = models.get_model_weights("resnet18").DEFAULT.url
    folder = tmp_path / "torch_home" / "hub" / "checkpoints"
    with told("resnet18", "no route", url, str(folder), "model.weights=<file>", "=none"):
        load_pretrained(build_backbone("resnet18")[0], "resnet18", "imagenet")


def test_damaged_file_in_torch_home_is_told(tmp_path: Path) -> None:
    url = models.get_model_weights(NAME).DEFAULT.url
    file = tmp_path / "torch_home" / "hub" / "checkpoints" / Path(url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"<html>proxy says no</html>")
    with told(f"can't read {file}"):
        load_pretrained(build_backbone(NAME)[0], NAME, "imagenet")


@pytest.mark.parametrize("intact", [True, False])
def test_download_is_checked_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, intact: bool
) -> None:
    state = state_of(NAME)
    file = save(state, tmp_path / "server" / "weights.pth")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if intact else "0" * 8
    file = file.rename(file.with_name(f"own-{digest}.pth"))

    class Own(WeightsEnum):
        DEFAULT = Weights(file.as_uri(), nn.Identity, {})

    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(models, "get_model_weights", lambda _: Own)
    backbone, _ = build_backbone(NAME)
    cached = tmp_path / "torch_home" / "hub" / "checkpoints" / file.name
    if intact:
        load_pretrained(backbone, NAME, "imagenet")
        assert_loaded(backbone, state)
    else:
        with told("can't download", "invalid hash"):
            load_pretrained(backbone, NAME, "imagenet")
    assert cached.is_file() == intact


def test_file_of_torchvision_with_its_classifier(tmp_path: Path) -> None:
    state = state_of("resnet18")
    assert "fc.weight" in state
    file = save(state, tmp_path / "resnet18.pth")
    backbone, _ = build_backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(file))
    assert_loaded(backbone, state)


def test_old_file_without_counters_of_batches(tmp_path: Path) -> None:
    state = {k: v for k, v in state_of(NAME).items() if not k.endswith("num_batches_tracked")}
    file = save(state, tmp_path / "old.pth")
    backbone, _ = build_backbone(NAME)
    load_pretrained(backbone, NAME, str(file))
    assert torch.equal(backbone.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


def test_names_in_torchvisions_files_of_densenet(tmp_path: Path) -> None:
    state = state_of("densenet121")
    old = {re.sub(r"(denselayer\d+\.\D+)(\d\.)", r"\1.\2", k): v for k, v in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    file = save(old, tmp_path / "densenet.pth")
    backbone, _ = build_backbone("densenet121")
    load_pretrained(backbone, "densenet121", str(file))
    assert_loaded(backbone, state)


def test_checkpoint_of_this_project(tmp_path: Path) -> None:
    trained = PatchNetwork(NAME, HeadConfig(hidden=[4], dropout=0.0, bias=0.0))
    weights = {f"network.{key}": value for key, value in trained.state_dict().items()}
    file = save({"state_dict": weights, "epoch": 3}, tmp_path / "best.ckpt")
    backbone, _ = build_backbone(NAME)
    load_pretrained(backbone, NAME, str(file))
    assert_loaded(backbone, trained.backbone.state_dict())


def test_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = state_of(NAME)
    save(state, tmp_path / "weights.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    backbone, _ = build_backbone(NAME)
    load_pretrained(backbone, NAME, "~/weights.pth")
    assert_loaded(backbone, state)


@pytest.mark.parametrize(
    ("other", "wrong"),
    [
        ("shufflenet_v2_x1_0", "0 weights are missing and"),
        ("squeezenet1_1", "weights are missing and 0 have another shape, e.g. conv1.0.weight"),
    ],
)
def test_weights_of_another_architecture_are_told(tmp_path: Path, other: str, wrong: str) -> None:
    file = save(state_of(other), tmp_path / "other.pth")
    backbone, _ = build_backbone(NAME)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with told(f"model.weights={file}", f"model.backbone={NAME}", wrong):
        load_pretrained(backbone, NAME, str(file))
    assert_loaded(backbone, before)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], torch.zeros(3), 5, {"state_dict": [1]}, {"state_dict": {"a": 1}}]
)
def test_file_without_weights_is_told(tmp_path: Path, content: object) -> None:
    file = save(content, tmp_path / "no_weights.pth")
    with told(str(file)):
        load_pretrained(build_backbone(NAME)[0], NAME, str(file))


class Trap:
    """Writes a file when it is unpickled."""

    target: ClassVar[str] = ""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.target, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_objects_are_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setattr(Trap, "target", str(tmp_path / "sprung"))
    file = tmp_path / "trap.pth"
    content = {"state_dict": {"conv1.0.weight": Trap()}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with told(f"can't read {file}", "could run code"):
        read_checkpoint(file)
    assert not (tmp_path / "sprung").exists()
    torch.load(file, weights_only=False)  # the trap works
    assert (tmp_path / "sprung").exists()


def test_whole_pickled_model_is_told(tmp_path: Path) -> None:
    file = save(models.squeezenet1_1(), tmp_path / "model.pth")
    with told(f"can't read {file}", "holds Python objects"):
        read_checkpoint(file)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_told(tmp_path: Path, share: float, zipped: bool) -> None:
    file = tmp_path / "part.pth"
    torch.save({"a": torch.rand(999)}, file, _use_new_zipfile_serialization=zipped)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with told(f"can't read {file}", "damaged"):
        read_checkpoint(file)


@settings(max_examples=200)
@given(data=st.data())
def test_a_changed_byte_is_told_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("changed") / "weights.ckpt"
    weights = torch.rand(2000)
    torch.save({"state_dict": {"a": weights}, "decision": 0.5}, file)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        found = read_checkpoint(file)
    except IDCError:
        return
    assert found["decision"] == 0.5
    assert torch.equal(found["state_dict"]["a"], weights)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_changed_weight_is_told(tmp_path: Path, share: float) -> None:
    file = tmp_path / "weights.ckpt"
    weights = torch.rand(2000)
    torch.save({"a": weights}, file)
    content = file.read_bytes()
    place = content.index(weights.numpy().tobytes()) + int(share * 8000)
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with told(f"can't read {file}", "damaged"):
        read_checkpoint(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [
        b"just text\n",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04 no archive",
        b"\x80\x02}q\x00u.",  # items for a dictionary, but none on the stack
        b"\x80\x02X\xff\xff\xff",  # the length of a text, cut off
        pickle.dumps({"a": 1}, protocol=4),
    ],
)
def test_foreign_file_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "foreign.pth"
    file.write_bytes(content)
    with told(f"can't read {file}", "damaged, incomplete or no checkpoint"):
        read_checkpoint(file)


def test_absent_file_and_folder_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pth", tmp_path):
        with told(f"no such checkpoint: {path}"):
            load_pretrained(build_backbone(NAME)[0], NAME, str(path))
