import pytest
import torch
from torch import nn

from idc_lightning.config import HeadConfig
from idc_lightning.data.grid import PATCH
from idc_lightning.models.backbone import build_backbone
from idc_lightning.models.network import PatchNetwork
from idc_lightning.models.raster import Raster, raster_of

PADDED, UNPADDED = Raster(32, 0.0), Raster(32, 15.5)


@pytest.mark.parametrize(
    ("name", "raster"),
    [
        ("resnet18", PADDED),
        ("shufflenet_v2_x0_5", PADDED),
        ("mobilenet_v3_small", PADDED),
        ("vgg11", UNPADDED),
        ("convnext_tiny", UNPADDED),
        ("squeezenet1_1", Raster(16, 7.5)),
    ],
)
def test_the_raster_of_a_backbone_is_found(name: str, raster: Raster) -> None:
    assert raster_of(build_backbone(name)[0]) == raster


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_raster_is_where_a_backbone_looks(stride: int, padded: bool) -> None:
    """Of nets whose places see one pixel each, that of the centre."""
    halves = range(stride.bit_length() - 1)
    backbone = nn.Sequential(
        *(nn.MaxPool2d(3, 2, 1) if padded else nn.AvgPool2d(2) for _ in halves)
    )
    raster = raster_of(backbone)
    column = torch.arange(8 * PATCH).float().expand(1, 1, PATCH, -1)
    seen = backbone(column)[0, 0, 0]
    # Max pooling sees up to half a stride beyond the centre.
    wanted = raster.first + raster.stride * torch.arange(len(seen))
    assert (seen - wanted).abs().max() <= (stride - 1 if padded else 0)


@pytest.mark.parametrize("raster", [PADDED, UNPADDED, Raster(16, 0.0), Raster(8, 3.5)])
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (1, 8), (5, 3)])
def test_cells_are_means_over_the_area_that_places_stand_for(
    raster: Raster, rows: int, columns: int
) -> None:
    def places(cells: int) -> int:
        size = cells * PATCH
        return -(-size // raster.stride) if raster.first == 0 else size // raster.stride

    torch.manual_seed(0)
    maps = torch.rand(2, 3, places(rows), places(columns), dtype=torch.float64)

    def nearest(cells: int, number: int) -> torch.Tensor:
        """For each pixel whose place it is; pixels beyond the last count for none."""
        pixel = torch.arange(cells * PATCH) + 0.5
        return ((pixel - raster.first + raster.stride / 2) / raster.stride).floor().long()

    down, across = nearest(rows, maps.shape[2]), nearest(columns, maps.shape[3])
    pooled = raster.pool(maps, rows, columns)
    assert pooled.shape == (2, 3, rows, columns)
    for row in range(rows):
        for column in range(columns):
            mine = [
                part[cell * PATCH : (cell + 1) * PATCH]
                for part, cell in ((down, row), (across, column))
            ]
            sizes = zip(mine, maps.shape[2:], strict=True)
            inside = [part[(part >= 0) & (part < size)] for part, size in sizes]
            area = maps[:, :, inside[0]][:, :, :, inside[1]].mean(dim=(2, 3))
            torch.testing.assert_close(pooled[:, :, row, column], area, rtol=0.03, atol=0.01)


def test_features_of_a_crop_move_with_its_tissue() -> None:
    """Far from borders a cell has the same features wherever it lies in a crop."""
    torch.manual_seed(0)
    network = PatchNetwork(
        "shufflenet_v2_x0_5", HeadConfig(hidden=[4], dropout=0.0, bias=0.0)
    ).eval()
    tissue = torch.rand(1, 3, PATCH, 48 * PATCH)
    with torch.inference_mode():
        whole = network.features(tissue)
        moved = network.features(tissue[..., 16 * PATCH :])  # 25 strides
    assert whole.shape == (1, 1, 48, 1024)
    difference = (whole[0, 0, 16:] - moved[0, 0]).abs().max(dim=1).values
    scale = whole.abs().mean()
    assert difference[8:].max() < 1e-4 * scale
    assert difference[0] > difference[8:].max()
