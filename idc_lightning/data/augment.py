"""Random changes of a batch of train images, made on the device that holds it.

Each patch has its own draw, which depends on seed, epoch and patch alone: neither the order of the
patches nor the number of processes changes it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from idc_lightning.config import AugmentConfig

RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in red, green and blue of hematoxylin, eosin and residual, one row each.

A. Ruifrok and D. Johnston, "Quantification of histochemical staining by color deconvolution", Anal.
Quant. Cytol. Histol. 23, 2001; the residual row as in scikit-image.
"""

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed number
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def draws(seed: int, epoch: int, patches: Tensor, count: int) -> Tensor:
    """Uniform numbers that depend on seed, epoch and patch alone.

    SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014) as a hash of the three.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        patches: Row numbers, int64 [B].
        count: Numbers for each patch.

    Returns:
        Float32 [B, count] in [0, 1).
    """
    device = patches.device
    start = _mix(torch.tensor(seed, device=device) + GOLDEN)
    state = _mix(_mix(start ^ epoch) + patches[:, None])
    bits = _mix(state + GOLDEN * torch.arange(1, count + 1, device=device))
    return _shift(bits, 40).float() / 2**24


def _shift(bits: Tensor, places: int) -> Tensor:
    """Shift int64 to the right without copying its sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * MIX_1
    bits = (bits ^ _shift(bits, 27)) * MIX_2
    return bits ^ _shift(bits, 31)


def augment(
    image: Tensor, label: Tensor, cell: Tensor, config: AugmentConfig, *, seed: int, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Change each image of a batch, and its grid of cells along with it.

    Args:
        image: Float [B, 3, H, H] in 0 to 1.
        label: Int64 [B, g, g].
        cell: Row numbers, int64 [B, g, g].
        config: What is changed, and how much.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        The three, changed.
    """
    chance = draws(seed, epoch, cell.amax(dim=(1, 2)), 8)
    flips: list[tuple[bool, Callable[[Tensor], Tensor]]] = [
        (config.horizontal_flip, lambda x: x.flip(-1)),
        (config.vertical_flip, lambda x: x.flip(-2)),
        (config.turns, lambda x: x.rot90(1, (-2, -1))),
        (config.turns, lambda x: x.rot90(2, (-2, -1))),
    ]
    for column, (wanted, change) in enumerate(flips):
        if wanted:
            chosen = chance[:, column] < 0.5
            image, label, cell = (_where(chosen, change, part) for part in (image, label, cell))
    if config.stain_jitter > 0:
        image = jitter_stains(image, 1 + config.stain_jitter * (2 * chance[:, 4:7] - 1))
    if config.brightness > 0:
        light = 1 + config.brightness * (2 * chance[:, 7] - 1)
        image = (image * light[:, None, None, None]).clamp(0, 1)
    return image, label, cell


def _where(chosen: Tensor, change: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
    """Change the chosen members of a batch."""
    mask = chosen.reshape(-1, *[1] * (part.ndim - 1))
    return torch.where(mask, change(part), part)


def jitter_stains(image: Tensor, strength: Tensor) -> Tensor:
    """Strengthen or weaken each stain of each image.

    The amounts of hematoxylin, eosin and residual are scaled in optical density (D. Tellez et al.,
    "Quantifying the effects of data augmentation and stain color normalization in convolutional
    neural networks for computational pathology", Med. Image Anal. 58, 2019).

    Args:
        image: Float [B, 3, H, W] in 0 to 1.
        strength: Float [B, 3], factors of the three stains; 1 changes nothing.

    Returns:
        Float [B, 3, H, W] in 0 to 1.
    """
    # One matrix for each image does all three steps: to stains, scale, back to RGB.
    to_stains = torch.linalg.inv(RGB_FROM_HED).to(image)
    change = to_stains @ torch.diag_embed(strength.to(image)) @ RGB_FROM_HED.to(image)
    density = image.clamp_min(1 / 255).log()
    return torch.einsum("bchw,bcd->bdhw", density, change).exp().clamp(0, 1)
