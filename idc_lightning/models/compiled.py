"""Compile the backbone, where a compiler is present."""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from idc_lightning.errors import IDCError
from idc_lightning.models.network import PatchNetwork


def compile_backbone(network: PatchNetwork) -> None:
    """Compile the backbone at its first batch; names and values of its weights stay.

    Args:
        network: On its device.

    Raises:
        IDCError: If the C++ compiler or Python's header files, which torch.compile needs where a
            CPU computes, aren't found.
    """
    if next(network.parameters()).device.type == "cpu" and sys.platform != "win32":
        _check_tools()
    network.backbone.compile()


def _check_tools() -> None:
    default = "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", default)  # as torch looks for it
    if not any(map(shutil.which, shlex.split(compiler)[:1])):
        raise IDCError(
            f"model.compile=true needs a C++ compiler, and {compiler!r} isn't on the path: install "
            f"{default}, name another one by the environment's CXX, or take model.compile=false"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise IDCError(
            f"model.compile=true needs Python's header files, and {headers} has no Python.h: "
            "install python3-dev, or take model.compile=false"
        )
