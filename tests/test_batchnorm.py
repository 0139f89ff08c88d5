import pytest
import torch
from torch import Tensor, nn

from idc_lightning.config import HeadConfig
from idc_lightning.models.batchnorm import adapt_batchnorm
from idc_lightning.models.network import PatchNetwork

HEAD = HeadConfig(hidden=[4], dropout=0.0, bias=0.0)


def network_of(name: str = "shufflenet_v2_x0_5") -> PatchNetwork:
    torch.manual_seed(0)
    return PatchNetwork(name, HEAD, frozen=True)


def patches(patients: int = 8, each: int = 8) -> Tensor:
    """Patches of patients who each have their own colour, patient by patient."""
    torch.manual_seed(1)
    colour = torch.rand(patients, 1, 3, 1, 1).expand(-1, each, -1, -1, -1).flatten(0, 1)
    blocks = torch.randn(patients * each, 3, 10, 10).repeat_interleave(5, 2).repeat_interleave(5, 3)
    return (colour + 0.2 * blocks).clamp(0, 1)


def adapt(network: PatchNetwork, batches: list[Tensor]) -> None:
    adapt_batchnorm(network, network.backbone, batches)


def layers_of(network: PatchNetwork) -> list[nn.BatchNorm2d]:
    return [layer for layer in network.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("sizes", [[64], [8] * 8, [30, 30, 4], [60, 4]])
def test_statistics_are_those_of_all_patches_whatever_the_batches(sizes: list[int]) -> None:
    network, images = network_of(), patches()
    adapt(network, list(images.split(sizes)))
    with torch.no_grad():
        values = network.backbone.conv1[0](network.normalize(images)).double()
    mean = values.mean(dim=(0, 2, 3))
    variance = values.var(dim=(0, 2, 3))
    first = layers_of(network)[0]
    torch.testing.assert_close(first.running_mean.double(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.running_var.double(), variance, rtol=2e-3, atol=0)


def test_each_layer_puts_out_mean_0_and_variance_1_after_random_batches() -> None:
    network, images = network_of(), patches()
    adapt(network, list(images[torch.randperm(64)].split(16)))
    seen: list[Tensor] = []
    for layer in layers_of(network):
        layer.register_forward_hook(lambda *args: seen.append(args[-1].detach().clone()))
    with torch.no_grad():
        network(images)
    assert len(seen) == len(layers_of(network)) > 30
    for values in seen:
        assert float(values.mean(dim=(0, 2, 3)).abs().mean()) < 0.1
        assert float(values.var(dim=(0, 2, 3)).mean()) == pytest.approx(1, abs=0.15)


def test_nothing_else_changes() -> None:
    network = network_of().train()
    network.head(torch.randn(8, 1024))  # statistics of the head's own BatchNorm
    before = {key: value.clone() for key, value in network.state_dict().items()}
    adapt(network, [patches()[:8]])
    for key, value in network.state_dict().items():
        statistic = "running" in key or key.endswith("num_batches_tracked")
        adapted = key.startswith("backbone.") and statistic
        assert torch.equal(value, before[key]) != adapted, key
    assert {layer.momentum for layer in layers_of(network)} == {0.1}
    assert network.head.training
    assert not any(layer.training for layer in layers_of(network))
    assert all(weight.grad is None for weight in network.parameters())


def test_earlier_statistics_are_forgotten() -> None:
    once, twice = network_of(), network_of()
    for layer in layers_of(twice):
        layer.running_mean += 5
        layer.running_var *= 9
    images = patches()
    adapt(once, [images])
    adapt(twice, [images])
    for key, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[key]), key


def test_network_in_evaluation_stays_there_and_one_without_batchnorm_works() -> None:
    network = network_of("squeezenet1_1").eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    adapt(network, [patches()[:4]])
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
