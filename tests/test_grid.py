import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idc_lightning.data.grid import FILE_NAME, PATCH, assemble, cell_map, file_name, tissue_image


def test_each_pixel_of_a_crop_comes_from_its_cell() -> None:
    crops, grid = 2, 3
    shape = (crops, grid, grid, PATCH, PATCH, 3)
    pixels = torch.arange(np.prod(shape), dtype=torch.int64).reshape(shape)
    image = assemble(pixels)
    assert image.shape == (crops, 3, grid * PATCH, grid * PATCH)
    for crop, colour, row, column in (
        (0, 0, 0, 0),
        (1, 2, 149, 149),
        (0, 1, 49, 50),
        (1, 0, 73, 12),
    ):
        cell = pixels[crop, row // PATCH, column // PATCH, row % PATCH, column % PATCH, colour]
        assert image[crop, colour, row, column] == cell


def test_a_crop_of_one_cell_is_the_patch_itself() -> None:
    pixels = torch.randint(0, 256, (4, 1, 1, PATCH, PATCH, 3), dtype=torch.uint8)
    image = assemble(pixels)
    assert image.dtype == torch.uint8
    assert image.permute(0, 2, 3, 1).equal(pixels[:, 0, 0])


@settings(max_examples=50)
@given(
    patient=st.from_regex(r"[0-9A-Za-zé_,\"'-]{1,8}", fullmatch=True),
    x=st.integers(0, 9_999_999),
    y=st.integers(0, 9_999_999),
    target=st.integers(0, 1),
)
def test_a_name_gives_back_what_it_was_made_of(patient: str, x: int, y: int, target: int) -> None:
    match = FILE_NAME.fullmatch(file_name(patient, x, y, target))
    assert match
    assert match["patient_id"] == patient
    assert (int(match["x"]), int(match["y"]), int(match["target"])) == (x, y, target)


@pytest.mark.parametrize(
    "name",
    [
        "_idx5_x1_y1_class0.png",
        "7_idx5_x1_y1_class2.png",
        "7_idx5_x1_y1_class0.PNG",
        "7_idx5_x1_y1_class0.png\n",
        "7_idx5_x1_y1_class0_png",
        "7_idx4_x1_y1_class0.png",
        "7_idx5_x01_y1_class0.png",
        "7_idx5_x1_y00_class0.png",
        "7_idx5_x-49_y1_class0.png",
        "7_idx5_x12345678_y1_class0.png",
        "7_idx5_x5\u0661_y1_class0.png",
        " 7_idx5_x1_y1_class0.png",
        "7 _idx5_x1_y1_class0.png",
        "7\x1b[2J_idx5_x1_y1_class0.png",
        "7\n8_idx5_x1_y1_class0.png",
        "7\udcff_idx5_x1_y1_class0.png",
        "7/8_idx5_x1_y1_class0.png",
    ],
)
def test_other_names_are_no_patches(name: str) -> None:
    assert FILE_NAME.fullmatch("7_idx5_x1_y1_class0.png")
    assert not FILE_NAME.fullmatch(name)


def test_x_is_the_column_and_y_the_row() -> None:
    laid = cell_map(np.array([101, 1]), np.array([1, 51]), np.array([0.25, 0.5]))
    expected = [[np.nan, np.nan, 0.25], [0.5, np.nan, np.nan]]
    np.testing.assert_array_equal(laid, expected)


def test_patches_are_put_together_and_what_lacks_is_white() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, PATCH, PATCH, 3), dtype=np.uint8)
    image = tissue_image(np.array([101, 1]), np.array([1, 51]), pixels)
    assert image.shape == (2 * PATCH, 3 * PATCH, 3)
    np.testing.assert_array_equal(image[:PATCH, 2 * PATCH :], pixels[0])
    np.testing.assert_array_equal(image[PATCH:, :PATCH], pixels[1])
    image[:PATCH, 2 * PATCH :] = image[PATCH:, :PATCH] = 255
    assert (image == 255).all()
