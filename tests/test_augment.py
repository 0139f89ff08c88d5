from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from idc_lightning.config import AugmentConfig
from idc_lightning.data.augment import RGB_FROM_HED, augment, draws, jitter_stains
from idc_lightning.data.grid import NO_CELL, NO_LABEL, PATCH

OFF = AugmentConfig(
    horizontal_flip=False, vertical_flip=False, turns=False, stain_jitter=0, brightness=0
)
FLIPS = OFF.model_copy(update={"horizontal_flip": True, "vertical_flip": True, "turns": True})
ALL = FLIPS.model_copy(update={"stain_jitter": 0.3, "brightness": 0.3})

HEMATOXYLIN, EOSIN = 0, 1
POSES = [(mirrored, quarters) for mirrored in (False, True) for quarters in range(4)]
"""The eight ways in which a square can lie."""

Batch = tuple[Tensor, Tensor, Tensor]


def on(**changes: float) -> AugmentConfig:
    return OFF.model_copy(update=changes)


def crops(count: int, across: int) -> Batch:
    """Crops whose pixels tell their cell: red its number, green its label, blue the pixel's place.

    Every fifth cell is missing.
    """
    cell = torch.arange(count * across**2).reshape(count, across, across)
    cell = torch.where(cell % 5 == 3, NO_CELL, cell)
    label = torch.where(cell == NO_CELL, NO_LABEL, cell % 2)
    red, green = (grown(part) for part in (cell, label))
    side = across * PATCH
    place = torch.arange(side * side).reshape(1, side, side).expand(count, -1, -1) / side**2
    return torch.stack([(red + 1) / 10000, (green + 1) / 2, place], dim=1).float(), label, cell


def grown(part: Tensor) -> Tensor:
    """A grid of cells as pixels."""
    return part.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)


def posed(part: Tensor, mirrored: bool, quarters: int) -> Tensor:
    part = part.flip(-1) if mirrored else part
    return part.rot90(quarters, (-2, -1))


def counted_poses(before: Tensor, after: Tensor) -> list[int]:
    """How often each pose occurs; each image has exactly one."""
    posed_all = torch.stack([posed(before, *pose) for pose in POSES])
    same = (posed_all == after).flatten(2).all(-1)
    assert (same.sum(0) == 1).all()
    return same.sum(1).tolist()


def test_draws_depend_on_nothing_but_seed_epoch_and_patch() -> None:
    patches = torch.arange(1000)
    whole = draws(3, 5, patches, 8)
    order = torch.from_numpy(np.random.default_rng(0).permutation(1000))
    torch.testing.assert_close(draws(3, 5, order, 8), whole[order], rtol=0, atol=0)
    torch.testing.assert_close(draws(3, 5, torch.tensor([77]), 8)[0], whole[77], rtol=0, atol=0)
    torch.testing.assert_close(draws(3, 5, patches, 2), whole[:, :2], rtol=0, atol=0)


def test_draws_do_not_touch_the_global_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    draws(0, 0, torch.arange(5), 3)
    augment(*crops(4, 1), ALL, seed=0, epoch=0)
    assert torch.rand(1) == expected


def test_draws_are_the_same_on_every_machine() -> None:
    """Guards the numbers themselves: SplitMix64 by Python's own whole numbers."""
    mask = 2**64 - 1

    def mix(bits: int) -> int:
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & mask
        return bits ^ (bits >> 31)

    golden = 0x9E3779B97F4A7C15
    for seed, epoch, patch in product((0, 1, 2**32 - 1), (0, 29), (0, 5, 277_523)):
        state = mix((mix(mix((seed + golden) & mask) ^ epoch) + patch) & mask)
        numbers = [(mix((state + golden * k) & mask) >> 40) / 2**24 for k in (1, 2, 3)]
        assert draws(seed, epoch, torch.tensor([patch]), 3)[0].tolist() == numbers


@pytest.mark.parametrize("vary", ["patch", "epoch", "seed"])
def test_draws_are_uniform_whatever_varies(vary: str) -> None:
    count = 4000
    if vary == "patch":
        numbers = draws(0, 0, torch.arange(count), 8)
    else:
        one = torch.tensor([12])
        each = [draws(*((0, n) if vary == "epoch" else (n, 0)), one, 8) for n in range(count)]
        numbers = torch.cat(each)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for column in numbers.T.numpy():
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    together = np.corrcoef(numbers.T.numpy())[np.triu_indices(8, 1)]
    assert np.abs(together).max() < 4.5 / count**0.5
    after = [np.corrcoef(c[:-1], c[1:])[0, 1] for c in numbers.T.numpy()]
    assert np.abs(after).max() < 4.5 / count**0.5


def test_neighbours_in_seed_epoch_and_patch_share_no_draws() -> None:
    patches = torch.arange(50)
    tables = [draws(seed, epoch, patches, 8) for seed in range(4) for epoch in range(4)]
    numbers = torch.stack(tables).flatten()
    assert numbers.unique().numel() > 0.99 * numbers.numel()


def test_an_image_changes_in_the_same_way_in_every_batch() -> None:
    image, label, cell = crops(12, 3)
    whole = augment(image, label, cell, ALL, seed=2, epoch=4)
    order = torch.tensor([7, 0, 11])
    part = augment(image[order], label[order], cell[order], ALL, seed=2, epoch=4)
    for few, all_of_them in zip(part, whole, strict=True):
        torch.testing.assert_close(few, all_of_them[order])
    again = augment(image, label, cell, ALL, seed=2, epoch=5)
    assert not torch.equal(again[0], whole[0])
    other = augment(image, label, cell, ALL, seed=3, epoch=4)
    assert not torch.equal(other[0], whole[0])


@pytest.mark.parametrize("across", [1, 3])
def test_all_off_changes_nothing(across: int) -> None:
    before = crops(6, across)
    kept = [part.clone() for part in before]
    for part, expected in zip(augment(*before, OFF, seed=0, epoch=0), kept, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=0)


def test_the_batch_that_is_given_stays_as_it_is() -> None:
    before = crops(6, 3)
    kept = [part.clone() for part in before]
    augment(*before, ALL, seed=0, epoch=0)
    for part, expected in zip(before, kept, strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (on(horizontal_flip=True), {(False, 0), (True, 0)}),
        (on(vertical_flip=True), {(False, 0), (True, 2)}),
        (
            on(horizontal_flip=True, vertical_flip=True),
            {(False, 0), (True, 0), (True, 2), (False, 2)},
        ),
        (on(turns=True), {(False, quarters) for quarters in range(4)}),  # never a mirror image
        (on(turns=True, vertical_flip=True), set(POSES)),
        (FLIPS, set(POSES)),
    ],
    ids=["horizontal", "vertical", "both flips", "turns", "turns and a flip", "all"],
)
def test_each_flip_and_turn_is_as_frequent_as_the_others(
    config: AugmentConfig, expected: set[tuple[bool, int]]
) -> None:
    count = 4000
    cell = torch.arange(count).reshape(-1, 1, 1)
    image = torch.arange(3 * 4 * 4).reshape(1, 3, 4, 4).float().expand(count, -1, -1, -1) / 48
    turned, label, same = augment(image, cell % 2, cell, config, seed=0, epoch=0)
    counts = counted_poses(image, turned)
    found = {pose for pose, number in zip(POSES, counts, strict=True) if number}
    assert found == expected
    assert stats.chisquare([number for number in counts if number]).pvalue > 1e-4
    assert torch.equal(same, cell)
    assert torch.equal(label, cell % 2)


@pytest.mark.parametrize("seed", range(3))
def test_labels_and_cells_turn_along_with_the_image(seed: int) -> None:
    before = crops(40, 3)
    image, label, cell = augment(*before, FLIPS, seed=seed, epoch=1)
    assert min(counted_poses(before[0], image)) > 0
    assert torch.equal((image[:, 0] * 10000).round().long() - 1, grown(cell))
    assert torch.equal((image[:, 1] * 2).round().long() - 1, grown(label))
    assert torch.equal(cell.flatten(1).sort().values, before[2].flatten(1).sort().values)
    assert ((label == NO_LABEL) == (cell == NO_CELL)).all()


def colours() -> Tensor:
    """All colours on a coarse grid as one image [1, 3, 18, 324]."""
    steps = torch.linspace(0, 1, 18)
    return torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, 18, 324)


def test_factors_of_one_leave_all_colours_as_they_are() -> None:
    same = jitter_stains(colours(), torch.ones(1, 3))
    torch.testing.assert_close(same, colours().clamp_min(1 / 255), rtol=1e-4, atol=1e-5)


def test_jittered_colours_are_colours() -> None:
    strength = torch.tensor(list(product((0.0, 0.5, 2.0), repeat=3)))
    image = jitter_stains(colours().expand(len(strength), -1, -1, -1), strength)
    assert image.isfinite().all()
    assert image.min() >= 0
    assert image.max() <= 1


def stained(*amounts: float) -> Tensor:
    """A pixel of these amounts of hematoxylin, eosin and residual."""
    return torch.exp(-torch.tensor(amounts) @ RGB_FROM_HED).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("strength", [(1.5, 1, 1), (0.5, 1, 1), (1, 1.4, 1), (0.8, 1.3, 1.1)])
def test_each_stain_is_scaled_by_its_own_factor(strength: tuple[float, ...]) -> None:
    amounts = (0.6, 0.4, 0.1)
    scaled = [amount * factor for amount, factor in zip(amounts, strength, strict=True)]
    changed = jitter_stains(stained(*amounts), torch.tensor([strength]))
    torch.testing.assert_close(changed, stained(*scaled), rtol=1e-4, atol=1e-5)


def test_more_hematoxylin_is_darker_and_bluer_and_more_eosin_is_pinker() -> None:
    before = stained(0.5, 0.5, 0)[0, :, 0, 0]

    def share_left(stain: int) -> Tensor:
        strength = torch.ones(1, 3)
        strength[0, stain] = 1.5
        return jitter_stains(before[None, :, None, None], strength)[0, :, 0, 0] / before

    red, green, blue = share_left(HEMATOXYLIN).tolist()
    assert max(red, green) < blue < 1  # blue light passes best
    red, green, blue = share_left(EOSIN).tolist()
    assert green < blue < red < 1  # red light passes best


def test_white_stays_white_and_weaker_stains_are_lighter() -> None:
    strength = torch.tensor([[0.5, 0.5, 0.5]])
    torch.testing.assert_close(
        jitter_stains(torch.ones(1, 3, 2, 2), strength), torch.ones(1, 3, 2, 2)
    )
    pixel = stained(0.5, 0.5, 0.1)
    assert (jitter_stains(pixel, strength) > pixel).all()


def test_stain_jitter_stays_within_its_share() -> None:
    pixel = stained(0.6, 0.4, 0.2)
    count, share = 2000, 0.3
    cell = torch.arange(count).reshape(-1, 1, 1)
    image, _, _ = augment(
        pixel.expand(count, -1, -1, -1), cell, cell, on(stain_jitter=share), seed=0, epoch=0
    )
    amounts = -image[:, :, 0, 0].log() @ torch.linalg.inv(RGB_FROM_HED)
    factors = (amounts / torch.tensor([0.6, 0.4, 0.2])).numpy()
    assert factors.min() > 1 - share - 1e-3
    assert factors.max() < 1 + share + 1e-3
    for stain in factors.T:
        assert stats.kstest((stain - 1 + share) / (2 * share), "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(factors.T)[np.triu_indices(3, 1)]).max() < 0.1


def test_brightness_scales_all_colours_of_an_image_alike() -> None:
    count, share = 2000, 0.2
    cell = torch.arange(count).reshape(-1, 1, 1)
    before = torch.tensor([0.2, 0.5, 0.8]).reshape(1, 3, 1, 1).expand(count, 3, 2, 2)
    image, _, _ = augment(before, cell, cell, on(brightness=share), seed=0, epoch=0)
    light = (image / before).flatten(1)
    torch.testing.assert_close(light, light[:, :1].expand_as(light))
    assert stats.kstest((light[:, 0].numpy() - 1 + share) / (2 * share), "uniform").pvalue > 1e-4
    bright, _, _ = augment(torch.ones_like(before), cell, cell, on(brightness=5), seed=0, epoch=0)
    assert bright.min() >= 0
    assert bright.max() <= 1
