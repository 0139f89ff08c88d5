"""The eight views of a square patch: as it is, flipped, turned by 90 degrees, and both.

A view is a number from 0 to 7; 0 is the patch as it is. Pixels, grids of cells and cached features
are all looked up by it, so that a flip means the same to each of them.
"""

from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from idc_lightning.config import AugmentConfig

VIEWS = 8

FLIP_X, FLIP_Y, TRANSPOSE = 1, 2, 4
"""Bits of a view: rows and columns change places first, then columns and rows run backwards."""


@lru_cache(maxsize=32)
def _sources(size: int, device: torch.device) -> Tensor:
    """From which place each place of each view comes, int64 [8, size * size]."""
    places = torch.arange(size * size, device=device).reshape(size, size)
    return torch.stack([as_view(places, view).flatten() for view in range(VIEWS)])


def as_view(tissue: Tensor, view: int, *, rows: int = 0) -> Tensor:
    """Give tissue a view, which changes height and width if it turns what isn't square.

    Args:
        tissue: Of any dtype.
        view: 0 to 7.
        rows: Its dimension of rows, which that of columns follows.
    """
    turned = tissue.transpose(rows, rows + 1) if view & TRANSPOSE else tissue
    turned = turned.flip(rows + 1) if view & FLIP_X else turned
    return turned.flip(rows) if view & FLIP_Y else turned


def viewed(squares: Tensor, views: Tensor) -> Tensor:
    """Give each square of a batch its view.

    Args:
        squares: [B, n, n, ...] of any dtype: rows, columns, and what lies at each place.
        views: Int64 [B], 0 to 7.

    Returns:
        The same shape and dtype.
    """
    batch, size = squares.shape[:2]
    if size == 1:
        return squares
    places = squares.reshape(batch, size * size, -1)
    source = _sources(size, squares.device)[views]
    chosen = places.gather(1, source[:, :, None].expand_as(places))
    return chosen.reshape(squares.shape)


@lru_cache(maxsize=1)
def _composed() -> Tensor:
    """The view that flips and turns make together, int64 [16].

    Its index has a bit for each of: flip of columns, flip of rows, a turn by 90 degrees, one by 180
    degrees, done in this order.
    """
    square = torch.arange(4).reshape(2, 2)
    views = {tuple(as_view(square, view).flatten().tolist()): view for view in range(VIEWS)}
    table = []
    for half, quarter, rows, columns in product((False, True), repeat=4):
        changed = square.flip(1) if columns else square
        changed = changed.flip(0) if rows else changed
        changed = changed.rot90(1) if quarter else changed
        changed = changed.rot90(2) if half else changed
        table.append(views[tuple(changed.flatten().tolist())])
    return torch.tensor(table)


def _wanted(config: AugmentConfig) -> tuple[bool, ...]:
    """Which of the four changes are made at all, in the order of `_composed`."""
    return config.horizontal_flip, config.vertical_flip, config.turns, config.turns


def choose_views(config: AugmentConfig, chance: Tensor) -> Tensor:
    """Draw a view of each patch; each change is made in half of them.

    Args:
        config: Which flips and turns are made.
        chance: Float [B, 4] in 0 to 1, for a flip of columns, a flip of rows, a turn by 90 and one
            by 180 degrees.

    Returns:
        Int64 [B].
    """
    bits = torch.tensor(
        [2**bit if wanted else 0 for bit, wanted in enumerate(_wanted(config))],
        device=chance.device,
    )
    return _composed().to(chance.device)[((chance < 0.5) * bits).sum(1)]


def possible_views(config: AugmentConfig) -> list[int]:
    """All views that `choose_views` can give; 0, the patch as it is, is always one."""
    bits = [2**bit if wanted else 0 for bit, wanted in enumerate(_wanted(config))]
    used = {sum(chosen) for chosen in product(*((0, bit) for bit in bits))}
    return sorted({int(_composed()[index]) for index in used})
