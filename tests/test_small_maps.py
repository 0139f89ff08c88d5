import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_lightning.models.backbone import build_backbone
from idc_lightning.models.small_maps import BLOCK, SmallMapConv2d, quicken_small_maps

SMALL = [
    # kernel, stride, padding, height and width of the input
    pytest.param(3, 1, 1, (2, 2), id="last stage of a ResNet"),
    pytest.param(3, 2, 1, (4, 4), id="first layer of it"),
    pytest.param((3, 2), (2, 1), (1, 0), (3, 3), id="sides differ"),
    pytest.param(5, 1, 2, (1, 4), id="kernel beyond the map"),
]


def quickened(conv: nn.Conv2d) -> nn.Conv2d:
    torch.manual_seed(1)
    quick = nn.Sequential(
        nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )
    )
    quicken_small_maps(quick)
    found = quick[0]
    assert isinstance(found, SmallMapConv2d)
    found.load_state_dict(conv.state_dict())
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "sides"), SMALL)
def test_results_and_gradients_are_those_of_the_convolution(
    kernel: int, stride: int, padding: int, sides: tuple[int, int], *, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, kernel, stride, padding, bias=bias)
    image = torch.randn(5, 6, *sides)
    found = []
    for layer in (conv, quickened(conv)):
        shown = image.clone().requires_grad_()
        maps = layer(shown)
        (maps * torch.linspace(-1, 1, maps.numel()).view_as(maps)).sum().backward()
        with torch.no_grad():
            found.append([maps, layer(image), shown.grad, *(p.grad for p in layer.parameters())])
    for quick, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


def test_small_maps_are_no_convolutions_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    convolve = functional.conv2d

    def watched(image: Tensor, *others: Tensor) -> Tensor:
        sizes.append(tuple(image.shape[-2:]))
        return convolve(image, *others)

    backbone, _ = build_backbone("resnet18")
    quicken_small_maps(backbone)
    monkeypatch.setattr(functional, "conv2d", watched)
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, 50, 50))
    # Of the last stage the shortcut of 1x1 alone.
    assert sizes.count((4, 4)) == 3 + 1
    assert (2, 2) not in sizes
    sizes.clear()
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, 150, 150))
    assert sizes.count((5, 5)) == 3


def test_what_is_no_plain_convolution_is_left_alone() -> None:
    layers = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ]
    quicken_small_maps(nn.Sequential(*layers))
    assert {type(layer) for layer in layers} == {nn.Conv2d}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_patchs_map_is_the_same_in_each_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = quickened(nn.Conv2d(64, 48, 3, padding=1, bias=False)).to(dtype)
    image = torch.randn(2 * BLOCK + 5, 64, 2, 2).to(dtype)
    with torch.inference_mode():
        whole = conv(image)
        for first, end in ((0, 1), (0, 3), (7, 40), (BLOCK - 1, BLOCK + 1), (90, len(image))):
            assert torch.equal(conv(image[first:end]), whole[first:end])


def test_no_image_gives_no_map() -> None:
    conv = quickened(nn.Conv2d(4, 6, 3, padding=1))
    for nothing_learns in (True, False):
        with torch.inference_mode(nothing_learns):
            assert conv(torch.zeros(0, 4, 2, 2)).shape == (0, 6, 2, 2)
