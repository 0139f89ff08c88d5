import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms.functional import normalize

from idc_lightning.config import HeadConfig
from idc_lightning.models.dropout import Dropout
from idc_lightning.models.network import Head, PatchNetwork

SMALL = "shufflenet_v2_x0_5"


def head_config(*hidden: int, dropout: float = 0.5) -> HeadConfig:
    return HeadConfig(hidden=list(hidden), dropout=dropout, bias=0.01)


def test_one_patch_gives_the_logits_of_torchvisions_resnet18() -> None:
    torch.manual_seed(0)
    network = PatchNetwork("resnet18", head_config(16, 8))
    reference = models.resnet18()
    reference.fc = Head(512, 2, head_config(16, 8))
    reference(torch.randn(8, 3, 50, 50) + 1)  # statistics of BatchNorm that aren't 0 and 1
    body, fc = network.backbone.state_dict(), reference.fc.state_dict()
    network.backbone.load_state_dict({key: reference.state_dict()[key] for key in body})
    network.head.load_state_dict(fc)
    image = torch.rand(4, 3, 50, 50)
    with torch.inference_mode():
        logits = network.eval()(image)
        wanted = reference.eval()(normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert logits.shape == (4, 1, 1, 2)
    assert wanted.std() > 0.01
    torch.testing.assert_close(logits[:, 0, 0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [1, 3])
def test_crops_give_logits_of_each_cell(grid: int) -> None:
    network = PatchNetwork(SMALL, head_config(4)).eval()
    image = torch.rand(2, 3, 50 * grid, 50 * grid)
    with torch.inference_mode():
        features, logits = network.features(image), network(image)
        by_cell = network.head(features.reshape(2 * grid * grid, -1))
    assert logits.shape == (2, grid, grid, 2)
    torch.testing.assert_close(logits.reshape(-1, 2), by_cell)


def test_a_cells_features_are_those_of_its_place() -> None:
    torch.manual_seed(0)
    network = PatchNetwork("resnet18", head_config()).eval()
    image = torch.rand(1, 3, 250, 250)
    changed = image.clone()
    changed[:, :, 60:90, 210:240] = 0  # second row, fifth column
    with torch.inference_mode():
        difference = (network.features(image) - network.features(changed)).abs().sum(dim=-1)[0]
    assert divmod(int(difference.argmax()), 5) == (1, 4)


def test_layers_and_sizes_of_the_head() -> None:
    head = Head(512, 2, head_config(512, 256, dropout=0.3))
    hidden = [nn.Linear, nn.ReLU, nn.BatchNorm1d, Dropout]
    assert [type(layer) for layer in head] == [*hidden, *hidden, nn.Linear]
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(512, 512), (512, 256), (256, 2)]
    assert [layer.p for layer in head if isinstance(layer, Dropout)] == [0.3, 0.3]
    assert [type(layer) for layer in Head(512, 2, head_config())] == [nn.Linear]


def test_first_weights_and_biases_of_the_head() -> None:
    head = Head(400, 2, head_config(300, 100))
    for layer in head:
        if isinstance(layer, nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            largest = layer.weight.detach().abs().max().item()
            assert 0.95 * bound < largest <= bound
            assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.01))


@pytest.mark.parametrize("switched", [False, True])
def test_a_frozen_backbone_neither_learns_nor_moves(switched: bool) -> None:
    # Its paths are dropped at random, and its BatchNorm would move, if it were training.
    network = PatchNetwork("efficientnet_b0", head_config(4, dropout=0.0), frozen=True)
    if switched:
        network.eval().train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    image = torch.rand(4, 3, 50, 50)
    assert torch.equal(network.features(image), network.features(image))
    network(image).sum().backward()
    assert all(weight.grad is None for weight in network.backbone.parameters())
    assert all(weight.grad is not None for weight in network.head.parameters())
    assert not network.features(image).requires_grad
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert network.head.training
    assert not any(module.training for module in network.backbone.modules())


def test_a_backbone_that_is_not_frozen_learns_and_moves() -> None:
    network = PatchNetwork(SMALL, head_config(4)).train()
    before = {key: value.clone() for key, value in network.backbone.state_dict().items()}
    network(torch.rand(4, 3, 50, 50)).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    after = network.backbone.state_dict()
    moved = [key for key in after if key.endswith("running_mean")]
    assert moved
    assert not any(torch.equal(after[key], before[key]) for key in moved)
    assert not network.eval().backbone.training


def test_logits_stay_float32_in_mixed_precision() -> None:
    network = PatchNetwork(SMALL, head_config(4)).eval()
    kinds = []
    network.backbone.register_forward_hook(lambda *args: kinds.append(args[-1].dtype))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(2, 3, 50, 50))
    assert kinds == [torch.bfloat16]
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
