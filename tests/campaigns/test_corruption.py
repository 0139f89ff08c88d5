"""One changed or missing byte in each kind of file that is written and read again.

It must be told, with the file or its folder, or change nothing: what comes out is the same.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from helpers_campaign import Campaign, error_of, result, run
from helpers_command import SMALL

pytestmark = pytest.mark.campaign

TRIALS = 12
"""Of each file."""

FROZEN = (*SMALL, "model.freeze_backbone=true", "data.augment.stain_jitter=0", "results.draws=20")
WHOLE = (*SMALL, "results.draws=20", "split=file", "split.path=splits.csv")


class Read(NamedTuple):
    """A command that reads files, and where it leaves what is compared."""

    command: str
    words: tuple[str, ...]
    left: str


READERS = {
    "cache": Read("train", (*FROZEN, "cache=cache", "hydra.run.dir=again"), "again/results.json"),
    "split": Read("train", (*WHOLE, "cache=cache", "hydra.run.dir=again"), "again/results.json"),
    "resume": Read("train", ("resume=unfinished",), "unfinished/results.json"),
    "evaluate": Read(
        "evaluate",
        ("run=whole", "report=none", "results.draws=20", "cache=cache", "hydra.run.dir=again"),
        "again/results.json",
    ),
    "compare": Read("compare", ("sweep", "results.draws=20"), "sweep/leaderboard.csv"),
}

FILES = {
    "cache/stores/*/pixels.npy": "cache",
    "cache/stores/*/checksums.npy": "cache",
    "cache/stores/*/table.csv": "cache",
    "cache/stores/*/pack.json": "cache",
    "cache/features/*/view-0.npy": "cache",
    "cache/features/*/checksums.npy": "cache",
    "cache/features/*/features.json": "cache",
    "splits.csv": "split",
    "whole/checkpoints/best.ckpt": "evaluate",
    "unfinished/checkpoints/best.ckpt": "resume",
    "unfinished/checkpoints/last.ckpt": "resume",
    "unfinished/.hydra/config.yaml": "resume",
    "unfinished/.hydra/hydra.yaml": "resume",
    "unfinished/.hydra/overrides.yaml": "resume",
    "unfinished/metrics.csv": "resume",
    "sweep/0/results.json": "compare",
    "sweep/0/predictions/dev.csv": "compare",
    "sweep/0/predictions/test.csv": "compare",
    "sweep/0/.hydra/config.yaml": "compare",
    "sweep/0/.hydra/hydra.yaml": "compare",
    "sweep/0/.hydra/overrides.yaml": "compare",
    "sweep/multirun.yaml": "compare",
}
"""Each kind of file, and who reads it."""


def outcome(path: Path) -> Any:
    """What a command left, without what differs each time."""
    if path.suffix == ".csv":
        table = pd.read_csv(path).drop(columns=["seconds"])
        return table.fillna("").astype(str).to_dict("records")
    return result(path.parent)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a whole run, one that has trained only, and a sweep."""
    folder = tmp_path_factory.mktemp("made")

    def done(*words: str) -> None:
        ended = run("train", *words, "cache=cache", within=folder)
        assert ended.returncode == 0, ended.stderr

    done(*FROZEN, "hydra.run.dir=frozen")
    shutil.copy2(folder / "frozen" / "splits.csv", folder)
    done(*WHOLE, "hydra.run.dir=whole")
    shutil.copytree(folder / "whole", folder / "unfinished")
    (folder / "unfinished" / "results.json").unlink()
    done("-m", *FROZEN, "model.head.dropout=0.5,0", "hydra.sweep.dir=sweep")
    return folder


@pytest.fixture(scope="module")
def undisturbed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command leaves of whole files."""
    found = {}
    for name, reader in READERS.items():
        folder = tmp_path_factory.mktemp(name) / "copy"
        shutil.copytree(made, folder)
        assert run(reader.command, *reader.words, within=folder).returncode == 0
        found[name] = outcome(folder / reader.left)
    return found


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One bit changed, one byte missing, or all from a byte on."""
    place = int(rng.integers(len(content)))
    kind = rng.choice(["changed", "missing", "cut"])
    if kind == "changed":
        changed = content[place] ^ (1 << int(rng.integers(8)))
        return content[:place] + bytes([changed]) + content[place + 1 :]
    return content[:place] + (content[place + 1 :] if kind == "missing" else b"")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_byte_is_told_or_changes_nothing(
    name: str,
    made: Path,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    campaign: Campaign,
) -> None:
    reader = READERS[FILES[name]]
    rng = campaign.rng(name)
    for trial in range(TRIALS):
        folder = tmp_path / str(trial)
        shutil.copytree(made, folder)
        (file,) = folder.glob(name)
        file.write_bytes(damaged(file.read_bytes(), rng))
        ended = run(reader.command, *reader.words, within=folder)
        if ended.returncode == 0:
            assert outcome(folder / reader.left) == undisturbed[FILES[name]]
            campaign.count(name, "harmless or mended")
        else:
            line = error_of(ended)
            assert file.name in line or file.parent.name in line or str(folder) in line
            campaign.count(name, "told")
        shutil.rmtree(folder)
