"""``idc-explore`` from the command line to its folder, also on data that is wrong or odd."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_command import Command, Ended
from helpers_data import (
    data_config,
    make_patches,
    pixels_of,
    place_of,
    real_root,
    split_config,
    tissue,
)
from helpers_model import told
from PIL import Image

import idc_lightning.report.exploration as exploration
from idc_lightning.config import ReportConfig
from idc_lightning.data.datamodule import IDCDataModule
from idc_lightning.data.grid import PATCH
from idc_lightning.data.health import what_stops_training
from idc_lightning.data.split import read_splits
from idc_lightning.explore import edges_note, main
from idc_lightning.figures.style import Picture
from idc_lightning.figures.tissue import Slide
from idc_lightning.report.sections import check_patients, chosen

SCRIPT = "<script>alert(1)<script>"
LONG = "a very long name of a patient " * 6 + "$x^2$"

Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Explore ``tmp_path/data`` into ``tmp_path/out``; the command must end well."""
    command = Command(tmp_path, capsys, monkeypatch, main)

    def explored(*overrides: str) -> Ended:
        ended = command("data=idc", f"data.root={tmp_path}/data", "hydra.run.dir=out", *overrides)
        assert ended.code == 0, ended.err
        assert ended.err == ""
        return ended

    return explored


def patients(folder: Path) -> pd.DataFrame:
    rows = pd.read_csv(folder / "out" / "patients.csv", dtype={"patient_id": str})
    return rows.set_index("patient_id")


def health(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "out" / "health.csv", dtype={"patient_id": str})


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def headings(folder: Path) -> list[str]:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    return re.findall(r"<h2>(.*?)</h2>", page)


USUAL = {str(number): (5 + number, number) for number in range(1, 18)}
"""Healthy and IDC patches of 17 patients."""


def test_the_folder_holds_tables_figures_and_report(tmp_path: Path, run: Run) -> None:
    make_patches(tmp_path / "data", tissue(USUAL))
    ended = run("report.gallery=6", "report.patients=[17,2]")
    out = tmp_path / "out"
    assert {name for name in files(out) if not name.startswith(".hydra")} == {
        "figures/augmentation.png",
        "figures/labels/1-15.png",
        "figures/labels/16-17.png",
        "figures/overview.png",
        "figures/patches_healthy.png",
        "figures/patches_idc.png",
        "figures/splits.png",
        "figures/tissue/17.png",
        "figures/tissue/2.png",
        "health.csv",
        "patients.csv",
        "report.html",
        "split_comparison.csv",
        "splits.csv",
    }
    assert headings(tmp_path) == [
        "Overview",
        "Splits",
        "Patches",
        "Labels on the slide",
        "Tissue",
        "Augmentation",
        "Health of the data",
    ]
    rows = patients(tmp_path)
    assert rows["patches"].to_dict() == {name: sum(counts) for name, counts in USUAL.items()}
    assert rows["idc_patches"].to_dict() == {name: counts[1] for name, counts in USUAL.items()}
    splits = read_splits(out / "splits.csv")
    assert rows["split"].to_dict() == splits.to_dict()
    compared = pd.read_csv(out / "split_comparison.csv").set_index("split")
    assert compared.loc["all", "patches"] == sum(map(sum, USUAL.values()))
    assert compared.loc["dev", "patients"] == (splits == "dev").sum()
    assert "Health of the data" in ended.out
    assert ended.out.endswith(f"written to: {out}\n")


def test_without_a_report_there_are_tables_only(tmp_path: Path, run: Run) -> None:
    make_patches(tmp_path / "data", tissue(USUAL))
    run("report=none")
    found = {name for name in files(tmp_path / "out") if not name.startswith(".hydra")}
    assert found == {"health.csv", "patients.csv", "split_comparison.csv", "splits.csv"}


def test_wrong_data_is_listed_and_stops_nothing(tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data"
    make_patches(data, [*tissue(USUAL), ("1", 501, 1, 0), ("1", 501, 1, 1)])
    place_of(data, ("2", 501, 1, 1)).write_bytes(b"no image")
    for patient in USUAL:  # in all splits
        Image.fromarray(pixels_of(("copy", 0, 0, 0))).save(place_of(data, (patient, 601, 1, 0)))
    Image.fromarray(pixels_of(("3", 701, 1, 0))[:, :9]).save(place_of(data, ("3", 701, 1, 0)))
    Image.fromarray(pixels_of(("4", 1, 1, 0))[:9]).save(place_of(data, ("4", 1, 1, 0)))
    ended = run("report.patients=[1]")
    counts = health(tmp_path)["kind"].value_counts()
    assert counts["both labels"] == 2
    assert counts["broken"] == 1
    assert counts["duplicate across splits"] == len(USUAL)
    assert counts["edge"] == 1
    assert counts["small inside"] == 1
    rows = patients(tmp_path)
    assert rows["broken"].sum() == rows.loc["2", "broken"] == 1
    assert (rows["duplicates"] == 1).all()
    told_by_console = " ".join(ended.out.split())
    assert "leak: 17 patches have the pixels of a patch in another split" in told_by_console
    assert "data.on_broken=skip" in told_by_console
    assert "data.on_conflict=drop" in told_by_console
    assert (tmp_path / "out/figures/health_edge.png").is_file()
    assert len(list((tmp_path / "out/figures").glob("health_small_inside*"))) == 1
    listed = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "4/0/4_idx5_x1_y1_class0.png" in listed  # among the findings to look at
    assert list((tmp_path / "out/figures").glob("health_duplicate*"))


@pytest.mark.parametrize(
    "counts",
    [
        {"1": (1, 0)},
        {"1": (0, 1)},
        {"1": (3, 2)},
        {"1": (4, 0), "2": (3, 0), "3": (5, 0), "4": (2, 0)},
    ],
)
def test_very_little_data_is_explored_too(
    tmp_path: Path, run: Run, counts: dict[str, tuple[int, int]]
) -> None:
    make_patches(tmp_path / "data", tissue(counts))
    ended = run()
    assert patients(tmp_path)["patches"].sum() == sum(map(sum, counts.values()))
    parted = len(counts) >= 3
    assert ("Splits" in headings(tmp_path)) == parted
    assert (tmp_path / "out/splits.csv").exists() == parted
    assert ("no split: too few patients" in ended.out) != parted


def test_odd_names_are_shown_as_they_are_and_never_run(tmp_path: Path, run: Run) -> None:
    names = [SCRIPT, "$\\frac{1}$ & co", "müller [bold]", LONG]
    make_patches(tmp_path / "data", tissue(dict.fromkeys(names, (3, 2))))
    run()
    assert set(patients(tmp_path).index) == set(names)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;script&gt;" in page
    drawn = [path.name for path in (tmp_path / "out/figures/tissue").iterdir()]
    assert len(drawn) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}\.png", name) for name in drawn)


def test_thousands_of_patches_of_one_patient(tmp_path: Path, run: Run) -> None:
    data = tmp_path / "data"
    make_patches(data, [("1", 1, 1, 0)])
    content = place_of(data, ("1", 1, 1, 0)).read_bytes()
    for number in range(1, 3000):
        x, y = PATCH * (number % 60) + 1, PATCH * (number // 60) + 1
        place_of(data, ("1", x, y, number % 2)).write_bytes(content)
    run()
    assert patients(tmp_path).loc["1", ["patches", "duplicates"]].tolist() == [3000, 3000]
    # Each copy is a finding, of which the report lists a part.
    assert (tmp_path / "out/report.html").stat().st_size < 2_000_000


def test_patches_far_apart_are_not_put_together(tmp_path: Path, run: Run) -> None:
    make_patches(
        tmp_path / "data", [("1", 1, 1, 0), ("1", 9_999_951, 9_999_951, 1), ("2", 1, 1, 0)]
    )
    ended = run()
    assert "not drawn, since their patches lie too far apart: patients 1\n" in ended.out
    drawn = [path.name for path in (tmp_path / "out/figures/tissue").iterdir()]
    assert drawn == ["2.png"]


def test_a_patient_who_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patches(tmp_path / "data", tissue({"10253": (1, 1), "9383": (1, 1)}))
    ended = Command(tmp_path, capsys, monkeypatch, main)(
        "data=idc", f"data.root={tmp_path}/data", "report.patients=[10235,9383]"
    )
    assert ended.code == 1
    assert ended.err.splitlines() == [
        "error: report.patients: the data has no patient 10235; did you mean 10253?"
    ]
    assert ended.left == []


def test_patients_are_chosen_in_the_order_of_the_data() -> None:
    known = ["1", "2", "3"]
    assert chosen(known, None) == known
    assert chosen(known, ["3", "1", "3"]) == ["1", "3"]
    assert chosen(known, []) == []
    wanted = ReportConfig(enabled=True, patients=["x", "yy", "x", "2"], gallery=1)
    with told("no patient x, yy; it has 1, 2, 3"):
        check_patients(wanted, pd.DataFrame({"patient_id": [*known, "1"]}))


def test_a_sample_is_explored_as_such(tmp_path: Path, run: Run) -> None:
    make_patches(tmp_path / "data", tissue(USUAL))
    ended = run("data.sample=60", "report=none")
    assert "read 60 of 391 patches: data.sample is set" in ended.out
    rows = patients(tmp_path)
    assert rows["patches"].sum() == 60
    assert rows["gaps"].sum() == 0  # of the whole data, which has none


def test_a_split_that_names_some_patients_only(tmp_path: Path, run: Run) -> None:
    lists = {"8865": "train", "8867": "dev", "8864": "test"}
    make_patches(tmp_path / "data", tissue(dict.fromkeys([*lists, "9999"], (3, 2))))
    ended = run("split=cruz_roa_2014", "report.patients=[]")
    assert patients(tmp_path)["split"].dropna().to_dict() == lists
    assert "split=cruz_roa_2014 doesn't name 1 of the patients" in ended.out
    compared = pd.read_csv(tmp_path / "out/split_comparison.csv").set_index("split")
    assert compared["patches"].to_dict() == {"train": 5, "dev": 5, "test": 5, "all": 15}


def test_edge_patches_are_shown_unstretched_but_augmented_as_training_does(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patches(tmp_path / "data", tissue(USUAL))
    patch = ("17", 101, 601, 1)
    edge = place_of(tmp_path / "data", patch)
    Image.fromarray(pixels_of(patch)[:, :20]).save(edge)
    drawn: dict[str, Any] = {}

    def keep(path: Path, what: Any, *more: Any) -> Picture:
        drawn[path.stem] = (what, *more)
        return picture(path, what, *more)

    picture = exploration.draw_augmentation
    monkeypatch.setattr(exploration, "draw_augmentation", keep)
    tissues = exploration.draw_tissue_pair

    def keep_tissue(path: Path, slide: Slide, pixels: Any, target: Any) -> Picture:
        drawn[path.stem] = pixels
        return tissues(path, slide, pixels, target)

    monkeypatch.setattr(exploration, "draw_tissue_pair", keep_tissue)
    run("report.patients=[17]", "data.edge_patches=resize", "report.gallery=2")
    assert (drawn["17"][:, :, 20:] == 255).all(axis=(1, 2, 3)).sum() == 1
    views, _ = drawn["augmentation"]
    (at,) = [number for number, pixels in enumerate(views["file"]) if pixels.shape[1] == 20]
    expected = Image.open(edge).resize((PATCH, PATCH), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(views["evaluation"][at], np.asarray(expected))
    assert all((pixels[:, 20:] != 255).any() for pixels in views["train, epoch 0"])


def test_captions_claim_nothing_of_this_tissue(tmp_path: Path, run: Run) -> None:
    """Noise is tissue in this layout, too."""
    make_patches(tmp_path / "data", tissue(USUAL))
    run("report.patients=[1]", "report.gallery=2")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "pathologist" not in page
    stains = [sentence for sentence in page.split(". ") if "violet" in sentence]
    assert len(stains) == 2
    assert all("In tissue stained with H&amp;E" in sentence for sentence in stains)


def test_what_training_would_do_is_told() -> None:
    findings = pd.DataFrame({"kind": ["broken", "both labels", "edge"]})
    strict = what_stops_training(findings, data_config())
    assert strict == [
        "idc-train will stop at files that can't be read unless data.on_broken=skip is set",
        "idc-train will stop at positions with both labels unless data.on_conflict=drop is set",
    ]
    lenient = data_config(on_broken="skip", on_conflict="drop")
    assert what_stops_training(findings, lenient) == []


def test_what_training_would_do_to_edge_patches_is_told() -> None:
    findings = pd.DataFrame({"kind": ["broken", "edge"]})
    for edge_patches, told_of in (("drop", "leaves them out"), ("resize", "stretches them")):
        config = data_config(edge_patches=edge_patches)
        (note,) = edges_note(findings, config)
        assert f"idc-train {told_of}" in note
        inside = pd.DataFrame({"kind": ["small inside"]})
        assert edges_note(inside, config) == [note]
        assert edges_note(findings[:1], config) == []
    assert edges_note(findings, data_config(edge_patches="pad")) == []


def test_gaps_of_real_tissue(tmp_path: Path, run: Run) -> None:
    run(f"data.root={real_root()}", "data.sample=300", "report=none")
    rows = patients(tmp_path)
    assert rows.loc["9126", "gaps"] == 299  # a slide full of holes
    assert rows.loc["9228", "gaps"] == 0
    assert rows["width_mm"].between(4, 16).all()


def test_a_sample_is_that_of_training(tmp_path: Path, run: Run) -> None:
    named = {"8865": "train", "8867": "dev", "8864": "test"}
    make_patches(tmp_path / "data", tissue(dict.fromkeys([*named, "9999"], (30, 20))))
    run("split=cruz_roa_2014", "data.sample=40", "data.crop=3", "report=none", "cache=cache")
    data = data_config(root=f"{tmp_path}/data", sample=40, crop=3)
    trains = IDCDataModule(data, split_config("cruz_roa_2014"), seed=0, cache=tmp_path / "cache")
    trains.setup()
    shown = pd.read_csv(tmp_path / "out" / "split_comparison.csv").set_index("split")
    assert shown["patches"].drop("all").to_dict() == {
        row["split"]: row["patches"] for row in trains.summary().to_dict("records")
    }
    assert patients(tmp_path)["patches"].sum() == shown.loc["all", "patches"]


def test_the_preview_normalises_stains_as_training_does(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_patches(tmp_path / "data", tissue(USUAL))
    drawn: list[dict[str, Any]] = []
    picture = exploration.draw_augmentation

    def keep(path: Path, views: dict[str, Any], names: Any) -> Picture:
        drawn.append(views)
        return picture(path, views, names)

    monkeypatch.setattr(exploration, "draw_augmentation", keep)
    for normalised in ("none", "slide"):
        how = f"data.stain_normalisation={normalised}"
        run(how, "report.patients=[]", "report.gallery=2", f"hydra.run.dir={normalised}")
    none, slide = (np.stack(views["evaluation"]) for views in drawn)
    np.testing.assert_array_equal(none, np.stack(drawn[1]["file"]))
    assert (none != slide).any()
    page = (tmp_path / "slide" / "report.html").read_text(encoding="utf-8")
    assert "data.stain_normalisation=slide" in page
