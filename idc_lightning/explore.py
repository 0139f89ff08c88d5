"""``idc-explore``: a data set before training: what it holds, how it looks, what is doubtful."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.table import Table

from idc_lightning.cli import run_command
from idc_lightning.config import AnyData, AugmentConfig, ExploreConfig
from idc_lightning.data.augment import augment
from idc_lightning.data.datamodule import CLASSES, as_float
from idc_lightning.data.grid import PATCH
from idc_lightning.data.health import (
    ACROSS_SPLITS,
    DUPLICATES,
    describe_patients,
    find_problems,
    summarise,
)
from idc_lightning.data.index import Index, read_index
from idc_lightning.data.sample import draw_evenly, sample_patches
from idc_lightning.data.source import find_source
from idc_lightning.data.split import (
    NAMES,
    TooFewPatientsError,
    compare_splits,
    split_patients,
    write_splits,
)
from idc_lightning.data.store import Store, decode, read_patch
from idc_lightning.errors import IDCError, listed
from idc_lightning.figures.dataset import draw_overview, draw_splits
from idc_lightning.figures.patches import draw_augmentation, draw_gallery
from idc_lightning.figures.tissue import Slide, draw_target_maps, draw_tissue_pair
from idc_lightning.files import safe_name, write_text
from idc_lightning.progress import watched
from idc_lightning.report.page import DataTable, Gallery, Section, Tile, write_report
from idc_lightning.results.summary import console, data_table

Rows = npt.NDArray[np.int64]

MAPS = 15
"""Patients in one picture of labels."""

PREVIEWED = 8
"""Patches in the preview of the augmentation."""

DRAWS = 4
"""Times that the preview augments each of them."""

VISIBLE = 10
"""Pixels of an edge patch from which on there is something to see in it."""

LARGEST = 40_000
"""Cells of the largest slide that is drawn, 200 x 200; the public ones have some 4,000."""

SHOWN = 200
"""Findings that the report lists; health.csv has all."""

HEADINGS = {
    "idc_patches": "IDC patches",
    "idc": "IDC",
    "patient_idc": "IDC by patient",
    "patches_per_patient": "patches per patient",
    "idc_diff": "Δ IDC",
    "patient_idc_diff": "Δ IDC by patient",
    "patches_per_patient_diff": "Δ patches per patient",
}
"""How the report calls the columns of `compare_splits`."""

GRAVE = ("broken", "both labels", *DUPLICATES, "blank")
"""Findings that the report lists one by one."""


@dataclass(frozen=True)
class Explored:
    """A data set and what is known of it.

    Attributes:
        root: Folder of the patients' folders.
        store: Pixels and table of all patches that could be read, with a column split.
        splits: ``"train"``, ``"dev"`` or ``"test"`` by patient_id; empty if there is no split.
        patients: One row for each patient, of `describe_patients`.
        findings: One row for each doubtful patch or place, of `find_problems`.
        drawn: Patients whose tissue is drawn.
        notes: Lines on what was left out or is doubtful.
    """

    root: Path
    store: Store
    splits: pd.Series
    patients: pd.DataFrame
    findings: pd.DataFrame
    drawn: list[str]
    notes: list[str]


def explore(config: ExploreConfig, folder: Path) -> Explored:
    """Look at a data set.

    What would stop training doesn't stop this: broken files and positions with both labels are
    left out whatever data.on_broken and data.on_conflict say, and listed; leaks are reported.

    Args:
        config: Which data, and how much of it is shown.
        folder: Where tables, figures and report.html are written.

    Returns:
        What it found.

    Raises:
        IDCError: If there is no such data, or a patient who shall be drawn isn't in it.
    """
    out = console()
    explored = read_data(config)
    write_tables(folder, explored)
    if config.report.enabled:
        write_report(
            folder / "report.html",
            title="A look at the data",
            facts=facts_of(explored, config),
            sections=sections_of(explored, config, folder / "figures"),
            notes=explored.notes,
        )
    out.print(data_table(_compared(explored)))
    out.print(health_table(explored.findings))
    for note in explored.notes:
        out.print(note, highlight=False, markup=False)
    out.print(f"written to: {folder}", highlight=False, markup=False, soft_wrap=True)
    return explored


def read_data(config: ExploreConfig) -> Explored:
    """Find, index, split and read a data set, and look for what is doubtful."""
    source = find_source(config.data, config.cache)
    index = read_index(source.root, on_conflict="drop")
    drawn = chosen_patients(config.report.patients, index.table["patient_id"].unique().tolist())
    splits, notes = try_split(index, config)
    table = index.table
    if config.data.sample is not None:
        table = sample_patches(table, config.data.sample, seed=config.seed)
        notes.append(f"read {len(table):,} of {len(index.table):,} patches: data.sample is set")
    edge_patches = "resize" if config.data.edge_patches == "resize" else "pad"
    store = decode(index.root, table, edge_patches=edge_patches, on_broken="skip")
    store = replace(store, table=store.table.assign(split=store.table["patient_id"].map(splits)))
    findings = find_problems(index, store, source.notes)
    return Explored(
        root=index.root,
        store=store,
        splits=splits,
        patients=describe_patients(
            index, store.table, splits, findings, microns=config.data.microns_per_pixel
        ),
        findings=findings,
        drawn=drawn,
        notes=[
            *notes,
            *source.notes,
            *index.notes(),
            *store.notes(),
            *what_stops_training(findings, config.data),
            *too_scattered(store.table),
        ],
    )


def chosen_patients(wanted: Sequence[str] | None, known: list[str]) -> list[str]:
    """The patients whose tissue is drawn, in the order of the data.

    Raises:
        IDCError: Naming those that aren't in the data, with names like theirs.
    """
    if wanted is None:
        return known
    unknown = [name for name in dict.fromkeys(wanted) if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {listed(known)}"
        raise IDCError(f"report.patients: the data has no patient {listed(unknown)}; {hint}")
    return [name for name in known if name in wanted]


def try_split(index: Index, config: ExploreConfig) -> tuple[pd.Series, list[str]]:
    """The split, and a note if there is none, so that it is empty, or if it lacks patients."""
    try:
        splits = split_patients(index.table, config.split)
    except TooFewPatientsError as error:
        return pd.Series(dtype=object), [f"no split: {error}"]
    absent = index.table["patient_id"].nunique() - len(splits)
    if absent:
        return splits, [f"split={config.split.name} doesn't name {absent:,} of the patients"]
    return splits, []


def what_stops_training(findings: pd.DataFrame, data: AnyData) -> list[str]:
    """Lines on findings with which idc-train would stop, or which it would leave out."""
    counts = findings["kind"].value_counts()
    notes = []
    if ACROSS_SPLITS in counts:
        notes.append(
            f"leak: {counts[ACROSS_SPLITS]:,} patches have the pixels of a patch in another split; "
            "idc-train will stop there (health.csv lists them)"
        )
    stops = "idc-train will stop at {} unless data.{} is set"
    if "broken" in counts and data.on_broken == "error":
        notes.append(stops.format("files that can't be read", "on_broken=skip"))
    if "both labels" in counts and data.on_conflict == "error":
        notes.append(stops.format("positions with both labels", "on_conflict=drop"))
    if "edge" in counts and data.edge_patches == "drop":
        notes.append("edge patches are shown here; idc-train leaves them out, as you set")
    return notes


def too_scattered(table: pd.DataFrame) -> list[str]:
    """A line on patients whose patches can't be put together to a picture, if there are any."""
    names = [str(name) for name, rows in table.groupby("patient_id") if not _drawable(rows)]
    if not names:
        return []
    return [f"not drawn, since their patches lie too far apart: patients {listed(names)}"]


def _drawable(patches: pd.DataFrame) -> bool:
    columns, rows = (np.ptp(patches[side].to_numpy()) // PATCH + 1 for side in ("x", "y"))
    return bool(columns * rows <= LARGEST)


def write_tables(folder: Path, explored: Explored) -> None:
    """Write patients.csv and health.csv, and of a split splits.csv and split_comparison.csv."""
    write_text(folder / "patients.csv", explored.patients.to_csv(index=False))
    write_text(folder / "health.csv", explored.findings.to_csv(index=False))
    if not explored.splits.empty:
        write_splits(explored.splits, folder / "splits.csv")
        compared = compare_splits(explored.store.table)
        write_text(folder / "split_comparison.csv", compared.to_csv(index=False))


def _compared(explored: Explored) -> pd.DataFrame:
    """What each split holds, or without a split the whole."""
    if not explored.splits.empty:
        return compare_splits(explored.store.table)
    whole = compare_splits(explored.store.table.assign(split="none"))
    return whole[whole["split"] == "all"]


def health_table(findings: pd.DataFrame) -> Table:
    """Numbers of findings, for printing."""
    table = Table("finding", title="Health of the data", title_justify="left")
    for name in ("count", "patients"):
        table.add_column(name, justify="right")
    table.add_column("meaning")
    for row in summarise(findings).to_dict("records"):
        table.add_row(
            row["finding"], f"{row['count']:,}", f"{row['patients']:,}", str(row["meaning"])
        )
    return table


def facts_of(explored: Explored, config: ExploreConfig) -> dict[str, str]:
    """What stands at the top of the report."""
    table = explored.store.table
    cell = (PATCH * config.data.microns_per_pixel / 1000) ** 2
    split = "none"
    if not explored.splits.empty:
        counts = explored.splits.value_counts()
        split = f"{config.split.name}: {', '.join(f'{counts[n]} {n}' for n in NAMES)}"
    return {
        "Data": str(explored.root),
        "Patients": f"{table['patient_id'].nunique():,}",
        "Patches": f"{len(table):,}",
        "IDC": f"{table['target'].mean():.1%} of the patches",
        "Tissue": f"{len(table) * cell:,.0f} mm² at {config.data.microns_per_pixel:g} µm per pixel",
        "Split": split,
        "Seed": str(config.seed),
    }


def sections_of(explored: Explored, config: ExploreConfig, figures: Path) -> Iterator[Section]:
    """The parts of the report; each is drawn when it is asked for."""
    yield overview(explored, figures)
    if not explored.splits.empty:
        yield splits(explored, figures)
    yield patches(explored, config, figures)
    slides = slides_of(explored, config.data.microns_per_pixel)
    yield target_maps(explored, slides, figures / "labels")
    if explored.drawn:
        yield tissue(explored, slides, figures / "tissue")
    yield augmentation(explored, config, figures)
    yield health(explored, config, figures)


def overview(explored: Explored, figures: Path) -> Section:
    """Histograms, and a table of the patients."""
    return Section(
        "Overview",
        "",
        [
            draw_overview(figures / "overview.png", explored.patients),
            DataTable(
                "Each patient",
                "idc is the share of IDC patches. gaps are places without a patch that are "
                "enclosed by patches, pieces the parts that the tissue falls into, duplicates "
                "patches whose pixels another one has. Width and height are those of the part of "
                "the slide that holds patches.",
                explored.patients,
            ),
        ],
    )


def splits(explored: Explored, figures: Path) -> Section:
    """What each split holds, and how they differ."""
    return Section(
        "Splits",
        "Whole patients are divided, never the patches of one.",
        [
            draw_splits(figures / "splits.png", explored.patients),
            DataTable(
                "Splits compared",
                "IDC is the share among all patches of a split, IDC by patient the mean of its "
                "patients' shares. Δ is the difference from all patients together: of shares as "
                "share minus share (0.02 is two percentage points), of patches per patient as a "
                "part of the whole's. The nearer to 0, the more alike the splits are.",
                compare_splits(explored.store.table).rename(columns=HEADINGS),
            ),
        ],
    )


def patches(explored: Explored, config: ExploreConfig, figures: Path) -> Section:
    """Patches of each class, drawn by chance."""
    table = explored.store.table
    galleries = []
    for target in (1, 0):
        rows = draw_evenly(
            table[table["target"] == target], config.report.gallery, seed=config.seed
        )
        name = CLASSES[target]
        gallery = Gallery(
            f"{'IDC' if target else 'Healthy'} patches",
            f"{len(rows)} {name} patches, drawn by chance and evenly over the patients. "
            + (
                "Look for dense, violet nests of cells; and for patches that show none, as the "
                "label was drawn around a region, not for each patch."
                if target
                else "Look for fat, fibres and ducts; and for violet ones that could pass as IDC, "
                "which is what a model confuses."
            ),
            tiles_of(explored.store, rows),
        )
        draw_gallery(figures / f"patches_{name.lower()}.png", gallery)
        galleries.append(gallery)
    return Section("Patches", "Below each patch its patient and position on the slide.", galleries)


def tiles_of(store: Store, rows: pd.DataFrame, *more: Sequence[str]) -> list[Tile]:
    """Tiles of a store's rows, with patient, position and further lines below."""
    return [
        Tile(store.pixels[row], (patient, f"x {x}, y {y}", *lines))
        for row, patient, x, y, *lines in zip(
            rows.index, rows["patient_id"], rows["x"], rows["y"], *more, strict=True
        )
    ]


def slides_of(explored: Explored, microns: float) -> dict[str, tuple[Slide, Rows]]:
    """Slide and row numbers in the store of each patient that can be drawn."""
    slides = {}
    for patient, rows in explored.store.table.groupby("patient_id", sort=True):
        if _drawable(rows):
            slide = Slide(str(patient), rows["x"].to_numpy(), rows["y"].to_numpy(), microns)
            slides[str(patient)] = (slide, rows.index.to_numpy())
    return slides


def target_maps(
    explored: Explored, slides: Mapping[str, tuple[Slide, Rows]], figures: Path
) -> Section:
    """Where IDC was labelled, of all patients."""
    target = explored.store.table["target"].to_numpy()
    names = list(slides)
    pictures = []
    for start in range(0, len(names), MAPS):
        chosen = names[start : start + MAPS]
        maps = {name: (slides[name][0], target[slides[name][1]]) for name in chosen}
        picture = draw_target_maps(figures / f"{start + 1}-{start + len(chosen)}.png", maps)
        title = f"Patients {chosen[0]} to {chosen[-1]}" if len(chosen) > 1 else chosen[0]
        pictures.append(replace(picture, title=title))
    return Section(
        "Labels on the slide",
        "White is where no patch was kept.",
        pictures,
    )


def tissue(explored: Explored, slides: Mapping[str, tuple[Slide, Rows]], figures: Path) -> Section:
    """Tissue beside tissue with IDC overlaid, of the chosen patients."""
    target = explored.store.table["target"].to_numpy()
    pictures = []
    for patient in watched([name for name in explored.drawn if name in slides], "drawing tissue"):
        slide, rows = slides[patient]
        path = figures / f"{safe_name(patient)}.png"
        pictures.append(draw_tissue_pair(path, slide, explored.store.pixels[rows], target[rows]))
    return Section(
        "Tissue",
        "The patches put together again. The labels are regions that one pathologist drew.",
        pictures,
    )


def augmentation(explored: Explored, config: ExploreConfig, figures: Path) -> Section:
    """Some patches as they are in the file, as training and as evaluation sees them."""
    rows = previewed(explored.store.table, config)
    seen = explored.store.pixels[rows.index.to_numpy()]
    views = {"file": [read_patch(explored.root / path) for path in rows["path"]]}
    for epoch in range(DRAWS):
        views[f"train, epoch {epoch}"] = list(
            augmented(seen, rows.index.to_numpy(copy=True), config.data.augment, config.seed, epoch)
        )
    views["evaluation"] = list(seen)
    names = [
        ("IDC" if row.target else "healthy", str(row.patient_id), f"x {row.x}, y {row.y}")
        for row in rows.itertuples()
    ]
    changes = [f"{name}={value}" for name, value in config.data.augment.model_dump().items()]
    return Section(
        "Augmentation",
        f"data.edge_patches={config.data.edge_patches}; data.augment: {', '.join(changes)}.",
        [draw_augmentation(figures / "augmentation.png", views, names)],
    )


def previewed(table: pd.DataFrame, config: ExploreConfig) -> pd.DataFrame:
    """Patches for the preview: half of them IDC, and one at the edge if training keeps such."""
    edges = table[table["edge"] & (config.data.edge_patches != "drop")]
    visible = edges[edges[["width", "height"]].min(axis=1) >= VISIBLE]
    whole = table[~table["edge"] & ~table["blank"]]
    parts = [draw_evenly(edges if visible.empty else visible, 1, seed=config.seed)]
    for target in (1, 0):
        of_class = whole[whole["target"] == target]
        parts.append(draw_evenly(of_class, PREVIEWED // 2, seed=config.seed))
    chosen = pd.concat(parts)
    return chosen if len(chosen) else draw_evenly(table, 1, seed=config.seed)


def augmented(
    pixels: npt.NDArray[np.uint8], rows: Rows, config: AugmentConfig, seed: int, epoch: int
) -> npt.NDArray[np.uint8]:
    """Patches, uint8 [n, 50, 50, 3], as training draws them in an epoch."""
    image = as_float(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    cell = torch.from_numpy(rows).reshape(-1, 1, 1)
    image, _, _ = augment(image, cell, cell, config, seed=seed, epoch=epoch)
    drawn: npt.NDArray[np.uint8] = (
        (255 * image).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    )
    return drawn


def health(explored: Explored, config: ExploreConfig, figures: Path) -> Section:
    """What is doubtful, counted and, where it is grave, listed and shown."""
    findings = explored.findings
    grave = findings[findings["kind"].isin(GRAVE)]
    items: list[DataTable | Gallery] = [
        DataTable(
            "Findings by kind",
            "Edge patches and gaps are normal, duplicates and broken files aren't. health.csv "
            "lists each finding with its patient and position.",
            summarise(findings),
        )
    ]
    if len(grave):
        shown = f"The first {SHOWN} of {len(grave):,}" if len(grave) > SHOWN else "All"
        items.append(
            DataTable(
                "Findings to look at", f"{shown} beside edge patches and gaps.", grave[:SHOWN]
            )
        )
    for kind, title in (
        ("edge", "Edge patches"),
        ("blank", "Blank patches"),
        *((kind, kind.capitalize()) for kind in DUPLICATES),
    ):
        gallery = gallery_of(explored, kind, title, config)
        if gallery is not None:
            draw_gallery(figures / f"health_{safe_name(kind)}.png", gallery)
            items.append(gallery)
    return Section("Health of the data", "", items)


def gallery_of(explored: Explored, kind: str, title: str, config: ExploreConfig) -> Gallery | None:
    """Some of the patches of a kind of findings; None if there are none."""
    found = explored.findings[explored.findings["kind"] == kind]
    rows = explored.store.table.reset_index().merge(found[["path", "detail"]], on="path")
    if rows.empty:
        return None
    if kind in DUPLICATES:
        rows = rows.sort_values("digest", kind="stable").head(config.report.gallery)
    else:
        rows = draw_evenly(rows, config.report.gallery, seed=config.seed)
    caption = f"{len(rows)} of {len(found):,}."
    return Gallery(
        title, caption, tiles_of(explored.store, rows.set_index("index"), rows["detail"].tolist())
    )


def main() -> None:
    """Entry point of the command."""
    run_command(explore, ExploreConfig)


if __name__ == "__main__":
    main()
