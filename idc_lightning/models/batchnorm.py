"""Statistics of a frozen backbone's BatchNorm, taken once from the train patches."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def adapt_batchnorm(network: nn.Module, backbone: nn.Module, images: Iterable[Tensor]) -> None:
    """Replace the mean and variance of each BatchNorm layer by those of some images.

    They are the plain averages over all batches (batches of equal size assumed), not moving ones.

    Args:
        network: What the images are passed through; its mode is restored.
        backbone: The part of it whose layers are adapted.
        images: Batches, as the network takes them.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    training = network.training
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the average over all batches since the reset
        layer.train()
    for batch in images:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.train(training)
