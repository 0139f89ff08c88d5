"""What the tests of pictures share: the figures that were drawn, and names and tables to draw."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import combinations
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image
from test_bootstrap import cohort

from idc_lightning.figures.style import Picture, drawing

NAMES = (
    "8863",
    "<script>alert(1)</script>",
    "$x_1$ & $",
    "$x^{2",
    "W" * 200,
    "a patient with quite a long name, as no data set has them " * 4,
    "\N{GRINNING FACE} \N{NUT AND BOLT}" * 30,
    "\u60a3\u8005 \u0645\u0631\u064a\u0636 \u0930\u094b\u0917\u0940",
    "\N{ARABIC LIGATURE BISMILLAH AR-RAHMAN AR-RAHEEM}" * 20,
)
"""Names of patients: markup, formulas, very long ones, and scripts that the font lacks."""


def keep_figures(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[Figure]:
    """The figures that modules draw, in their order."""
    kept: list[Figure] = []

    @contextmanager
    def keeping(*args: Any, **kwargs: Any) -> Iterator[tuple[Figure, list[Axes]]]:
        with drawing(*args, **kwargs) as (figure, axes):
            kept.append(figure)
            yield figure, axes

    for module in modules:
        monkeypatch.setattr(module, "drawing", keeping)
    return kept


class Recorder(RendererAgg):
    """Keeps the lines of text that are drawn: what they say, and their boxes in pixels."""

    def __init__(self, figure: Figure) -> None:
        super().__init__(*figure.bbox.size, figure.dpi)
        self.lines: list[tuple[str, Bbox]] = []

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, *_: Any, **__: Any
    ) -> None:
        width, height, descent = self.get_text_width_height_descent(s, prop, ismath=False)
        if angle == 90:
            box = Bbox.from_extents(x + descent - height, y - width, x + descent, y)
        else:
            box = Bbox.from_extents(x, y + descent - height, x + width, y + descent)
        self.lines.append((s, box))


@lru_cache(maxsize=64)
def drawn_lines(figure: Figure) -> list[tuple[str, Bbox]]:
    """The lines of text of a saved figure, with their boxes in pixels from its upper left."""
    figure.set_layout_engine("none")  # all stays where it was saved
    recorder = Recorder(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        figure.draw(recorder)
    return recorder.lines


def assert_all_inside(figure: Figure) -> None:
    """Nothing that is drawn is cut off by the edge of the picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks
        drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.02
    assert drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02
    # What is clipped to its axes, or left out of the layout, isn't in the above.
    width, height = figure.bbox.size
    for text, box in drawn_lines(figure):
        assert min(box.x0, box.y0) >= -2, text
        assert box.x1 <= width + 2, text
        assert box.y1 <= height + 2, text


def assert_no_text_overlaps(figure: Figure) -> None:
    """No line of text covers a part of another one."""
    for (one, box), (other, its_box) in combinations(drawn_lines(figure), 2):
        assert not box.padded(-1).overlaps(its_box.padded(-1)), (one, other)


def assert_shown(picture: Picture, figure: Figure) -> None:
    """A picture has something in it, nothing of it is cut off, and words go with it."""
    assert_all_inside(figure)
    with Image.open(picture.path) as image:
        assert len(set(image.convert("L").resize((200, 200)).tobytes())) > 10
    assert picture.title
    assert picture.caption.endswith(".")


def table_of(seed: int, patients: int = 12) -> pd.DataFrame:
    true, proba, names = cohort(seed, patients)
    return pd.DataFrame({"patient_id": names, "true": true, "proba": proba})


def handmade(patient: str, true: list[int], proba: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"patient_id": patient, "true": true, "proba": proba})


STRANGE = {
    "three patches": {"test": handmade("a", [0, 1, 0], [0.2, 0.7, 0.6])},
    "one patch": {"test": handmade("a", [1], [0.4])},
    "healthy only": {"dev": handmade("a", [0] * 5, [0.0, 0.2, 0.5, 0.9, 1.0])},
    "IDC only": {"dev": handmade("a", [1] * 5, [0.0, 0.2, 0.5, 0.9, 1.0])},
    "all equal": {"new": handmade("a", [0, 1, 0, 0], [0.5] * 4)},
    "all right": {"dev": handmade("a", [0, 1], [0.0, 1.0])},
    "names": {
        "dev": handmade("<script>alert(1)</script>", [0, 1], [0.4, 0.3]),
        "test": handmade("$x^{2", [0, 1, 1], [0.4, 0.6, 0.1]),
        "new": handmade("W" * 200, [0, 1, 1], [0.4, 0.6, 0.7]),
    },
}
