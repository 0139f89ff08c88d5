"""Where in an image the features of a backbone lie, and their means over the cells of a grid."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idc_lightning.data.grid import PATCH

PROBES = (122, 250)
"""Sizes of images, in pixels, that show the stride of a backbone and what it does at borders."""


@dataclass(frozen=True)
class Raster:
    """Places of a map of features along each side of an image.

    Attributes:
        stride: Pixels from a place to the next.
        first: Centre of the first place, in pixels from the image's edge.
    """

    stride: int
    first: float

    def pool(self, maps: Tensor, rows: int, columns: int) -> Tensor:
        """Mean of the features in each cell; a place on a border counts by its share of the area.

        Args:
            maps: Float [B, F, H, W] of an image of rows x columns cells.
            rows: Of the grid, h.
            columns: Of the grid, w.

        Returns:
            Float [B, F, h, w].
        """
        down = self._shares(rows, maps.shape[2]).to(maps)
        across = self._shares(columns, maps.shape[3]).to(maps)
        return torch.einsum("iy,bfyx,jx->bfij", down, maps, across)

    def _shares(self, cells: int, places: int) -> Tensor:
        """Share of each place in each cell along a side, float32 [cells, places]; rows sum to 1."""
        centre = self.first + self.stride * torch.arange(places)
        edge = PATCH * torch.arange(cells)[:, None]
        begin = torch.maximum(centre - self.stride / 2, edge)
        end = torch.minimum(centre + self.stride / 2, edge + PATCH)
        inside = (end - begin).clamp_min(0)
        return inside / inside.sum(1, keepdim=True)


def raster_of(backbone: nn.Module) -> Raster:
    """Find out how a backbone of torchvision lays its features over an image.

    Strides are powers of 2. Backbones that pad their images lead from the first pixel on and have a
    place for the rest of an image; those that don't leave it out.

    Args:
        backbone: Maps float [B, 3, H, W] to [B, F, h, w]; it is in training mode afterwards.
    """
    backbone.eval()
    with torch.inference_mode():
        small, large = (backbone(torch.zeros(1, 3, size, size)).shape[-1] for size in PROBES)
    backbone.train()
    stride = 2 ** round(math.log2((PROBES[1] - PROBES[0]) / (large - small)))
    padded = large * stride >= PROBES[1]
    return Raster(stride, 0.0 if padded else (stride - 1) / 2)
