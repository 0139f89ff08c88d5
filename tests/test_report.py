import base64
import hashlib
import io
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from idc_lightning.errors import IDCError
from idc_lightning.figures.patches import Gallery, Tile
from idc_lightning.figures.style import IDC, Picture, drawing
from idc_lightning.report.page import PURPOSE, DataTable, Section, write_report

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
VOID = {"meta", "link", "img"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "' onmouseover=alert(3) x='",
    "</title></style></script><b>",
    "a & b &amp; &lt;",
    "{{ title }}{% raw %}",
    "x" * 5000,
]


class Element:
    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.children: list[Element] = []
        self.own = ""

    def all(self, tag: str, name: str | None = None) -> list["Element"]:
        """The elements below, in their order, with this tag and class."""
        found = []
        for child in self.children:
            classes = (child.attributes.get("class") or "").split()
            if child.tag == tag and (name is None or name in classes):
                found.append(child)
            found += child.all(tag, name)
        return found

    def texts(self, tag: str, name: str | None = None) -> list[str]:
        return [element.own for element in self.all(tag, name)]

    def __getitem__(self, name: str) -> str:
        value = self.attributes[name]
        assert value is not None
        return value


class Reader(HTMLParser):
    """Builds a tree, and fails where a tag isn't closed by its own."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs)
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].own += data


def parsed(path: Path) -> Element:
    reader = Reader()
    reader.feed(path.read_bytes().decode())
    reader.close()
    (root,) = reader.open
    return root


def everything(root: Element) -> Iterator[Element]:
    for child in root.children:
        yield child
        yield from everything(child)


def decoded(image: Element) -> npt.NDArray[np.uint8]:
    head, _, data = image["src"].partition(",")
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        assert opened.format == "WEBP"
        assert (opened.width, opened.height) == (int(image["width"]), int(image["height"]))
        return np.asarray(opened.convert("RGB"))


def painted(path: Path, colour: str = "white", size: tuple[int, int] = (60, 40)) -> Path:
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def written(path: Path, *items: Any, **values: Any) -> Element:
    section = Section("Part", "", items)
    write_report(path, **{"title": "T", "facts": {}, "sections": [section], **values})
    return parsed(path)


def cells(path: Path, *values: Any) -> list[Element]:
    frame = pd.DataFrame({"name": pd.Series(values, dtype=object)})
    return written(path, DataTable("Table", "", frame)).all("td")


def report_of(name: str, picture: Path, path: Path) -> Element:
    """A report that holds a name wherever text can stand."""
    tile = Tile(np.zeros((50, 50, 3), np.uint8), (name, name))
    items = [
        Picture(picture, name, name, wide=True),
        DataTable(name, name, pd.DataFrame({name: [name, "x"]})),
        Gallery(name, name, [tile]),
    ]
    write_report(
        path, title=name, facts={name: name}, notes=[name], sections=[Section(name, name, items)]
    )
    return parsed(path)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return painted(tmp_path_factory.mktemp("picture") / "picture.png")


def test_all_stands_in_its_place(page: Path, picture: Path) -> None:
    frame = pd.DataFrame({"patient_id": ["10253", "8863"], "patches": [549, 979]})
    tile = Tile(np.zeros((50, 50, 3), np.uint8), ("Patient 8863", "p = 0.991"))
    sections = [
        Section("Patients", "How many.", [Picture(picture, "Bars", "Look low.", wide=True)]),
        Section("Errors", "", [DataTable("Table", "Sort.", frame), Gallery("Wrong", "", [tile])]),
    ]
    write_report(
        page, title="A run", facts={"Split": "stratified"}, sections=sections, notes=["One left."]
    )
    root = parsed(page)
    assert root.texts("title") == root.texts("h1") == ["A run"]
    assert (root.texts("dt"), root.texts("dd")) == (["Split"], ["stratified"])
    (notes,) = root.all("aside")
    assert notes.texts("li") == ["One left."]
    assert [part.texts("h2") for part in root.all("section")] == [["Patients"], ["Errors"]]
    assert root.all("section")[0].texts("p") == ["How many."]
    bars, table, wrong = root.all("figure")
    assert [figure.texts("h3") for figure in (bars, table, wrong)] == [
        ["Bars"],
        ["Table"],
        ["Wrong"],
    ]
    assert bars["class"] == "picture wide"
    assert [image["alt"] for image in bars.all("img")] == ["Bars"]
    assert (bars.texts("figcaption"), table.texts("figcaption")) == (["Look low."], ["Sort."])
    assert table.texts("th") == ["patient_id", "patches"]
    assert table.texts("td") == ["10253", "549", "8863", "979"]
    assert wrong.all("li")[0].texts("span") == ["Patient 8863", "p = 0.991"]
    assert [*root.texts("p", "purpose"), *root.all("footer")[0].texts("p")] == [PURPOSE, PURPOSE]


def test_the_contents_lead_to_every_section_and_item(page: Path, picture: Path) -> None:
    pictures = [Picture(picture, f"Patient {name}", "") for name in "ab"]
    sections = [Section("One", "", pictures[:1]), Section("Two", "", pictures)]
    write_report(page, title="T", facts={}, sections=iter(sections))
    root = parsed(page)
    places = {item["id"]: item for item in everything(root) if "id" in item.attributes}
    led = [
        (link.texts("span")[0], places[link["href"].removeprefix("#")])
        for link in root.all("nav")[0].all("a")
    ]
    assert [name for name, _ in led] == ["One", "Two", "Patient a", "Patient b"]
    assert all(name == [*to.texts("h2"), *to.texts("h3")][0] for name, to in led)


def test_a_report_of_nothing_is_a_page(page: Path) -> None:
    write_report(page, title="T", facts={}, sections=[])
    root = parsed(page)
    assert root.texts("h1") == ["T"]
    assert [root.all(tag) for tag in ("nav", "aside", "dl", "section")] == [[]] * 4


def test_empty_tables_and_galleries_say_so(page: Path) -> None:
    empty = pd.DataFrame({"file": []})
    root = written(page, DataTable("Broken", "", empty), Gallery("Wrong", "", []))
    assert root.texts("p", "empty") == ["No rows.", "No patches."]
    assert root.texts("th") == ["file"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_and_not_run(name: str, page: Path, picture: Path) -> None:
    harmless = Counter(item.tag for item in everything(report_of("a", picture, page)))
    root = report_of(name, picture, page)
    assert Counter(item.tag for item in everything(root)) == harmless
    places = ["title", "h1", "dt", "dd", "figcaption", "th", "h3"]
    assert {text for place in places for text in root.texts(place)} == {name}
    assert root.all("section")[0].texts("h2") == root.all("section")[0].texts("p") == [name]
    assert root.all("aside")[0].texts("li") == [name]
    assert root.texts("td")[0] == name
    assert set(root.texts("span")) == {name}
    assert root.all("img")[0]["alt"] == name


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_comes_back(page: Path, picture: Path, name: str) -> None:
    root = report_of(name, picture, page)
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert root.texts("h1") == [shown]
    assert root.texts("td")[0] == shown
    assert root.all("img")[0]["alt"] == shown


def test_nothing_comes_from_elsewhere_and_nothing_foreign_can_run(
    page: Path, picture: Path
) -> None:
    root = report_of("http://localhost/x.js", picture, page)
    for item in everything(root):
        assert not [name for name in item.attributes if name.startswith("on") or name == "style"]
        for name in {"src", "srcset", "href", "action", "data"} & set(item.attributes):
            assert item[name].startswith(("data:", "#")), item[name]
    (style,), (script,) = root.texts("style"), root.texts("script")
    assert not [word for word in ("url(", "@import", "fetch(", "http") if word in style + script]

    head = root.all("head")[0].children
    assert head[0].attributes == {"charset": "utf-8"}
    assert head[1]["http-equiv"] == "Content-Security-Policy"
    policy = dict(rule.split(" ", 1) for rule in head[1]["content"].split("; "))
    assert (policy["default-src"], policy["img-src"]) == ("'none'", "data:")
    for kind, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[kind] == f"'sha256-{digest}'"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (np.float32(0.5), "0.500"),
        (1234.5, "1,234.500"),
        (-0.25, f"{MINUS}0.250"),
        (-0.0, "0.000"),
        (1e-6, f"1.0e{MINUS}06"),
        (0.0, "0.000"),
        (float("inf"), "∞"),
        (26664, "26,664"),
        (np.int64(-1234), f"{MINUS}1,234"),
    ],
)
def test_numbers_are_readable_and_sorted_by_their_value(page: Path, value: Any, shown: str) -> None:
    (cell,) = cells(page, value)
    assert cell.own == shown
    assert float(cell["data-order"]) == value
    assert cell["class"] == "number"


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT])
def test_missing_values_are_a_dash(page: Path, value: object) -> None:
    cell, number = cells(page, value, 1)
    assert (cell.own, number.own) == (DASH, "1")
    assert "data-missing" in cell.attributes
    assert "data-order" not in cell.attributes
    assert cell["class"] == number["class"] == "number"


def test_whole_numbers_stay_whole_beside_missing_ones(page: Path) -> None:
    frame = pd.DataFrame({"n": pd.array([1500, None], dtype="Int64")})
    assert written(page, DataTable("Table", "", frame)).texts("td") == ["1,500", DASH]


def test_text_is_no_number(page: Path) -> None:
    shown = cells(page, "10253", True, np.bool_(False), "x" * 30)
    assert [cell.own for cell in shown] == ["10253", "yes", "no", "x" * 30]
    assert {cell["class"] for cell in shown} == {"long"}
    assert not any("data-order" in cell.attributes for cell in shown)
    assert cells(page, "10253")[0]["class"] == "short"


def test_columns_of_one_name_stay_two(page: Path) -> None:
    frame = pd.DataFrame([[1, "a"], [2, "b"]], columns=["n", "n"], index=[7, 7])
    root = written(page, DataTable("Table", "", frame))
    assert root.texts("th") == ["n", "n"]
    assert root.texts("td") == ["1", "a", "2", "b"]


def test_only_long_tables_have_a_filter(page: Path) -> None:
    tables = [DataTable("Table", "", pd.DataFrame({"n": range(count)})) for count in (15, 16)]
    figures = written(page, *tables).all("figure")
    assert ["data-filter" in figure.attributes for figure in figures] == [False, True]


def test_charts_stay_as_they_were_drawn(page: Path, tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    with drawing(path, 6, 4) as (_, (axis,)):
        axis.plot(np.sin(np.arange(300) / 9), color=IDC)
    (image,) = written(page, Picture(path, "Chart", "")).all("img")
    with Image.open(path) as opened:
        assert np.array_equal(decoded(image), np.asarray(opened.convert("RGB")))


def test_tissue_takes_little_room(page: Path, tmp_path: Path) -> None:
    """32 pictures of patients have to stay below 15 MB; this one is tissue from edge to edge."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(600, 1500, 3)), (1.5, 1.5, 0))
    tissue = np.clip(170 + 200 * noise, 0, 255).astype(np.uint8)
    Image.fromarray(tissue).save(tmp_path / "tissue.png")
    (image,) = written(page, Picture(tmp_path / "tissue.png", "Tissue", "")).all("img")
    assert page.stat().st_size < 15e6 / 32
    assert np.abs(decoded(image).astype(int) - tissue).mean() < 10


@pytest.mark.parametrize(
    ("size", "shown"), [((3200, 200), (1600, 100)), ((800, 20), (800, 20)), ((5, 20_000), None)]
)
def test_pictures_are_no_larger_than_useful(
    page: Path, tmp_path: Path, size: tuple[int, int], shown: tuple[int, int] | None
) -> None:
    path = painted(tmp_path / "large.png", size=size)
    height, width, _ = decoded(written(page, Picture(path, "Large", "")).all("img")[0]).shape
    # The taller one is what WebP can't hold.
    assert (width, height) == shown if shown else height <= 16_383


def test_patches_are_shown_pixel_by_pixel(page: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 50, 3), dtype=np.uint8)
    root = written(page, Gallery("Wrong", "", [Tile(each) for each in pixels]))
    assert np.array_equal([decoded(image) for image in root.all("img")], pixels)


def test_a_section_is_written_before_the_next_is_made(page: Path, tmp_path: Path) -> None:
    colours = ["red", "lime", "blue"]

    def made() -> Iterator[Section]:
        for colour in colours:
            # All at one place, so that each is there for its own section only.
            path = painted(tmp_path / "picture.png", colour)
            yield Section(colour, "", [Picture(path, colour, "")])
            path.unlink()

    write_report(page, title="T", facts={}, sections=made())
    shown = [tuple(decoded(image)[0, 0].tolist()) for image in parsed(page).all("img")]
    assert shown == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_each_picture_of_a_section_stands_at_its_own_place(page: Path, tmp_path: Path) -> None:
    items: list[Picture | DataTable] = []
    for level in range(0, 240, 20):
        path = painted(tmp_path / f"{level}.png", f"rgb({level}, {level}, {level})")
        items += [DataTable(f"T{level}", "", pd.DataFrame()), Picture(path, f"P{level}", "")]
    figures = written(page, *items).all("figure")
    levels = [decoded(figure.all("img")[0])[0, 0, 0] for figure in figures[1::2]]
    assert levels == list(range(0, 240, 20))


def test_pictures_are_never_all_in_memory(page: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    written(page)  # loads what is loaded once
    peaks = []
    for count in (8, 40):  # above the number that are read ahead
        items = [Picture(tmp_path / "noise.png", "Noise", "")] * count
        tracemalloc.start()
        write_report(page, title="T", facts={}, sections=[Section("Part", "", items)])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert page.stat().st_size > 1_000_000
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("failure", [ValueError("defect"), KeyboardInterrupt(), IDCError("full")])
def test_a_failure_leaves_the_old_report(page: Path, failure: BaseException) -> None:
    page.write_text("old")

    def made() -> Iterator[Section]:
        yield Section("One", "", [])
        raise failure

    with pytest.raises(type(failure)):
        write_report(page, title="T", facts={}, sections=made())
    assert page.read_text() == "old"
    assert list(page.parent.iterdir()) == [page]


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_picture_that_is_not_one_is_named(
    page: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "picture.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IDCError, match=r"can't read the picture .*picture\.png: [^\n]+$"):
        written(page, Picture(path, "Picture", ""))
    assert not page.exists()
