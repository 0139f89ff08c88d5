"""Trainings whose metric of dev takes given values, for the tests of callbacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from idc_lightning.callbacks import EpochLines


class Scripted(lightning.LightningModule):
    """Logs given values of a metric of dev, one each epoch, and learns nothing of interest."""

    def __init__(self, name: str, values: Sequence[float]) -> None:
        super().__init__()
        self.name, self.values = name, values
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss: Tensor = self.layer(batch["cell"]).mean()
        self.log("train/loss_epoch", 0.5, batch_size=len(batch["cell"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.log(self.name, self.values[self.current_epoch], batch_size=len(batch["cell"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(count: int) -> DataLoader[Any]:
    images: list[Any] = [{"cell": torch.ones(4, 1)} for _ in range(count)]
    return DataLoader(images, batch_size=None)


def fit(
    folder: Path,
    callbacks: list[Callback],
    name: str,
    values: Sequence[float],
    *,
    steps: int = 3,
    ckpt_path: Path | None = None,
) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=len(values),
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=any(isinstance(c, EpochLines) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    module = Scripted(name, values)
    trainer.fit(module, batches(steps), batches(1), ckpt_path=ckpt_path, weights_only=True)
    return trainer
