"""The patches of a run and their pixels: what it takes of the pack of its data set."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from idc_lightning.data.checked import CheckedRows
from idc_lightning.data.pack import open_pack
from idc_lightning.data.stains import Stains, measure_stains
from idc_lightning.errors import IDCError, listed

READ = ("width", "height", "blank", "digest")
"""What a table of patches takes over from the pack."""


@dataclass(frozen=True)
class Store:
    """The pixels of a table of patches.

    Attributes:
        table: The patches that could be read, with further columns width
            and height (int64, pixels of the file), edge (bool, smaller than 50x50 px), blank (bool,
            one colour throughout) and digest (str, of the pixels as they were in the file).
        packed: Pixels of the table's rows and of others, uint8 [M, 50, 50, 3], RGB.
        places: Row of ``packed`` for each row of the table, int64 [N].
        folder: Where these lie.
        key: A hash of the names and pixels of all that ``packed`` holds.
        converted: Number of files by what they were converted from (grey, RGBA, which is
            all with transparency, 16-bit, palette).
        broken: The patches left out because their files can't be read, with a further column
            problem (str).
        dropped: Number of edge patches left out.
        stretched: Number of edge patches stretched to 50x50 px.
        stains: How a network's input is normalised; None leaves it as it is.
    """

    table: pd.DataFrame
    packed: CheckedRows
    places: npt.NDArray[np.int64]
    folder: Path
    key: str
    converted: dict[str, int]
    broken: pd.DataFrame
    dropped: int
    stretched: int = 0
    stains: Stains | None = None

    def read(self, rows: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Copy the pixels of some patches.

        Args:
            rows: Rows of the table, of any shape.

        Returns:
            Uint8 [..., 50, 50, 3].

        Raises:
            IDCError: If they aren't those that were packed.
        """
        return self.packed.read(self.places[np.asarray(rows)])

    def read_input(self, rows: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Copy pixels as a network takes them: what `read` gives, with its stains normalised."""
        return self.input_at(self.places[np.asarray(rows)])

    def input_at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The same by rows of ``packed``."""
        pixels = self.packed.read(places)
        return pixels if self.stains is None else self.stains.apply(pixels, places)

    @property
    def input_key(self) -> str:
        """A hash of all pixels as a network takes them."""
        return self.key if self.stains is None else f"{self.key} {self.stains.key}"

    def notes(self) -> list[str]:
        """One line on each kind of patch that was left out or changed."""
        kinds = {
            "left out {} patches that can't be read": len(self.broken),
            "left out {} edge patches": self.dropped,
            "edge patches smaller than 50x50 px: {}": int(self.table["edge"].sum()),
            "edge patches stretched to 50x50 px: {}": self.stretched,
        }
        notes = [line.format(f"{count:,}") for line, count in kinds.items() if count]
        if self.stains is not None and self.stains.unmeasured:
            names = listed(list(self.stains.unmeasured))
            notes.append(f"too little tissue to measure its stains, left as they are: {names}")
        return notes + [
            f"converted {n:,} {kind} patches to RGB" for kind, n in sorted(self.converted.items())
        ]


def open_store(
    root: Path,
    table: pd.DataFrame,
    *,
    cache: Path,
    everything: pd.DataFrame | None = None,
    edge_patches: str = "pad",
    on_broken: str = "error",
    stain_normalisation: str = "none",
    check_all: bool = False,
) -> Store:
    """Take patches from the pack of their data set, which is made on first use.

    Args:
        root: Folder that the table's paths start from.
        table: The patches, with the column path.
        cache: Folder of what can be made again, where the pack lies.
        everything: All patches of the data set, which share a pack whatever is taken of them; None
            if ``table`` has them all.
        edge_patches: What becomes of patches smaller than 50x50 px: ``"pad"`` with white on the
            right and below, ``"resize"`` (bilinear) or ``"drop"``.
        on_broken: ``"error"``, or ``"skip"`` to leave out files that can't be read.
        stain_normalisation: ``"slide"`` measures the stains of each patient's patches, for what a
            network takes.
        check_all: Whether all pixels of the pack are checked, not only some.

    Raises:
        IDCError: Naming all files that can't be read, if no patch is left, or if the pack can't be
            made.
    """
    paths = (table if everything is None else everything)["path"].tolist()
    pack = open_pack(root, paths, cache, check_all=check_all)
    rows = pd.Index(pack.paths, dtype=object).get_indexer(pd.Index(table["path"]))
    read = pack.table.iloc[rows].set_axis(table.index)
    broken = read["problem"] != ""
    unread = table[broken].assign(problem=read["problem"][broken]).reset_index(drop=True)
    if broken.any() and on_broken == "error":
        raise _broken_files(root, unread)
    edge = read["stretched"] >= 0
    kept = ~broken & ~edge if edge_patches == "drop" else ~broken
    if not kept.any():
        raise IDCError(f"no patch of {root} is left: all are broken or dropped as edge patches")
    converted = read["converted"][kept]
    places = np.where(edge, read["stretched"], rows) if edge_patches == "resize" else rows
    places = places[kept].astype(np.int64)
    taken = table.assign(edge=edge, **{name: read[name] for name in READ})[kept].reset_index(
        drop=True
    )
    return Store(
        table=taken,
        packed=pack.pixels,
        places=places,
        folder=pack.folder,
        key=pack.key,
        converted=dict(Counter(converted[converted != ""].tolist())),
        broken=unread,
        dropped=int((edge & ~kept).sum()),
        stretched=int(edge[kept].sum()) if edge_patches == "resize" else 0,
        stains=measure_stains(taken["patient_id"], places, pack.pixels.read, len(pack.pixels))
        if stain_normalisation == "slide"
        else None,
    )


def _broken_files(root: Path, unread: pd.DataFrame) -> IDCError:
    if not root.is_dir():
        return IDCError(f"{root} is gone: it was there when its patches were counted")
    lines = [f"  {row.path}: {row.problem}" for row in unread.itertuples()]
    return IDCError(
        "\n".join(
            [
                f"{len(lines)} patches of {root} can't be read (listed below): mend or delete "
                "them, or set data.on_broken=skip to leave them out",
                *lines,
            ]
        )
    )
