"""What a full disk refuses is told in one line, with the place; ``/dev/full`` is such a disk."""

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from helpers_command import SMALL, Command
from helpers_model import told

from idc_lightning import cli
from idc_lightning.errors import IDCError
from idc_lightning.loggers import Table
from idc_lightning.torch_files import read_checkpoint, save, write_checkpoint

FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")


def no_room(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_checkpoint_says_what_the_disk_refused(tmp_path: Path) -> None:
    content = {"state_dict": {"a": torch.rand(100_000)}}
    with pytest.raises(OSError, match="No space left on device"):
        save(content, FULL)
    write_checkpoint(content, tmp_path / "whole.ckpt")
    found = read_checkpoint(tmp_path / "whole.ckpt")["state_dict"]
    assert torch.equal(found["a"], content["state_dict"]["a"])


def test_a_checkpoint_that_has_no_room_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint({"a": 1}, path)
    monkeypatch.setattr("idc_lightning.torch_files.save", no_room)
    with told(f"can't write {path}: No space left on device"):
        write_checkpoint({"a": 2}, path)
    assert read_checkpoint(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_metrics_have_no_room(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").symlink_to(FULL)
    table = Table(tmp_path, first_step=0)
    table.log_metrics({"loss": 1.0}, step=0)
    with told(f"can't write {tmp_path}/metrics.csv: No space left on device"):
        table.save()


def test_hydras_own_files_have_no_room(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hydra.core.utils._save_config", no_room)
        ended = command(*SMALL, "hydra.run.dir=run")
        assert ended.code == 1
        assert ended.err == "error: can't write below run: No space left on device\n"
        assert not (command.folder / "run").exists()
        sweep = ("-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep")
        ended = command(*sweep)
        assert ended.code == 1
        assert ended.err.startswith("error: can't write below sweep: No space left on device (when")
    assert command(*sweep, "sweep.resume=true").code == 0
    assert (command.folder / "sweep" / "1" / "results.json").is_file()


def test_a_file_without_a_name_is_told_by_its_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("idc_lightning.train.judge_splits", no_room)
        ended = command(*SMALL, "hydra.run.dir=run")
    assert ended.code == 1
    said = f"error: can't write below {command.folder}/run: No space left on device; "
    assert ended.err.startswith(said)
    assert ended.err.endswith(" are left\n")
    assert (command.folder / "run.failed" / "error.txt").is_file()


def test_the_first_reason_is_told_though_there_is_no_room_for_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: str) -> NoReturn:
        raise IDCError(f"can't write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("idc_lightning.train.judge_splits", no_room)
        patch.setattr(cli, "write_text", refuse)
        ended = command(*SMALL, "hydra.run.dir=run")
    assert "can't write below" in ended.err
    assert "error.txt" not in ended.err
    assert command("resume=run.failed").code == 0
    assert (command.folder / "run" / "results.json").is_file()
