"""A view, whose features a frozen backbone keeps, is what `augment` makes of the same draw."""

from itertools import product

import pytest
import torch
from torch import Tensor

from idc_lightning.config import AugmentConfig
from idc_lightning.data.augment import augment, draw_views, draws
from idc_lightning.data.grid import PATCH
from idc_lightning.data.views import VIEWS, possible_views, viewed

COUNT = 400


def config_of(columns: bool, rows: bool, turns: bool) -> AugmentConfig:
    return AugmentConfig(
        horizontal_flip=columns, vertical_flip=rows, turns=turns, stain_jitter=0, brightness=0
    )


def by_hand(image: Tensor, config: AugmentConfig, chance: list[float]) -> Tensor:
    """The flips and turns of one image [3, H, H], one after the other."""
    if config.horizontal_flip and chance[0] < 0.5:
        image = image.flip(2)
    if config.vertical_flip and chance[1] < 0.5:
        image = image.flip(1)
    if config.turns and chance[2] < 0.5:
        image = image.rot90(1, (1, 2))
    if config.turns and chance[3] < 0.5:
        image = image.rot90(2, (1, 2))
    return image


@pytest.mark.parametrize(
    ("config", "number"),
    [
        (config_of(*flags), number)
        for flags, number in zip(
            product((False, True), repeat=3), (1, 4, 2, 8, 2, 8, 4, 8), strict=True
        )
    ],
    ids=str,
)
def test_each_view_is_the_flips_and_turns_of_augment_on_the_same_draw(
    config: AugmentConfig, number: int
) -> None:
    pixels = torch.randint(256, (COUNT, PATCH, PATCH, 3), dtype=torch.uint8)
    cell = torch.arange(COUNT).reshape(-1, 1, 1)
    image = pixels.permute(0, 3, 1, 2)
    views = draw_views(config, cell, seed=3, epoch=2)
    augmented, _, _ = augment(image, cell, cell, config, seed=3, epoch=2)
    kept = viewed(pixels, views).permute(0, 3, 1, 2)  # as the frozen backbone gets it
    assert torch.equal(kept.float() / 255, augmented)
    chance = draws(3, 2, torch.arange(COUNT), 4).tolist()
    for before, after, of_patch in zip(image, kept, chance, strict=True):
        assert torch.equal(after, by_hand(before, config, of_patch))
    assert sorted(views.unique().tolist()) == possible_views(config)
    assert len(possible_views(config)) == number


def test_eight_views_are_all_the_ways_in_which_a_square_can_lie() -> None:
    square = torch.arange(9).reshape(1, 3, 3).expand(VIEWS, -1, -1)
    found = {tuple(one.flatten().tolist()) for one in viewed(square, torch.arange(VIEWS))}
    mirrored = (square[0], square[0].flip(0))
    ways = {tuple(s.rot90(k).flatten().tolist()) for s in mirrored for k in range(4)}
    assert found == ways
    assert len(ways) == VIEWS
    assert torch.equal(viewed(square, torch.zeros(VIEWS, dtype=torch.int64)), square)
