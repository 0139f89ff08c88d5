"""What weights have learned from: patients by name, and images by hashes of their pixels.

A run leaves it in its checkpoints, so that whatever begins with these weights isn't judged on them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from idc_lightning.data.decode import image_keys


def by_patient(splits: Mapping[str, str]) -> pd.Series:
    """Splits by patient_id, as `idc_lightning.data.split.split_patients` gives them."""
    return pd.Series(dict(splits), name="split", dtype=object).rename_axis("patient_id")


@dataclass(frozen=True)
class Seen:
    """What was used to train or to choose weights.

    Attributes:
        splits: ``"train"``, ``"dev"`` or ``"test"`` by patient_id.
        images: `image_keys` of those of train that aren't blank, int64 [n], sorted.
    """

    splits: pd.Series
    images: npt.NDArray[np.int64]

    @classmethod
    def of(cls, splits: pd.Series, table: pd.DataFrame) -> "Seen":
        """What a run has seen.

        Args:
            splits: Its own.
            table: Its patches with split, digest and blank.
        """
        train = table[(table["split"] == "train") & ~table["blank"]]
        return cls(splits, np.unique(image_keys(train["digest"])))

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Seen":
        """What `to_plain` has made."""
        return cls(by_patient(content["splits"]), content["images"].numpy())

    def after(self, earlier: "Seen") -> "Seen":
        """This, and what the weights had seen with which it began.

        Test of an earlier run is left out: nothing was learned from it.
        """
        used = earlier.splits[earlier.splits.isin(["train", "dev"])]
        others = used[~used.index.isin(self.splits.index)]
        return Seen(pd.concat([self.splits, others]), np.union1d(self.images, earlier.images))

    def to_plain(self) -> dict[str, Any]:
        """Plain values and a tensor, for a checkpoint."""
        return {"splits": dict(self.splits.items()), "images": torch.from_numpy(self.images)}
