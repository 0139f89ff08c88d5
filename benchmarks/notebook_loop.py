"""The notebook's way to train, written down from its description, to be timed beside ours.

What slows it down is kept: a PNG is opened for each item, transforms work on single images, the
whole net is differentiated though only its head learns, and test is passed in every epoch. What it
computes for display alone (bars of progress, figures) is left out, so it is rather too fast here.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torchvision
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CyclicLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

BATCH = 32
"""Images in a batch of any phase."""

EPOCHS = 30
"""Epochs of its training."""

RATES = (1e-6, 0.006)
"""Lowest and highest learning rate, which the notebook read off its curve."""

HALF_CYCLE = 30
"""Batches from the lowest rate to the highest; the notebook passes twice its epochs as a cycle."""

PHASES = ("train", "dev", "test")

Item = dict[str, Any]
Learning = Literal["head", "everything"]


class PatchDataset(Dataset[Item]):
    """Patches that are opened, converted and transformed one by one.

    Args:
        table: Patches with patient_id, x, y, target and path.
        root: Folder that the paths start from.
        transform: Makes a float32 tensor [3, 50, 50] of an image.
    """

    def __init__(
        self, table: pd.DataFrame, root: Path, transform: Callable[[Image.Image], Tensor]
    ) -> None:
        # Columns of text were objects in the pandas of the notebook, which are quick to look up.
        self.table = table.astype({"patient_id": object, "path": object})
        self.root = root
        self.transform = transform

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Item:
        """The image of a patch with its label, patient and place."""
        table = self.table
        image = Image.open(self.root / table["path"].to_numpy()[number]).convert("RGB")
        return {
            "image": self.transform(image),
            "label": np.int64(table["target"].to_numpy()[number]),
            "patient_id": table["patient_id"].to_numpy()[number],
            "x": table["x"].to_numpy()[number],
            "y": table["y"].to_numpy()[number],
        }


def transform_of(phase: str) -> Callable[[Image.Image], Tensor]:
    """What happens to each image: train is flipped by chance, all are resized and normalised."""
    flips = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
    steps: Callable[[Image.Image], Tensor] = transforms.Compose(
        [
            transforms.Resize((50, 50)),
            *(flips if phase == "train" else []),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return steps


def loader_of(table: pd.DataFrame, root: Path, phase: str) -> DataLoader[Item]:
    """Batches of a phase in this process; train is shuffled and loses its incomplete last batch."""
    training = phase == "train"
    return DataLoader(
        PatchDataset(table, root, transform_of(phase)),
        batch_size=BATCH,
        shuffle=training,
        drop_last=training,
        num_workers=0,
    )


def build_network() -> nn.Module:
    """ResNet18 without pretrained weights, whose last layer is the head 512, 512, 256, 2."""
    network: nn.Module = torchvision.models.resnet18(weights=None)
    network.fc = nn.Sequential(
        nn.Linear(512, 512),
        nn.ReLU(),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.BatchNorm1d(256),
        nn.Dropout(0.5),
        nn.Linear(256, 2),
    )
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(layer.bias, 0.01)
    return network


class NotebookLoop:
    """Network, loss, optimizer, scheduler and loaders of the notebook, on the CPU.

    Args:
        table: Patches with patient_id, x, y, target, path and split.
        root: Folder that the paths start from.
        learning: What the optimizer gets: the ``"head"``, as in the notebook, or ``"everything"``.

    Attributes:
        losses: Mean loss of each epoch so far by phase, as the notebook records it.
    """

    def __init__(self, table: pd.DataFrame, root: Path, *, learning: Learning = "head") -> None:
        parts = {phase: table[table["split"] == phase] for phase in PHASES}
        self.loaders = {phase: loader_of(part, root, phase) for phase, part in parts.items()}
        self.sizes = {phase: len(part) for phase, part in parts.items()}
        self.network = build_network()
        targets = parts["train"]["target"].to_numpy()
        weights = compute_class_weight("balanced", classes=np.unique(targets), y=targets)
        self.criterion = nn.CrossEntropyLoss(weight=torch.FloatTensor(weights))
        learns = self.network.fc if learning == "head" else self.network
        assert isinstance(learns, nn.Module)
        self.optimizer = SGD(learns.parameters(), lr=0.01)
        self.scheduler = CyclicLR(
            self.optimizer,
            base_lr=RATES[0],
            max_lr=RATES[1],
            step_size_up=HALF_CYCLE,
            step_size_down=HALF_CYCLE,
            mode="triangular",
        )
        self.losses: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.running: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self._best_accuracy = 0.0
        self._best_weights = copy.deepcopy(self.network.state_dict())

    def epochs(self, number: int) -> dict[str, float]:
        """Train, dev and test in every epoch, then take the weights that were best on dev.

        Returns:
            Seconds by phase, of all epochs together.
        """
        seconds = dict.fromkeys(PHASES, 0.0)
        for _ in range(number):
            for phase in PHASES:
                began = time.perf_counter()
                self.run_phase(phase)
                seconds[phase] += time.perf_counter() - began
        self.network.load_state_dict(self._best_weights)
        return seconds

    def run_phase(self, phase: str) -> None:
        """Pass a phase once, with the statistics that the notebook keeps of each batch."""
        self.network.train(phase == "train")
        loss_sum, right, seen = 0.0, torch.tensor(0), 0
        for batch in self.loaders[phase]:
            outputs, labels, loss = self.step(batch, phase)
            predicted = torch.max(outputs, 1)[1]
            loss_sum += loss.item() * len(labels)
            right = right + torch.sum(predicted == labels)
            seen += len(labels)
            self.running[phase].append(loss_sum / seen)
            _shown(loss_sum / seen, right.double() / seen)
        self.losses[phase].append(loss_sum / self.sizes[phase])
        accuracy = float(right.double() / self.sizes[phase])
        if phase == "dev" and accuracy > self._best_accuracy:
            self._best_accuracy = accuracy
            self._best_weights = copy.deepcopy(self.network.state_dict())

    def step(self, batch: Item, phase: str) -> tuple[Tensor, Tensor, Tensor]:
        """Pass a batch, and learn from it in train.

        Returns:
            Logits float32 [B, 2], labels int64 [B] and loss.
        """
        images, labels = batch["image"].to(dtype=torch.float), batch["label"].to(dtype=torch.long)
        self.optimizer.zero_grad()
        with torch.set_grad_enabled(phase == "train"):
            outputs = self.network(images)
            loss = self.criterion(outputs, labels)
            if phase == "train":
                # Reaches the backbone too, whose gradients are added up and never used.
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
        return outputs, labels, loss


def _shown(loss: float, accuracy: Tensor) -> dict[str, str]:
    """What the notebook formats for its bar of progress after each batch."""
    return {"loss": f"{loss:.4f}", "accuracy": f"{accuracy:.4f}"}


def decode_one_by_one(root: Path, paths: list[str]) -> np.ndarray:
    """Decode files in this process by Pillow alone, uint8 [N, 50, 50, 3]; the rest is white."""
    pixels = np.full((len(paths), 50, 50, 3), 255, dtype=np.uint8)
    for number, path in enumerate(paths):
        image = np.asarray(Image.open(root / path).convert("RGB"))
        pixels[number, : image.shape[0], : image.shape[1]] = image
    return pixels
