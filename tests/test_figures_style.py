import warnings
from pathlib import Path

import pytest
from helpers_figures import NAMES, drawn_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from idc_lightning.figures.style import DPI, drawing, shortened


def width(text: str, size: float, weight: str = "normal") -> float:
    """Of a line in inches, as it is drawn."""
    figure = Figure(dpi=DPI)
    figure.text(0, 0, text, size=size, weight=weight, parse_math=False)
    ((_, box),) = drawn_lines(figure)
    return float(box.width) / DPI


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_letter_makes_a_picture_warn(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with drawing(tmp_path / "a.png", 3, 3) as (_, (axes,)):
            axes.set_title(shortened(name, 2.5, 11))
            axes.set_xlabel(name)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_other_warnings_are_told(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="Attempting to set identical"),
        drawing(tmp_path / "a.png", 3, 3) as (_, (axes,)),
    ):
        axes.set_xlim(1, 1)


@settings(max_examples=50)
@given(
    text=st.text(st.characters(exclude_categories=("C", "Z", "M")), min_size=1, max_size=200),
    inches=st.floats(0.5, 5),
    size=st.sampled_from([7, 9, 12]),
)
def test_a_shortened_name_fits_and_is_as_long_as_fits(
    text: str, inches: float, size: float
) -> None:
    short = shortened(text, inches, size)
    assert width(short, size) <= inches
    if short == text:
        return
    assert short.endswith("…")
    kept = len(short) - 1
    assert text.startswith(short[:-1])
    assert width(text, size) > inches
    assert width(f"{text[: kept + 1]}…", size) > inches


def test_bold_letters_take_more_room() -> None:
    name = "a patient of many, with a name that is long"
    bold = shortened(name, 2, 12, bold=True)
    assert len(bold) < len(shortened(name, 2, 12))
    assert width(bold, 12, "bold") <= 2
