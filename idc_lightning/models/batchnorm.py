"""Over which patches BatchNorm takes its statistics.

Those of a frozen backbone once over all train patches; those of a step over all processes.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from idc_lightning import ranks


@torch.no_grad()
def adapt_batchnorm(network: nn.Module, backbone: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the mean and variance of each BatchNorm layer by those of some images.

    They are those of all images together: each counts the same, whatever the size of its batch,
    and the variance holds what differs between batches. While they are taken, a layer normalises
    each batch by the batch's own, so that batches should be drawn at random.

    Args:
        network: What the images are passed through; its mode is restored.
        backbone: The part of it whose layers are adapted.
        images: Batches [B, 3, H, W], as the network takes them.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    training = network.training
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
    means = [layer.get_buffer("running_mean") for layer in layers]
    variances = [layer.get_buffer("running_var") for layer in layers]
    seen = 0
    for batch in images:
        seen += len(batch)
        share = len(batch) / seen
        before = [mean.clone() for mean in means]
        for layer in layers:
            layer.momentum = share
        network(batch)
        for mean, old, variance in zip(means, before, variances, strict=True):
            # Batches differ in their means, too; the mean went this share of the way.
            variance += (1 - share) / share * (mean - old) ** 2
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.train(training)


def running_statistics(network: nn.Module) -> Iterator[Tensor]:
    """Mean and variance that each BatchNorm layer of a network has taken so far."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            yield layer.get_buffer("running_mean")
            yield layer.get_buffer("running_var")


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, on any device; torch's own needs a GPU.

    S. Ioffe and C. Szegedy, "Batch normalization", ICML 2015, algorithm 1, with the mini-batch of
    all processes together.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [B, C, ...] by mean and variance of each channel."""
        if not self.training or ranks.world() == 1:
            return super().forward(input)
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        others = [dim for dim in range(values.dim()) if dim != 1]
        shape = [1, -1, *[1] * (values.dim() - 2)]
        count = ranks.total(torch.tensor(float(values.numel() // values.shape[1])))
        count = count.to(values.device)
        mean = _summed(values.sum(others)) / count
        centred = values - mean.view(shape)
        variance = _summed((centred**2).sum(others)) / count
        self._keep(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)
        return (centred * scale.view(shape)).to(input.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        if not self.track_running_stats:
            return
        self.get_buffer("num_batches_tracked").add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / float(self.get_buffer("num_batches_tracked"))
        self.get_buffer("running_mean").lerp_(mean, momentum)
        self.get_buffer("running_var").lerp_(variance, momentum)


class _Summed(torch.autograd.Function):
    """The sum over all processes; the gradient of each is the sum of their gradients."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:  # noqa: ANN401
        return ranks.total(value)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        return ranks.total(gradient.contiguous())


def _summed(value: Tensor) -> Tensor:
    summed: Tensor = _Summed.apply(value)
    return summed


class SyncOnCPU(LayerSync):
    """Puts `SyncedBatchNorm` in the place of each BatchNorm of a network that Lightning trains."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers within a network, which keep their weights and statistics."""
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, _BatchNorm):
                    setattr(parent, name, _as(SyncedBatchNorm, layer))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave it, since of a single process the layers do what they did before."""
        return model


def _as(kind: type[_BatchNorm], layer: _BatchNorm) -> _BatchNorm:
    other = kind(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    other.train(layer.training)
    other._parameters, other._buffers = layer._parameters, layer._buffers
    return other
