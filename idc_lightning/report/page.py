"""A report as one HTML file that opens offline: sections of pictures, tables and galleries.

Pictures are read from disk, a few at a time, while the file is written.
"""

import base64
import hashlib
import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from idc_lightning.errors import IDCError
from idc_lightning.figures.patches import Gallery, Tile
from idc_lightning.figures.style import Picture
from idc_lightning.files import replaced
from idc_lightning.processes import in_order, usable_cpus

PURPOSE = "For research, not for diagnosis."
"""Stands at the top and the foot of every report."""

MISSING = "\N{EN DASH}"
"""Shown for a value that isn't there."""

_WIDEST = 1600
_TALLEST = 16_383  # of a WebP
_QUALITY = 85
_FILTER_ABOVE = 15  # rows
_SHORT = 24  # letters that a cell shows in one line
_THREADS = 4  # each holds a picture


@dataclass(frozen=True)
class DataTable:
    """A table that a reader can sort by any column.

    Attributes:
        title: What it shows, in a few words.
        caption: What to look for.
        rows: The cells; the index isn't shown. Floats are shown with three digits, whole numbers
            with thousands separators, missing values as a dash, all else as text.
    """

    title: str
    caption: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading of its own.

    Attributes:
        title: The heading.
        text: A paragraph below it; may be empty.
        items: What it shows.
    """

    title: str
    text: str
    items: Sequence[Picture | DataTable | Gallery]


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    sections: Iterable[Section],
    notes: Sequence[str] = (),
) -> None:
    """Write a report.

    Args:
        path: The HTML file.
        title: Its heading.
        facts: What stands at its top, by name.
        sections: Its parts; taken one after the other, so that they may be made meanwhile. Nothing
            of a section is needed any more, its files neither, once the next one is taken.
        notes: Lines on what was left out or is doubtful, which stand out at the top.

    Raises:
        IDCError: If the file can't be written or a picture can't be read.
    """
    style, script = _asset("page.css"), _asset("page.js")
    pieces = _template().generate(
        title=title,
        purpose=PURPOSE,
        facts=facts,
        notes=notes,
        sections=sections,
        style=style,
        script=script,
        policy=_policy(style, script),
    )
    # Letters that are no UTF-8 stand for odd bytes in names of files; they are spelt out.
    with (
        replaced(path) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        file.writelines(pieces)


def _template() -> Template:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("idc_lightning.report", ""),
        extensions=["jinja2.ext.do"],
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(filter_above=_FILTER_ABOVE, short=_SHORT)
    environment.tests.update(
        picture=lambda item: isinstance(item, Picture),
        table=lambda item: isinstance(item, DataTable),
    )
    environment.filters.update(embedded=_in_turn, patch=_patch, columns=_columns)
    return environment.get_template("page.html")


def _asset(name: str) -> str:
    return resources.files("idc_lightning.report").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Forbid everything but this style and this script, also what a name might smuggle in."""
    allowed = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _fingerprint(style),
        "script-src": _fingerprint(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{what} {where}" for what, where in allowed.items())


def _fingerprint(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@dataclass(frozen=True)
class _Image:
    """What an <img> needs: where its bytes are, and its size in pixels."""

    source: str
    width: int
    height: int


def _in_turn(
    items: Sequence[Picture | DataTable | Gallery],
) -> Iterator[tuple[Picture | DataTable | Gallery, _Image | None]]:
    """Items of a section with the images of its pictures, compressed by threads a little ahead."""
    paths = (item.path for item in items if isinstance(item, Picture))
    threads = min(_THREADS, usable_cpus())
    with ThreadPoolExecutor(threads) as pool:
        begun = (pool.submit(_embedded, path) for path in paths)
        images = in_order(deque(islice(begun, threads)), begun)
        for item in items:
            yield item, next(images) if isinstance(item, Picture) else None


def _embedded(path: Path) -> _Image:
    """A picture as WebP inside the page."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise IDCError(f"can't read the picture {path}: {error.strerror or error}") from error
    image.thumbnail((_WIDEST, _TALLEST), Image.Resampling.LANCZOS)
    webp = _compressed(image, path.stat().st_size)
    return _Image(_uri(webp), image.width, image.height)


def _compressed(image: Image.Image, png: int) -> bytes:
    """Lossless for charts and landscapes, whose lines stay crisp so at little cost; else lossy.

    Of real pictures of 1200 to 1500 px, charts and landscapes took 0.2 to 1.8 times as many bytes
    lossless as lossy, and tissue 2.5 to 4.6 times.

    Args:
        image: RGB.
        png: Bytes of its file. A PNG is lossless too, so where it is large, there is no need to
            try (below 3.2 times the lossy bytes for the former, above 4.8 times for the latter).
    """
    lossy = _webp(image)
    if png > 4 * len(lossy):
        return lossy
    lossless = _webp(image, lossless=True)
    return lossless if len(lossless) < 2 * len(lossy) else lossy


def _patch(tile: Tile) -> _Image:
    """A patch inside the page, pixel by pixel what the network saw."""
    image = Image.fromarray(tile.pixels)
    return _Image(_uri(_webp(image, lossless=True)), image.width, image.height)


def _webp(image: Image.Image, *, lossless: bool = False) -> bytes:
    file = io.BytesIO()
    # The usual effort takes twice as long; the files are 4 % larger at most.
    effort = {"quality": 50, "method": 1} if lossless else {"quality": _QUALITY, "method": 2}
    image.save(file, "WEBP", lossless=lossless, **effort)
    return file.getvalue()


def _uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}"


@dataclass(frozen=True)
class _Cell:
    """A cell as it is shown.

    Attributes:
        text: What a reader sees.
        order: The number to sort by; none for text and for missing values.
        missing: Whether there is no value.
    """

    text: str
    order: str | None = None
    missing: bool = False


@dataclass(frozen=True)
class _Column:
    """A column as it is shown.

    Attributes:
        name: Its heading.
        cells: From top to bottom.
        kind: How it is set: numbers at the right, short text in one line, long text in several.
    """

    name: str
    cells: list[_Cell]
    kind: str


def _columns(rows: pd.DataFrame) -> Iterator[_Column]:
    # By position, since two columns may have one name.
    for position, name in enumerate(rows.columns):
        cells = [_cell(value) for value in rows.iloc[:, position].tolist()]
        yield _Column(str(name), cells, _kind(cells))


def _kind(cells: list[_Cell]) -> str:
    if all(cell.missing or cell.order is not None for cell in cells):
        return "number"
    return "long" if any(len(cell.text) > _SHORT for cell in cells) else "short"


def _cell(value: object) -> _Cell:
    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return _Cell(MISSING, missing=True)
    if isinstance(value, bool | np.bool_):
        return _Cell("yes" if value else "no")
    if isinstance(value, Integral):
        return _Cell(_signed(f"{int(value):,}"), order=str(int(value)))
    if isinstance(value, Real):
        return _Cell(_shown(float(value)), order=repr(float(value)))
    return _Cell(str(value))


def _shown(value: float) -> str:
    """A float with three digits; those that these can't tell from zero with their power of ten."""
    if math.isinf(value):
        text = "∞" if value > 0 else "-∞"
    elif 0 < abs(value) < 0.0005:
        text = f"{value:.1e}"
    else:
        text = f"{value + 0.0:,.3f}"  # no -0.000
    return _signed(text)


def _signed(text: str) -> str:
    """A number with a minus as wide as a digit."""
    return text.replace("-", "\N{MINUS SIGN}")
