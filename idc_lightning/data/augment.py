"""Random changes of a batch of train images, made on the device that holds it.

Each patch has its own draw, which depends on seed, epoch and the patch's number alone: neither the
order of the patches nor the number of processes changes it.
"""

import torch
from torch import Tensor

from idc_lightning.config import AugmentConfig
from idc_lightning.data.views import choose_views, viewed

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
        patches: Their numbers, int64 [B].
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


def draw_views(
    config: AugmentConfig, cell: Tensor, *, number: Tensor | None = None, seed: int, epoch: int
) -> Tensor:
    """Draw the view of each crop, as `augment` does.

    Args:
        config: Which flips and turns are made.
        cell: Row numbers, int64 [B, g, g].
        number: As of `augment`.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        Int64 [B], 0 to 7.
    """
    return choose_views(config, _chance(cell, number, seed=seed, epoch=epoch)[:, :4])


def _chance(cell: Tensor, number: Tensor | None, *, seed: int, epoch: int) -> Tensor:
    """Eight draws for each crop: four for its view, three for stains, one for the light."""
    return draws(seed, epoch, cell.amax(dim=(1, 2)) if number is None else number, 8)


def augment(
    image: Tensor,
    label: Tensor,
    cell: Tensor,
    config: AugmentConfig,
    *,
    number: Tensor | None = None,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Change each image of a batch, and its grid of cells along with it.

    Args:
        image: [B, 3, H, H], uint8 or float in 0 to 1.
        label: Int64 [B, g, g].
        cell: Row numbers, int64 [B, g, g].
        config: What is changed, and how much.
        number: What the draw of each crop depends on beside seed and epoch, int64 [B]; None takes
            the last of its row numbers.
        seed: Seed of the run.
        epoch: Number of the epoch.

    Returns:
        The three, changed; the image is float in 0 to 1.
    """
    chance = _chance(cell, number, seed=seed, epoch=epoch)
    views = choose_views(config, chance[:, :4])
    # Bytes are turned, since floats are four times as many.
    image = as_float(viewed(image.permute(0, 2, 3, 1), views).permute(0, 3, 1, 2))
    label, cell = viewed(label, views), viewed(cell, views)
    if config.stain_jitter > 0:
        image = jitter_stains(image, 1 + config.stain_jitter * (2 * chance[:, 4:7] - 1))
    if config.brightness > 0:
        light = 1 + config.brightness * (2 * chance[:, 7] - 1)
        image = (image * light[:, None, None, None]).clamp(0, 1)
    return image, label, cell


def as_float(image: Tensor) -> Tensor:
    """Turn uint8 in 0 to 255 to float32 in 0 to 1; floats stay as they are."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image


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
