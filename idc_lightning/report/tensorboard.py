"""What TensorBoard shows of a finished run beside its curves: decisions and pictures."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from idc_lightning.data.grid import CLASSES
from idc_lightning.figures.style import Picture
from idc_lightning.results.judgement import Judgement

THRESHOLDS = 201
"""Points of a precision-recall curve, evenly from 0 to 1."""

EDGES = np.linspace(0, 1, 51)
"""Of the bars of a histogram; widths that follow the data vanish where a net is sure of itself."""


def log_judgement(writer: SummaryWriter, judgement: Judgement, *, step: int) -> None:
    """Log a precision-recall curve and histograms of the probability of each class, by split.

    Args:
        writer: Of the run.
        judgement: Labelled predictions.
        step: Of the training, at which they were made.
    """
    for split, table in judgement.predictions.items():
        true = torch.from_numpy(table["true"].to_numpy(copy=True))
        proba = torch.from_numpy(table["proba"].to_numpy(copy=True))
        writer.add_pr_curve(f"{split}/precision_recall", true, proba, step, THRESHOLDS)
        for target, name in enumerate(CLASSES):
            if (true == target).any():
                tag = f"{split}/probability_of_{name}_patches"
                writer.add_histogram(tag, proba[true == target], step, bins=EDGES)


def log_pictures(writer: SummaryWriter, pictures: Iterable[Picture], *, step: int) -> None:
    """Log pictures, each under the name of its file, grouped by its folder.

    Args:
        writer: Of the run.
        pictures: On disk.
        step: Of the training, at which they were made.
    """
    for picture in pictures:
        with Image.open(picture.path) as image:
            pixels = np.asarray(image.convert("RGB"))
        tag = f"{picture.path.parent.name}/{picture.path.stem}"
        writer.add_image(tag, pixels, step, dataformats="HWC")
