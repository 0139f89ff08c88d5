"""Logits of all patches of a store, on the hardware that is there."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idc_lightning.classifier import IDCClassifier
from idc_lightning.config import HardwareConfig
from idc_lightning.data.batches import Batch, Crops, loader
from idc_lightning.data.datamodule import as_float
from idc_lightning.data.store import Store
from idc_lightning.progress import watched
from idc_lightning.trainer import resolve_accelerator, resolve_precision


def predict_logits(
    classifier: IDCClassifier,
    store: Store,
    rows: npt.NDArray[np.int64],
    hardware: HardwareConfig,
    *,
    batch_size: int,
) -> Tensor:
    """Compute the logits of patches.

    Args:
        classifier: In evaluation mode.
        store: Pixels and table.
        rows: Row numbers of the patches [n].
        hardware: Where and in which precision, as for training.
        batch_size: Patches at a time.

    Returns:
        Float32 [n, 2], on the CPU.

    Raises:
        IDCError: If the hardware lacks what is asked for.
    """
    accelerator = resolve_accelerator(hardware)
    precision = resolve_precision(hardware, accelerator)
    device = torch.device("cuda" if accelerator == "gpu" else "cpu")
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    batches: Iterable[Batch] = loader(
        Crops(store, rows.reshape(-1, 1, 1)),
        batch_size=batch_size,
        workers=0,
        pin_memory=device.type == "cuda",
    )
    classifier.to(device)
    number = -(-len(rows) // batch_size)
    found = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for batch in watched(batches, "predicting", total=number):
            image = as_float(batch["image"].to(device, non_blocking=True))
            found.append(classifier(image).flatten(0, -2).cpu())
    return torch.cat(found)
