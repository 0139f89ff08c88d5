"""Logits of all patches of a store, on the hardware that is there."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idc_lightning.classifier import inputs_of, judged_cells
from idc_lightning.config import HardwareConfig
from idc_lightning.data.augment import as_float
from idc_lightning.data.batches import Batch, Crops, loader
from idc_lightning.data.crops import judging_cut
from idc_lightning.data.store import Store
from idc_lightning.errors import IDCError
from idc_lightning.progress import watched
from idc_lightning.runs import Run
from idc_lightning.trainer import MIXED, resolve_accelerator, resolve_precision


def predict_logits(
    run: Run, store: Store, rows: npt.NDArray[np.int64], hardware: HardwareConfig
) -> Tensor:
    """Compute the logits of patches, in batches as large as the run's own.

    Args:
        run: Its classifier is taken.
        store: Pixels and table.
        rows: Row numbers of the patches [n].
        hardware: Where and in which precision; ``"auto"`` is the run's own precision.

    Returns:
        Float32 [n, 2], on the CPU.

    Raises:
        IDCError: If the hardware lacks what is asked for, or logits aren't finite.
    """
    accelerator = resolve_accelerator(hardware)
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    dtype = MIXED.get(precision_of(run, hardware, accelerator))
    crops = Crops(store, judging_cut(run.data, store.table, rows))
    size = run.data.judged_at_once
    batches: Iterable[Batch] = loader(
        crops, batch_size=size, workers=0, pin_memory=device.type == "cuda"
    )
    classifier = run.classifier.to(device)
    found = torch.zeros(len(store.table), 2)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for batch in watched(batches, "predicting", total=-(-len(crops) // size)):
            given = inputs_of(batch)
            inputs = {name: value.to(device, non_blocking=True) for name, value in given.items()}
            inputs["image"] = as_float(inputs["image"])
            found[judged_cells(batch)[0]] = classifier.judge(**inputs).cpu()
    logits = found[torch.from_numpy(rows)]
    if not bool(torch.isfinite(logits).all()):
        raise IDCError(f"logits are not finite: the weights in {run.checkpoint} can't be used")
    return logits


def precision_of(run: Run, hardware: HardwareConfig, accelerator: str) -> str:
    """In which precision is computed: what is asked for, else the run's own, so that it agrees.

    Raises:
        IDCError: If the hardware doesn't compute in what is asked for.
    """
    if hardware.precision != "auto" or run.precision is None:
        return resolve_precision(hardware, accelerator)
    own = HardwareConfig.model_validate({**hardware.model_dump(), "precision": run.precision})
    try:
        return resolve_precision(own, accelerator)
    except IDCError:  # trained on other hardware
        return "32-true"
