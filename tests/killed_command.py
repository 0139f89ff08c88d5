"""``idc-train`` that kills itself by a signal at a chosen moment: ``python killed_command.py ...``.

The environment says when and how: ``KILL_AT`` is the number of a moment, ``KILL_BY`` the name of a
signal (SIGKILL unless given). Moments are the calls that a run makes when it learns, judges, logs
and writes files, before and after them, and in the middle of a file. At the end ``moments: n`` is
printed.
"""

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from idc_lightning import loggers, torch_files
from idc_lightning.classifier import IDCClassifier
from idc_lightning.train import main

AT = int(os.environ.get("KILL_AT", "-1"))
BY = signal.Signals[os.environ.get("KILL_BY", "SIGKILL")]
passed = 0


def moment() -> None:
    """Count a moment; at the chosen one the signal comes."""
    global passed
    if passed == AT:
        print(f"signal at {time.time()}", flush=True)
        os.kill(os.getpid(), BY)
    passed += 1


def watched(owner: Any, name: str) -> None:
    """Count a moment before and after each call."""
    call: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(call)
    def counted(*args: Any, **named: Any) -> Any:
        moment()
        result = call(*args, **named)
        moment()
        return result

    setattr(owner, name, counted)


def half_written(save: Callable[..., None]) -> Callable[..., None]:
    """Count a moment when half of a checkpoint lies on the disk."""

    def counted(content: Any, path: Path) -> None:
        moment()
        save(content, path)
        whole = path.with_name("whole")
        shutil.copy(path, whole)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        moment()
        whole.replace(path)

    return counted


torch_files.save = half_written(torch_files.save)
watched(Path, "replace")
for step in ("training_step", "validation_step", "test_step", "_close"):
    watched(IDCClassifier, step)
watched(loggers._Rows, "save")
watched(SummaryWriter, "flush")
watched(TensorBoardLogger, "log_metrics")

if __name__ == "__main__":
    try:
        main()
    finally:
        print(f"moments: {passed}", flush=True)
