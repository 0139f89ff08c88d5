"""All pixels of a run on the device that computes, where they fit, with no batch sent there."""

from typing import Literal

import torch
from torch import Tensor

from idc_lightning.data.decode import WHITE
from idc_lightning.data.grid import PATCH
from idc_lightning.data.store import Store
from idc_lightning.errors import IDCError
from idc_lightning.files import in_units

CHUNK = 4096
"""Patches that are sent at a time."""

SHARE = 0.5
"""Part of a GPU's free memory that pixels may take; network and batches need the rest."""


def resident_pixels(
    store: Store, device: torch.device, wanted: Literal["auto", "on", "off"]
) -> Tensor | None:
    """Send the patches of a store to the device.

    Args:
        store: Pixels and table.
        device: What computes.
        wanted: ``"auto"`` sends them to a GPU if they fit, ``"on"`` to any device.

    Returns:
        Uint8 [n + 1, 50, 50, 3], in the order of the store's table and white at the end, where the
        row number of a missing cell (-1) leads; None if they stay where they are.

    Raises:
        IDCError: If they don't fit and ``wanted`` is ``"on"``.
    """
    if wanted == "off" or (wanted == "auto" and device.type != "cuda"):
        return None
    count = len(store.table)
    size = count * PATCH * PATCH * 3
    room = torch.cuda.mem_get_info(device)[0] * SHARE if device.type == "cuda" else size
    if size > room:
        if wanted == "auto":
            return None
        raise IDCError(
            f"data.device_resident=on: {in_units(size)} of patches don't fit into half of the "
            "GPU's free memory: take data.device_resident=auto"
        )
    pixels = torch.full((count + 1, PATCH, PATCH, 3), WHITE, dtype=torch.uint8, device=device)
    for start in range(0, count, CHUNK):
        rows = torch.arange(start, min(start + CHUNK, count)).numpy()
        pixels[start : start + len(rows)] = torch.from_numpy(store.read_input(rows)).to(device)
    return pixels
