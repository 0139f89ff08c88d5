"""What TensorBoard shows of a finished run beside its curves: decisions, pictures, its values."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

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


def log_values(
    writer: SummaryWriter,
    values: Mapping[str, Any],
    metrics: Mapping[str, float],
    varied: Collection[str],
    *,
    step: int,
) -> None:
    """Log a configuration and what came of it for the tab that compares runs.

    Args:
        writer: Of the run.
        values: The configuration, as nested plain values.
        metrics: By name.
        varied: Keys such as ``"model.head.dropout"`` that stand in the first columns.
        step: Of the training, at which the metrics were computed.
    """
    names = {key.replace(".", "/") for key in varied}
    experiment, start, end = hparams(dict(_flat(values)), dict(metrics))  # type: ignore[no-untyped-call]
    # TensorBoard sorts to the front what it takes to differ among runs.
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for each in content.experiment.hparam_infos:
        each.differs = each.name in names
    plugin.content = content.SerializeToString()
    for name, value in metrics.items():
        writer.add_scalar(name, value, step)
    file = writer._get_file_writer()  # type: ignore[no-untyped-call]
    for summary in (experiment, start, end):
        file.add_summary(summary)


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float | str | bool]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{key}/")
        else:
            plain = isinstance(value, bool | int | float | str)
            yield f"{within}{key}", value if plain else str(value)
