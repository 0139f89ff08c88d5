"""The report of a data set: counts, splits, patches, slides, augmentation and health."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from idc_lightning.config import AugmentConfig, ExploreConfig
from idc_lightning.data.augment import as_float, augment
from idc_lightning.data.decode import read_patch
from idc_lightning.data.grid import CLASSES, PATCH
from idc_lightning.data.health import DUPLICATES, SMALL_INSIDE, summarise
from idc_lightning.data.sample import draw_evenly
from idc_lightning.data.split import NAMES, compare_splits
from idc_lightning.data.store import Store
from idc_lightning.figures.dataset import draw_overview, draw_splits
from idc_lightning.figures.patches import Gallery, Tile, draw_augmentation, draw_gallery
from idc_lightning.figures.tissue import Slide, draw_target_maps, draw_tissue_pair
from idc_lightning.files import safe_name
from idc_lightning.processes import shared_out
from idc_lightning.progress import watched
from idc_lightning.report.page import DataTable, Section, write_report
from idc_lightning.report.sections import FEW, slide_of

Rows = npt.NDArray[np.int64]

MAPS = 15
"""Patients in one picture of labels."""

PREVIEWED = 8
"""Patches in the preview of the augmentation."""

DRAWS = 4
"""Times that the preview augments each of them."""

VISIBLE = 10
"""Pixels of an edge patch from which on there is something to see in it."""

SHOWN = 200
"""Findings that the report lists; health.csv has all."""

HEADINGS = {
    "patient_id": "patient",
    "idc_patches": "IDC patches",
    "idc": "IDC",
    "both_labels": "both labels",
    "small_inside": "small inside",
    "width_mm": "width",
    "height_mm": "height",
    "patient_idc": "by patient",
    "patches_per_patient": "patches each",
    "idc_diff": "Δ IDC",
    "patient_idc_diff": "Δ by patient",
    "patches_per_patient_diff": "Δ patches",
}
"""How the report calls the columns of `describe_patients` and `compare_splits`."""

GRAVE = ("broken", "both labels", *DUPLICATES, SMALL_INSIDE, "blank")
"""Findings that the report lists one by one."""


LOOK_FOR = (
    "Look for patches that resemble those labelled IDC, which is what a model confuses. In tissue "
    "stained with H&E these are violet, dense with cells; fat is white and fibres are pink.",
    "Look for what they have in common, and for patches that lack it. In tissue stained with H&E, "
    "IDC shows as dense, violet nests of cells; where labels were drawn around regions and not "
    "for each patch, some patches show none.",
)
"""What to look for in patches of each class; it must be true of any data set."""


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


def write_exploration(folder: Path, explored: Explored, config: ExploreConfig) -> None:
    """Draw the figures of a data set and write its report.html.

    Args:
        folder: Where figures/ and report.html go.
        explored: What is shown.
        config: Which data, and how much of it is shown.

    Raises:
        IDCError: If a file can't be written.
    """
    write_report(
        folder / "report.html",
        title="A look at the data",
        facts=facts_of(explored, config),
        sections=sections_of(explored, config, folder / "figures"),
        notes=explored.notes,
    )


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
                "IDC is the share of IDC patches. Gaps are places without a patch that are "
                "enclosed by patches, pieces the parts that the tissue falls into, duplicates "
                "patches whose pixels another one has. Width and height (in mm) are those of the "
                "part of the slide that holds patches.",
                explored.patients.rename(columns=HEADINGS),
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
                "IDC is the share among all patches of a split, by patient the mean of its "
                "patients' shares, patches each the mean number of patches of a patient. Δ is the "
                "difference from all patients together: of shares as share minus share (0.02 is "
                "two percentage points), of patches as a part of the whole's. The nearer to 0, "
                "the more alike the splits are.",
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
            f"{len(rows)} patches labelled {name}, drawn by chance and evenly over the patients. "
            + LOOK_FOR[target],
            tiles_of(explored.store, rows),
        )
        draw_gallery(figures / f"patches_{name.lower()}.png", gallery)
        galleries.append(gallery)
    return Section("Patches", "Below each patch its patient and position on the slide.", galleries)


def tiles_of(store: Store, rows: pd.DataFrame, *more: Sequence[str]) -> list[Tile]:
    """Tiles of a store's rows, with patient, position and further lines below."""
    return [
        Tile(store.read(row), (patient, f"x {x}, y {y}", *lines))
        for row, patient, x, y, *lines in zip(
            rows.index, rows["patient_id"], rows["x"], rows["y"], *more, strict=True
        )
    ]


def slides_of(explored: Explored, microns: float) -> dict[str, tuple[Slide, Rows]]:
    """Slide and row numbers in the store of each patient that can be drawn."""
    slides = {}
    for patient, rows in explored.store.table.groupby("patient_id", sort=True):
        slide = slide_of(str(patient), rows, microns)
        if slide.drawable:
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
    drawn = {name: slides[name] for name in explored.drawn if name in slides}
    calls = (
        (figures / f"{safe_name(name)}.png", slide, explored.store.read(rows), target[rows])
        for name, (slide, rows) in drawn.items()
    )
    few = len(drawn) <= FEW
    with shared_out(
        draw_tissue_pair, calls, "drew tissue", count=len(drawn), alone=few, fork=True
    ) as drawing:
        pictures = list(watched(drawing, "drawing tissue", total=len(drawn)))
    return Section(
        "Tissue",
        "The patches put together again; beside it the same with those labelled IDC in colour.",
        pictures,
    )


def augmentation(explored: Explored, config: ExploreConfig, figures: Path) -> Section:
    """Some patches as they are in the file, as training and as evaluation sees them."""
    rows = previewed(explored.store.table, config)
    paths = [explored.root / path for path in rows["path"]]
    views = {"file": [read_patch(path) for path in paths]}
    store, numbers = explored.store, rows.index.to_numpy()
    seen = store.read_input(numbers)
    if config.data.edge_patches == "resize":  # the store's are padded
        seen = np.stack([read_patch(path, stretched=True) for path in paths])
        if store.stains is not None:
            seen = store.stains.apply(seen, store.places[numbers])
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
        f"data.edge_patches={config.data.edge_patches}; data.stain_normalisation="
        f"{config.data.stain_normalisation}; data.augment: {', '.join(changes)}.",
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
        (SMALL_INSIDE, "Small patches inside the tissue"),
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
