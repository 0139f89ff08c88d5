"""Compile the backbone, where a compiler is present."""

import shutil
import sys

from idc_lightning.errors import IDCError
from idc_lightning.models.network import PatchNetwork

COMPILERS = ("g++", "clang++", "c++")


def compile_backbone(network: PatchNetwork) -> None:
    """Compile the backbone at its first batch; names and values of its weights stay.

    Args:
        network: On its device.

    Raises:
        IDCError: If the CPU computes and no C++ compiler is found, which torch.compile needs there.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    if on_cpu and sys.platform != "win32" and not any(map(shutil.which, COMPILERS)):
        raise IDCError(
            "model.compile=true needs a C++ compiler, and none is on the path: install g++, or "
            "take model.compile=false"
        )
    network.backbone.compile()
