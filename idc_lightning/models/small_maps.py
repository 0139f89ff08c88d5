"""Convolutions that give maps of a few places only, as one product of matrices on the CPU.

The last stage of a backbone sees a patch of 50 px as 2x2 places, for which oneDNN's convolutions
are several times slower than its products of matrices: benchmarks/README.md has the figures.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

MOST_PLACES = 4
"""Places of a map up to which the product is quicker; of 4x4 it takes as long as a convolution."""

BLOCK = 64
"""Images of a product where nothing learns.

Libraries choose the order of sums by the size of a product. Of one size, a patch's features don't
depend on how many others are in its batch.
"""


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is a product of matrices where its map has few places.

    Neighbourhoods are laid out as the rows of a matrix ("im2col": K. Chellapilla et al., "High
    performance convolutional neural networks for document processing", IWFHR 2006). Weights, their
    names and the result are those of `torch.nn.Conv2d`, but for the order of sums.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve float [B, C, H, W]."""
        if input.device.type != "cpu" or self._places(input) > MOST_PLACES:
            return super().forward(input)
        above, beside = self._padded
        padded = pad(input.permute(0, 2, 3, 1), (0, 0, beside, beside, above, above))
        # Unlike slices and `unfold` this has a backward pass as quick as the product's.
        near = self._neighbours(padded.shape[1], padded.shape[2])
        rows = padded.flatten(1, 2).index_select(1, near.flatten())
        rows = rows.reshape(len(rows), *near.shape[:2], near.shape[2] * padded.shape[3])
        weight = self.weight.to(rows.dtype).permute(0, 2, 3, 1).flatten(1)
        if torch.is_grad_enabled():
            maps = linear(rows, weight, self.bias)
        else:
            whole = pad(rows, (0, 0, 0, 0, 0, 0, 0, -len(rows) % BLOCK))
            blocks = [linear(block, weight, self.bias) for block in torch.split(whole, BLOCK)]
            maps = torch.cat(blocks)[: len(rows)]
        return maps.permute(0, 3, 1, 2)

    def _neighbours(self, height: int, width: int) -> Tensor:
        """Which places of a padded image, counted row by row, each place of the map sees.

        Returns:
            Int64 [map's height, map's width, kernel's places].
        """
        (high, wide), (down, across) = self.kernel_size, self.stride
        rows = torch.arange(0, height - high + 1, down) * width
        columns = torch.arange(0, width - wide + 1, across)
        kernel = torch.arange(high)[:, None] * width + torch.arange(wide)
        return rows[:, None, None] + columns[:, None] + kernel.flatten()

    def _places(self, image: Tensor) -> int:
        """How many places the map has."""
        places = 1
        for side, kernel, stride, padding in zip(
            image.shape[-2:], self.kernel_size, self.stride, self._padded, strict=True
        ):
            places *= (side + 2 * padding - kernel) // stride + 1
        return places

    @property
    def _padded(self) -> tuple[int, ...]:
        """Zeros above and beside an image."""
        assert not isinstance(self.padding, str)
        return self.padding


def quicken_small_maps(backbone: nn.Module) -> None:
    """Make `SmallMapConv2d` of each convolution that it can stand for.

    Args:
        backbone: Its layers keep their weights and names.
    """
    for layer in backbone.modules():
        if type(layer) is nn.Conv2d and _is_plain(layer):
            layer.__class__ = SmallMapConv2d


def _is_plain(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size != (1, 1)  # which is a product of matrices already
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
