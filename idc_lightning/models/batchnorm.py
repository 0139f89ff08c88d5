"""Statistics of a frozen backbone's BatchNorm, taken once from the train patches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
