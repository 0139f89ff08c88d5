"""A small net over the grid of a slide, by which patches take note of each other's features."""

import torch
from torch import Tensor, nn


class GridContext(nn.Module):
    """Adds to the features of each patch what those of its neighbours say.

    Residual blocks of 3x3 convolutions over cells, each of which sees one cell further on every
    side. Cells without a patch stay zero throughout. It begins as the identity, so that a net which
    has learned on single patches goes on from there.

    Args:
        features: Number of features of a patch, F.
        width: Number of channels within.
        blocks: Number of blocks, each of two convolutions.
    """

    def __init__(self, features: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.leave = nn.Linear(width, features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Refine features.

        Args:
            features: Float32 [B, h, w, F].
            present: Bool [B, h, w], where there is a patch.

        Returns:
            Float32 [B, h, w, F]; zero where there is no patch.
        """
        mask = present[..., None].to(features.dtype)
        # Features follow ReLU and differ in scale from net to net.
        values = self.enter(nn.functional.layer_norm(features, features.shape[-1:])) * mask
        for block in self.blocks:
            values = block(values, mask)
        refined: Tensor = (features + self.leave(values)) * mask
        return refined


class _Block(nn.Module):
    """Two 3x3 convolutions over cells, added to what they were given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Each cell is normalised by itself, so that it doesn't matter how large a window is.
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Float32 [B, h, w, width] to the same; the mask is [B, h, w, 1]."""
        changed = values
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            changed = torch.relu(norm(changed)) * mask
            changed = convolution(changed.movedim(-1, 1)).movedim(1, -1)
        return (values + changed) * mask
