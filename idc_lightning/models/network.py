"""The network: normalisation, backbone, pooling to the grid of cells, context, head on each cell.

For a single patch the pooling is torchvision's global one, so the notebook's net is the case of a
grid of one cell.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from idc_lightning.config import ContextConfig, HeadConfig
from idc_lightning.data.grid import PATCH, grid_of
from idc_lightning.models.backbone import build_backbone
from idc_lightning.models.context import GridContext
from idc_lightning.models.dropout import Dropout
from idc_lightning.models.raster import raster_of
from idc_lightning.models.small_maps import quicken_small_maps

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB that torchvision's weights were trained with."""


class Normalize(nn.Module):
    """Subtract ImageNet's mean and divide by its standard deviation, by colour.

    It is a part of the network, so that a checkpoint needs nothing beside it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise float [B, 3, H, W] in 0 to 1."""
        # A single pass over the images.
        return torch.addcmul(-self.mean / self.std, image, 1 / self.std)


class Head(nn.Sequential):
    """Hidden layers of Linear, ReLU, BatchNorm and Dropout, then the logits.

    Weights begin as X. Glorot's and Y. Bengio's uniform ("Understanding the difficulty of training
    deep feedforward neural networks", AISTATS 2010).

    Args:
        features: Number of the backbone's features.
        classes: Number of classes.
        config: Sizes, dropout and first bias.
    """

    def __init__(self, features: int, classes: int, config: HeadConfig) -> None:
        sizes = [features, *config.hidden]
        layers: list[nn.Module] = []
        for size, hidden in pairwise(sizes):
            layers += [
                nn.Linear(size, hidden),
                nn.ReLU(),
                nn.BatchNorm1d(hidden),
                Dropout(config.dropout),
            ]
        layers.append(nn.Linear(sizes[-1], classes))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.constant_(layer.bias, config.bias)
        super().__init__(*layers)


class PatchNetwork(nn.Module):
    """Logits for each cell of crops of tissue.

    Args:
        backbone: Name of a convolutional classifier of torchvision.
        head: Layers on the features of a cell.
        classes: Number of classes.
        frozen: Whether the backbone learns nothing, neither weights nor statistics.
        context: How patches take note of each other; a grid lets the backbone see each patch alone.
        alone: Whether the backbone does so without a grid, too.

    Attributes:
        width: Number of features of a cell, F.
        raster: Where in an image the backbone's features lie.

    Raises:
        IDCError: If the backbone isn't known.
    """

    def __init__(
        self,
        backbone: str,
        head: HeadConfig,
        *,
        classes: int = 2,
        frozen: bool = False,
        context: ContextConfig | None = None,
        alone: bool = False,
    ) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.backbone, self.width = build_backbone(backbone)
        self.raster = raster_of(self.backbone)
        quicken_small_maps(self.backbone)
        self.context = None
        if context is not None and context.name == "grid":
            self.context = GridContext(self.width, context.width, context.blocks)
        self.alone = alone or self.context is not None
        self.head = Head(self.width, classes, head)
        self.frozen = frozen
        self.backbone.requires_grad_(not frozen)
        # Convolutions on the CPU and on tensor cores are quicker with colours last.
        self.backbone.to(memory_format=torch.channels_last)
        self.train()  # Lightning trains a network in the mode that it finds

    def train(self, mode: bool = True) -> "PatchNetwork":
        """Switch between training and evaluation; a frozen backbone stays in evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, image: Tensor, shown: Tensor | None = None) -> Tensor:
        """Features of each cell.

        Args:
            image: Float [B, 3, 50h, 50w] in 0 to 1.
            shown: Where there is a patch, bool [B, h, w]; None is everywhere.

        Returns:
            Float32 [B, h, w, F].
        """
        if not self.alone:
            return self.pooled(image).permute(0, 2, 3, 1).float()
        rows, columns = grid_of(image)
        cells = image.reshape(len(image), 3, rows, PATCH, columns, PATCH).permute(0, 2, 4, 1, 3, 5)
        if shown is None:
            shown = cells.new_ones(cells.shape[:3], dtype=torch.bool)
        found = self.pooled(cells[shown])[:, :, 0, 0].float()
        features = found.new_zeros(*shown.shape, self.width)
        features[shown] = found
        return features

    def refine(self, features: Tensor, shown: Tensor | None = None) -> Tensor:
        """Let patches take note of each other.

        Args:
            features: Float32 [B, h, w, F], of `features`.
            shown: Where there is a patch, bool [B, h, w]; None is everywhere.

        Returns:
            The same shape.
        """
        if self.context is None:
            return features
        if shown is None:
            shown = features.new_ones(features.shape[:-1], dtype=torch.bool)
        # It is as small as the head, and computes like it.
        with torch.autocast(features.device.type, enabled=False):
            refined: Tensor = self.context(features, shown)
        return refined

    def pooled(self, image: Tensor) -> Tensor:
        """Features as the backbone gives them, in whatever precision, float [B, F, h, w].

        Args:
            image: Float [B, 3, 50h, 50w] in 0 to 1.
        """
        rows, columns = grid_of(image)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            image = self.normalize(image).contiguous(memory_format=torch.channels_last)
            maps = self.backbone(image)
            # The mean, unlike adaptive pooling, is deterministic on GPUs.
            if rows == columns == 1:
                pooled: Tensor = maps.mean(dim=(2, 3), keepdim=True)
            else:
                pooled = self.raster.pool(maps, rows, columns)
        return pooled

    def forward(
        self,
        image: Tensor | None = None,
        features: Tensor | None = None,
        shown: Tensor | None = None,
        judged: Tensor | None = None,
    ) -> Tensor:
        """Logits of images, or of the features that a frozen backbone gave of them.

        Args:
            image: Float [B, 3, 50h, 50w] in 0 to 1.
            features: Float32 [B, h, w, F], in place of images.
            shown: Where there is a patch, bool [B, h, w]; None is everywhere.
            judged: Where one is judged, likewise.

        Returns:
            Float32 [B, h, w, K], or [n, K] of the cells that are judged.
        """
        if features is None:
            if image is None:
                raise ValueError("neither images nor features were given")
            features = self.features(image, shown)
        features = self.refine(features, shown)
        if judged is not None:
            # The others would change the statistics of the head's BatchNorm.
            features = features[judged]
        return self.classify(features)

    def classify(self, features: Tensor) -> Tensor:
        """Logits of features.

        Args:
            features: Float32 [..., F], of `refine`.

        Returns:
            Float32 [..., K].
        """
        # The head costs little, and bfloat16 logits would be too coarse to rank patches by.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.flatten(0, -2))
        return logits.reshape(*features.shape[:-1], logits.shape[-1])
