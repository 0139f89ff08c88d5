"""Every file that docs/notebook.md names is written by the command that it names."""

import re
from pathlib import Path

import pytest
from helpers_command import SMALL, Command

from idc_lightning.conf_folder import conf_folder, keys
from idc_lightning.explore import main as explore

DOCUMENT = (conf_folder().parent / "docs" / "notebook.md").read_text(encoding="utf-8")
EXPLORING, TRAINING = DOCUMENT.split("## Workflow")
FILE = re.compile(r"`((?:figures|predictions|checkpoints)/[^`]+|[a-z_]+\.(?:csv|json|html))`")


def missing(text: str, folder: Path) -> list[str]:
    named = FILE.findall(text)
    assert len(named) > 8
    return [name for name in named if not list(folder.glob(name))]


def test_exploring_writes_what_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(tmp_path, capsys, monkeypatch, explore)
    ended = command("data.patients=12", "data.patches=480", "hydra.run.dir=out")
    assert ended.code == 0, ended.err
    assert missing(EXPLORING, tmp_path / "out") == []


def test_training_writes_what_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [value for value in SMALL if value != "report=none"]
    command = Command(tmp_path, capsys, monkeypatch)
    ended = command(
        "experiment=notebook", *small, "model.weights=none", "trainer.epochs=2", "hydra.run.dir=out"
    )
    assert ended.code == 0, ended.err
    assert missing(TRAINING, tmp_path / "out") == []


def test_each_key_that_is_named_exists() -> None:
    known = {*keys("train"), *keys("explore")}
    named = re.findall(r"`((?:[a-z_]+\.)+[a-z_]+)(?:=[^`]*)?`", DOCUMENT)
    named = [name for name in named if not re.search(r"\.(py|csv|json|html|yaml|fc|dir)$", name)]
    assert len(named) > 10
    assert [name for name in named if name not in known] == []
