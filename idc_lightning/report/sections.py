"""Parts of reports of predictions; each draws its figures and says what to look for."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd

from idc_lightning.config import ReportConfig
from idc_lightning.data.store import Store
from idc_lightning.errors import IDCError, listed
from idc_lightning.figures.judgement import (
    draw_confusion,
    draw_probabilities,
    draw_ranking,
    draw_reliability,
)
from idc_lightning.figures.patches import Gallery, Tile, draw_gallery
from idc_lightning.figures.patients import draw_patient_f1, draw_patients
from idc_lightning.figures.style import Picture
from idc_lightning.figures.tissue import Slide, draw_landscape
from idc_lightning.files import safe_name
from idc_lightning.memory import return_freed_memory
from idc_lightning.processes import shared_out
from idc_lightning.report.page import DataTable, Section
from idc_lightning.results.judgement import Judgement
from idc_lightning.results.summary import AT_THRESHOLD, LABELS, interval_text, mean_text

FEW = 2
"""Pictures up to which starting processes costs more than it saves."""

KINDS = {
    0: ("Healthy patches called IDC", "the highest probability of IDC"),
    1: ("IDC patches called healthy", "the lowest probability of IDC"),
}
"""Both kinds of wrong patches by their true class: what they are, and which are the worst."""

COLUMNS = {
    "patient_id": "patient",
    "split": "split",
    "patches": "patches",
    "idc": "IDC",
    "predicted_idc": "called",
    "correct": "correct",
    "f1": "F1",
    "balanced_accuracy": "bal. acc.",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "auroc": "AUROC",
    "average_precision": "AP",
    "brier": "Brier",
}
"""Short names of what is said of a patient, for a table that many windows have room for."""


def numbers(judgement: Judgement) -> Section:
    """The metrics, counted in three ways."""
    threshold = judgement.decision.threshold
    intervals = {
        split: [interval_text(metrics[name]) for name in LABELS]
        for split, metrics in judgement.metrics.items()
    }
    # The calibration error of one patient is mostly chance.
    compared = [name for name in LABELS if name != "expected_calibration_error"]
    others: dict[str, list[object]] = {"metric": [LABELS[name] for name in compared]}
    for split in judgement.metrics:
        at_half = judgement.at_half[split]
        others[f"{split} at 0.5"] = [
            at_half[name] if name in AT_THRESHOLD else "as above" for name in compared
        ]
        means = judgement.means[split]
        others[f"{split} by patient"] = [mean_text(means[name]) for name in compared]
    labels = {"metric": list(LABELS.values())}
    chosen_on_dev = ""
    if "dev" in judgement.metrics:
        chosen_on_dev = (
            "Epoch, temperature, bias and, unless it was given, the threshold were chosen on dev, "
            "so its values are too good. "
        )
    return Section(
        "Results",
        "F1, precision and recall are of the IDC class. Patches of one patient are not "
        "independent, so the intervals are those of a bootstrap over whole patients: with few "
        "patients they are wide, and two runs whose intervals overlap widely can't be told apart "
        "by their values.",
        [
            DataTable(
                f"All patches, at the threshold {threshold:.3f}",
                f"Value with its interval. {chosen_on_dev}Brier score and calibration error: lower "
                "is better.",
                pd.DataFrame(labels | intervals),
            ),
            DataTable(
                "The same counted otherwise",
                "At the threshold 0.5; and as a mean over patients at the chosen threshold, in "
                "which every patient weighs the same (n: for how many it is defined). Where both "
                "differ much from the table above, a few patients decide.",
                pd.DataFrame(others),
            ),
        ],
    )


def decisions(figures: Path, judgement: Judgement) -> Section:
    """Confusion, ranking, probabilities and their reliability."""
    predictions, decision = judgement.predictions, judgement.decision
    threshold = decision.threshold
    averaged = (
        f"averaged over neighbours by a Gaussian of {decision.bandwidth:g} patches, then "
        if decision.bandwidth > 0
        else ""
    )
    return Section(
        "Decisions and probabilities",
        f"Logits are {averaged}divided by the temperature {decision.temperature:.2f}, and the bias "
        f"{decision.bias:+.2f} is added to that of IDC; a patch counts as IDC from the probability "
        f"{threshold:.3f} on. Where they were fitted, it was on dev alone.",
        [
            draw_confusion(figures / "confusion.png", predictions, threshold=threshold),
            draw_ranking(figures / "ranking.png", predictions, threshold=threshold),
            draw_probabilities(figures / "probabilities.png", predictions, threshold=threshold),
            draw_reliability(figures / "reliability.png", predictions, decision),
        ],
    )


def by_patient(figures: Path, judgement: Judgement, *, microns: float) -> Section:
    """Who fares well and who doesn't.

    Args:
        figures: Folder of the pictures.
        judgement: Labelled predictions.
        microns: Width of a pixel in µm.
    """
    patients = judgement.patients
    table = pd.concat([rows.assign(split=split) for split, rows in patients.items()])
    return Section(
        "By patient",
        "A good mean can hide patients in whom the model fails.",
        [
            draw_patients(figures / "patients.png", patients, microns_per_pixel=microns),
            draw_patient_f1(figures / "patient_f1.png", patients),
            DataTable(
                "Each patient",
                "IDC and called are shares of the patches, as labelled and as called IDC; AP is "
                "the average precision. Metrics are at the chosen threshold; a dash where one is "
                "undefined.",
                table[list(COLUMNS)].rename(columns=COLUMNS),
            ),
        ],
    )


def worst(figures: Path, judgement: Judgement, store: Store, *, count: int) -> Iterator[Section]:
    """The most confident wrong patches of each split, both kinds.

    Args:
        figures: Folder of the pictures.
        judgement: Labelled predictions, indexed by row numbers of the store.
        store: Pixels.
        count: Patches in a gallery.
    """
    for split, predictions in judgement.predictions.items():
        wrong = predictions[predictions["true"] != predictions["predicted"]]
        galleries = []
        for true, (kind, extreme) in KINDS.items():
            of_kind = wrong[wrong["true"] == true].sort_values("proba", ascending=true == 1)
            if of_kind.empty:
                continue
            shown = of_kind.head(count)
            gallery = Gallery(
                f"{kind} in {split}",
                f"The {len(shown)} of {len(of_kind):,} with {extreme}. Look for what they share: "
                "folds, blur, ink, inflammation, in situ carcinoma, or a label that is wrong.",
                [
                    Tile(
                        store.read(row),
                        (
                            str(patch.patient_id),
                            f"x {patch.x}, y {patch.y}",
                            f"p = {patch.proba:.3f}",
                        ),
                    )
                    for row, patch in zip(shown.index, shown.itertuples(), strict=True)
                ],
            )
            name = "false_positives" if true == 0 else "false_negatives"
            draw_gallery(figures / f"{split}_{name}.png", gallery)
            galleries.append(gallery)
        if galleries:
            yield Section(
                f"Very bad results in {split}",
                "Wrong patches of which the model was most certain, the worst first.",
                galleries,
            )


@contextmanager
def landscapes(
    figures: Path,
    wanted: Mapping[str, tuple[pd.DataFrame, Sequence[str]]],
    store: Store,
    *,
    microns: float,
    threshold: float,
) -> Iterator[dict[str, Iterator[Picture]]]:
    """Draw the landscapes of patients, as far as they can be drawn, while the block goes on.

    Other processes draw them; they have ended when the block ends.

    Args:
        figures: Folder of the pictures.
        wanted: By what the names of the files begin with: predictions, indexed by row numbers of
            the store, and which of their patients are drawn.
        store: Pixels.
        microns: Width of a pixel in µm.
        threshold: Probability from which a patch counts as IDC.

    Yields:
        Pictures by the same names, to be taken in the same order.
    """
    slides = {
        prefix: _drawable(predictions, patients, microns)
        for prefix, (predictions, patients) in wanted.items()
    }
    calls = (
        (
            figures / f"{prefix}_{safe_name(slide.patient_id)}.png",
            slide,
            store.read(rows.index),
            rows,
        )
        for prefix, of_prefix in slides.items()
        for slide, rows in of_prefix
    )
    count = sum(map(len, slides.values()))
    draw = partial(draw_landscape, threshold=threshold)
    return_freed_memory()  # the processes that draw would hold it, too
    with shared_out(
        draw, calls, "drew landscapes", count=count, alone=count <= FEW, fork=True
    ) as pictures:
        yield {prefix: islice(pictures, len(of_prefix)) for prefix, of_prefix in slides.items()}


def _drawable(
    predictions: pd.DataFrame, patients: Iterable[str], microns: float
) -> list[tuple[Slide, pd.DataFrame]]:
    """Slides that can be drawn, with their predictions."""
    by_patient = predictions.groupby("patient_id", sort=False)
    rows = {name: by_patient.get_group(name) for name in patients}
    slides = [(slide_of(name, of_slide, microns), of_slide) for name, of_slide in rows.items()]
    return [(slide, of_slide) for slide, of_slide in slides if slide.drawable]


def statements(title: str, values: Mapping[str, str]) -> Section:
    """Statements by name, as a model card is."""
    rows = pd.DataFrame(list(values.items()), columns=["what", "value"])
    return Section(title, "", [DataTable(title, "", rows)])


def check_patients(config: ReportConfig, patches: pd.DataFrame) -> None:
    """Stop if a patient shall be drawn who isn't there.

    Args:
        config: Whom to draw.
        patches: The patches of the data, with patient_id.

    Raises:
        IDCError: Naming the patients, with names like theirs.
    """
    known = patches["patient_id"].unique().tolist()
    unknown = [name for name in dict.fromkeys(config.patients or ()) if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {listed(known)}"
        raise IDCError(f"report.patients: the data has no patient {listed(unknown)}; {hint}")


def chosen(names: Iterable[str], wanted: Sequence[str] | None) -> list[str]:
    """Those patients of a list who shall be drawn; None wants all."""
    return [name for name in names if wanted is None or name in wanted]


def slide_of(patient: str, patches: pd.DataFrame, microns: float) -> Slide:
    """Where the patches of a patient lie; they have x and y."""
    return Slide(patient, patches["x"].to_numpy(), patches["y"].to_numpy(), microns)


def too_scattered(patches: pd.DataFrame, microns: float) -> list[str]:
    """A line on patients whose patches can't be put together to a picture, if there are any."""
    names = [
        str(name)
        for name, rows in patches.groupby("patient_id")
        if not slide_of(str(name), rows, microns).drawable
    ]
    if not names:
        return []
    return [f"not drawn, since their patches lie too far apart: patients {listed(names)}"]
