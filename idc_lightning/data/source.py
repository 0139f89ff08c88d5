"""Where a data set lies: demo tissue, an unpacked archive, a download or a folder."""

from dataclasses import dataclass
from pathlib import Path

from idc_lightning.config import AnyData, DemoDataConfig
from idc_lightning.data.archive import left_out, unpack
from idc_lightning.data.demo import DRAWING, make_demo, patches_of_demo
from idc_lightning.data.kaggle import download
from idc_lightning.errors import IDCError
from idc_lightning.files import count_files, made_once


@dataclass(frozen=True)
class Source:
    """A data set on disk.

    Attributes:
        root: Folder of the patients' folders, or the folder just above it.
        notes: One line on each kind of file that an archive holds beside the patches.
    """

    root: Path
    notes: tuple[str, ...] = ()


def find_source(data: AnyData, cache: Path) -> Source:
    """Find a data set: draw the demo tissue, unpack or download it where that is needed.

    Args:
        data: Which data set.
        cache: Folder for the demo tissue and unpacked archives.

    Raises:
        IDCError: If there is no such folder or archive.
    """
    if isinstance(data, DemoDataConfig) and data.is_synthetic:
        return Source(_demo(data, cache.expanduser()))
    if data.root is None:
        raise IDCError(
            "data.root is not set: give the folder or .zip of the data set, e.g. "
            "data.root=IDC_regular_ps50_idx5"
        )
    if str(data.root) == "kaggle" and not data.root.exists():
        return Source(download())
    root = data.root.expanduser()
    if root.is_file() and root.suffix.lower() == ".zip":
        unpacked = unpack(root, cache.expanduser())
        return Source(unpacked, tuple(left_out(unpacked)))
    if not root.is_dir():
        problem = "is neither a folder nor a .zip" if root.exists() else "doesn't exist"
        raise IDCError(f"data.root={data.root} {problem}: give a folder or .zip of patches")
    return Source(root)


def _demo(data: DemoDataConfig, cache: Path) -> Path:
    """Folder of the demo tissue, made on first use.

    Raises:
        IDCError: If it can't be made, or patches were deleted since.
    """
    size = f"{data.patients}-patients_{data.patches or 'drawn'}-patches"
    folder = cache / "demo" / f"{size}_seed-{data.seed}_drawing-{DRAWING}"
    with made_once(folder) as partial:
        if partial is not None:
            make_demo(
                partial / "tissue", patients=data.patients, patches=data.patches, seed=data.seed
            )
    tissue = folder / "tissue"
    drawn = patches_of_demo(patients=data.patients, patches=data.patches, seed=data.seed)
    if count_files(tissue) < drawn:
        raise IDCError(f"parts of the demo tissue in {folder} are gone: delete this folder")
    return tissue
