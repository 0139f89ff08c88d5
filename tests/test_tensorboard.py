from pathlib import Path

import numpy as np
import pytest
from helpers_sweep import JUDGED, predictions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from idc_lightning.data.grid import CLASSES
from idc_lightning.decision import UNDECIDED
from idc_lightning.report.tensorboard import log_judgement
from idc_lightning.results.judgement import judge_splits


@pytest.mark.parametrize("sure", [False, True])
def test_histograms_count_each_patch_however_sure_a_net_is(tmp_path: Path, sure: bool) -> None:
    table = predictions(["a", "b", "c"], 1.0)
    if sure:  # nearly all within 1e-11 of each other
        table["proba"] = np.where(np.arange(len(table)) % 40, 1e-9 + 1e-13 * table.index, 1.0)
    judgement = judge_splits({"dev": table}, UNDECIDED, JUDGED, seed=0)
    with SummaryWriter(str(tmp_path)) as writer:
        log_judgement(writer, judgement, step=7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for target, name in enumerate(CLASSES):
        (event,) = events.Histograms(f"dev/probability_of_{name}_patches")
        assert sum(event.histogram_value.bucket) == (table["true"] == target).sum()
        assert max(event.histogram_value.bucket_limit) <= 1 + 1e-9
