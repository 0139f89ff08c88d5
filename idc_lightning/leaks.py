"""What a run has seen already of patches that it shall be judged on: patients and images.

Patients are known by name. Images are known by their pixels, of which a checkpoint holds hashes, so
that a copy is found in another folder and under another patient's name, too.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from idc_lightning.data.decode import image_keys
from idc_lightning.data.index import named as some_of
from idc_lightning.data.seen import Seen
from idc_lightning.errors import IDCError, listed
from idc_lightning.runs import Run


def known_images(seen: Seen, table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether a patch is an image that was trained on, for each row.

    Args:
        seen: By a run.
        table: Patches with digest and blank, as of a store. Blank ones are known by nobody.
    """
    found = np.isin(image_keys(table["digest"]), seen.images)
    known: npt.NDArray[np.bool_] = found & ~table["blank"].to_numpy(np.bool_)
    return known


def refuse_known_images(run: Run, table: pd.DataFrame, root: object) -> None:
    """Stop if patches that shall be judged are images that the run was trained on.

    Args:
        run: A run.
        table: Patches with path, digest and blank, none of them of the run's train patients.
        root: Where they lie, for the error.

    Raises:
        IDCError: Naming some of them.
    """
    paths = table.loc[known_images(run.seen, table), "path"].tolist()
    if paths:
        raise IDCError(
            f"leak: {len(paths)} patches of {root} are images that the run was trained on, under "
            f"names of other patients: {some_of(paths)}; delete them"
        )


def seen_before(run: Run, table: pd.DataFrame) -> list[str]:
    """Lines on patients and images that the run knows already.

    Args:
        run: A run.
        table: Patches with patient_id, digest and blank.
    """
    split = run.seen.splits.reindex(table["patient_id"].unique())
    better = "what it says of them is better than it would be of others"
    notes = []
    for name, used in (("train", "was trained on"), ("dev", "was tuned on")):
        names = split.index[split == name].tolist()
        if names:
            notes.append(
                f"the run {used} {len(names):,} of these patients ({listed(names)}): {better}"
            )
    others = table[table["patient_id"].map(run.seen.splits) != "train"]
    copies = int(known_images(run.seen, others).sum())
    if copies:
        notes.append(
            f"the run was trained on {copies:,} of these images, under names of other patients: "
            f"{better}, and it isn't judged on them"
        )
    return notes


def check_start(named: str, seen: Seen, table: pd.DataFrame) -> None:
    """Stop if the weights with which a run begins know patients or images of its dev or test.

    Args:
        named: How the weights are named, such as ``"model.weights=best.ckpt"``.
        seen: They have learned from its train patients, and were chosen on dev.
        table: Patches of the run that begins, with patient_id, split, path, digest and blank.

    Raises:
        IDCError: If it does.
    """
    here = table.groupby("patient_id")["split"].first().reindex(seen.splits.index)
    trained = (seen.splits == "train") & here.isin(["dev", "test"])
    tuned = (seen.splits == "dev") & (here == "test")
    leaked = seen.splits.index[trained | tuned].tolist()
    if leaked:
        raise IDCError(
            f"{named} knew {len(leaked)} patients of this run's dev and "
            f"test ({listed(leaked)}): take a run with the same split"
        )
    judged = table[table["split"] != "train"]
    copies = judged.loc[known_images(seen, judged), "path"].tolist()
    if copies:
        raise IDCError(
            f"{named} was trained on {len(copies)} images of this run's "
            f"dev and test ({some_of(copies)}): take a run with the same split"
        )
