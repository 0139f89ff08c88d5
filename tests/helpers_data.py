"""Tiny data sets in the layout of the real one, and configurations, for the tests of the data."""

import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from idc_lightning.conf_folder import conf_folder
from idc_lightning.config import AnyData, AnySplit, parse
from idc_lightning.data.checked import CheckedRows, checksums_of
from idc_lightning.data.grid import PATCH, file_name

Patch = tuple[str, int, int, int]
"""Patient, x, y and class."""


def pixels_of(patch: Patch) -> NDArray[np.uint8]:
    """Noise that no other patch has."""
    rng = np.random.default_rng(zlib.crc32(repr(patch).encode()))
    return rng.integers(0, 256, (PATCH, PATCH, 3), dtype=np.uint8)


def checked(array: NDArray[Any]) -> CheckedRows:
    """Rows as they are."""
    return CheckedRows(array, checksums_of(array), damaged="changed in memory")


def place_of(root: Path, patch: Patch) -> Path:
    """Where the layout wants a patch; its folder is made."""
    path = root / patch[0] / str(patch[3]) / file_name(*patch)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make_patches(root: Path, patches: Iterable[Patch]) -> Path:
    """Write patches with the pixels of `pixels_of`; returns the root."""
    for patch in patches:
        Image.fromarray(pixels_of(patch)).save(place_of(root, patch))
    return root


def tissue(counts: Mapping[str, tuple[int, int]]) -> list[Patch]:
    """Patches of each patient, three to a row, from its numbers of healthy and of IDC patches."""
    return [
        (patient, PATCH * (number % 3) + 1, PATCH * (number // 3) + 1, int(number >= healthy))
        for patient, (healthy, idc) in counts.items()
        for number in range(healthy + idc)
    ]


def data_config(name: str = "idc", **values: object) -> AnyData:
    """The values of ``conf/data``, some of them changed."""
    folder = conf_folder() / "data"
    merged = OmegaConf.merge(
        OmegaConf.load(folder / "base.yaml"), OmegaConf.load(folder / f"{name}.yaml"), values
    )
    plain: Any = OmegaConf.to_container(merged)
    del plain["defaults"]
    return parse(AnyData, plain, "data")


def split_config(name: str, **values: object) -> AnySplit:
    """The values of ``conf/split``, some of them changed."""
    merged = OmegaConf.merge(OmegaConf.load(conf_folder() / "split" / f"{name}.yaml"), values)
    return parse(AnySplit, OmegaConf.to_container(merged), "split")


def _real_folders() -> list[Path]:
    """Where the real data may lie."""
    shared = Path(__file__).parents[2] / "shared" / "idc"
    if "IDC_ROOT" in os.environ:
        root = Path(os.environ["IDC_ROOT"])
        return [root, root.parent, shared]
    return [shared]


def real_root() -> Path:
    """Folder of the real patients; skips the test where it is absent."""
    for folder in _real_folders():
        for root in (folder, folder / "IDC_regular_ps50_idx5"):
            if (root / "9126").is_dir():
                return root
    pytest.skip("needs the real data: set IDC_ROOT to its folder")


def real_patients() -> pd.DataFrame:
    """The published table of all 279 patients; skips the test where it is absent."""
    for folder in _real_folders():
        if (folder / "patients.csv").is_file():
            return pd.read_csv(folder / "patients.csv", dtype={"patient_id": str})
    pytest.skip("needs patients.csv of the real data: set IDC_ROOT to its folder")
