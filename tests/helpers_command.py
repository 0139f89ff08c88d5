"""Commands as a user types them, in this process, and runs of idc-train on a small data set."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from idc_lightning.train import main as train

SMALL = (
    "data.patients=12",
    "data.patches=240",
    "data.batch_size=32",
    "trainer=cpu",
    "trainer.epochs=1",
    "trainer.log_every_n_steps=1",
    "model.backbone=shufflenet_v2_x0_5",
    "model.head.hidden=[16]",
    "report=none",
)
"""A run of seconds, without figures."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, what it printed, and the run folders that it left."""

    code: int
    out: str
    err: str
    left: list[str]


@dataclass(frozen=True)
class Command:
    """A command, ``idc-train`` unless another is given, in a folder of its own."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch
    main: Callable[[], None] = train

    def __call__(self, *overrides: str) -> Ended:
        """Run the command with these overrides."""
        self.patch.chdir(self.folder)
        self.patch.setattr(sys, "argv", ["idc-command", *overrides])
        self.capture.readouterr()
        code = 0
        try:
            self.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        printed = self.capture.readouterr()
        outputs = self.folder / "outputs"
        runs = sorted(path.name for path in outputs.iterdir()) if outputs.exists() else []
        return Ended(code, printed.out, printed.err, runs)
