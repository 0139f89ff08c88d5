"""Disks that are full, become full at some moment, or can't be written.

One line names the place, nothing is half-written, and with more room the work is done as if nothing
had happened.
"""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers_campaign import Campaign, error_of, result, run
from helpers_command import SMALL

from idc_lightning.torch_files import read_checkpoint

pytestmark = pytest.mark.campaign

TRIALS = 12
"""Moments at which a disk is full, for each part."""

WORDS = (*SMALL, "results.draws=20", "callbacks.checkpoint.last_every=0", "trainer.epochs=3")
FROZEN = (*WORDS, "model.freeze_backbone=true", "data.augment.stain_jitter=0")
REPORT = (*WORDS[: WORDS.index("report=none")], *WORDS[WORDS.index("report=none") + 1 :])

ROOM = 2**30


class Disk:
    """A small disk of its own, in memory.

    Args:
        place: Where it is mounted.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self._mount("size=1g")

    def _mount(self, options: str, *words: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, *words, "tmpfs", str(self.place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a disk (root)")

    def resize(self, size: int) -> None:
        """Give it so many bytes in all."""
        self._mount(f"remount,rw,size={max(-(-size // 4096), 1) * 4096}")

    def protect(self) -> None:
        """Let nothing be written."""
        self._mount("remount,ro")

    def fill(self) -> None:
        """Leave no byte."""
        with (self.place / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def used(self) -> int:
        """Bytes that its files take."""
        blocks = subprocess.check_output(["df", "-B1", "--output=used", str(self.place)], text=True)
        return int(blocks.split()[-1])

    def empty(self) -> None:
        """Remove all that is on it, and give it room."""
        subprocess.check_call(["umount", str(self.place)])
        self._mount(f"size={ROOM}")

    def names(self) -> list[str]:
        """Files that are on it."""
        return sorted(str(path.relative_to(self.place)) for path in self.place.rglob("*"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk whose size can be chosen."""
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", "--lazy", str(made.place)], check=True)


def assert_no_part_is_left(disk: Disk) -> None:
    """What isn't whole was removed, not left to fill the disk."""
    assert not [name for name in disk.names() if name.endswith(".partial")]


@pytest.mark.parametrize("words", [WORDS, FROZEN], ids=["pixels", "features"])
def test_a_cache_without_room(
    words: tuple[str, ...],
    disk: Disk,
    tmp_path: Path,
    campaign: Campaign,
    request: pytest.FixtureRequest,
) -> None:
    part = f"full disk, cache of {request.node.callspec.id}"
    cache = f"cache={disk.place}/cache"
    assert run("train", *words, cache, "hydra.run.dir=whole", within=tmp_path).returncode == 0
    whole, needs = result(tmp_path / "whole"), disk.used()
    rng = campaign.rng(part)
    for trial in range(TRIALS):
        disk.empty()
        disk.resize(int(rng.integers(needs)))
        folder = f"hydra.run.dir={trial}"
        ended = run("train", *words, cache, folder, within=tmp_path)
        if ended.returncode:
            assert str(disk.place) in error_of(ended)
            assert_no_part_is_left(disk)
            disk.resize(ROOM)
            ended = run("train", *words, cache, f"{folder}_again", within=tmp_path)
            assert ended.returncode == 0, ended.stderr
            assert result(tmp_path / f"{trial}_again") == whole
            campaign.count(part, "told")
        else:
            assert result(tmp_path / str(trial)) == whole
            campaign.count(part, "enough")


@pytest.mark.parametrize("words", [WORDS, REPORT], ids=["training", "report"])
def test_a_run_folder_without_room(
    words: tuple[str, ...],
    disk: Disk,
    tmp_path: Path,
    campaign: Campaign,
    request: pytest.FixtureRequest,
) -> None:
    part = f"full disk, run folder in {request.node.callspec.id}"
    folder = disk.place / "run"
    command = (*words, "cache=cache", f"hydra.run.dir={folder}")
    assert run("train", *command, within=tmp_path).returncode == 0  # and fill the cache
    disk.empty()
    begun = time.monotonic()
    assert run("train", *command, within=tmp_path).returncode == 0
    lasts = time.monotonic() - begun
    whole, needs, names = result(folder), disk.used(), disk.names()
    rng = campaign.rng(part)
    for _ in range(TRIALS):
        disk.empty()
        disk.resize(2 * needs)
        filling = threading.Timer(rng.uniform(0.1, 1) * lasts, disk.fill)
        filling.start()
        ended = run("train", *command, within=tmp_path)
        filling.cancel()
        if ended.returncode == 0:
            campaign.count(part, "enough")
            continue
        line = error_of(ended)
        print(line)
        assert str(disk.place) in line
        assert_no_part_is_left(disk)
        for checkpoint in disk.place.rglob("*.ckpt"):
            read_checkpoint(checkpoint)
        disk.resize(ROOM)
        left = next(disk.place.glob("run*"), folder)
        goes_on = (left / ".hydra" / "config.yaml").is_file()
        ended = run("train", *((f"resume={left}",) if goes_on else command), within=tmp_path)
        assert ended.returncode == 0, ended.stderr
        assert result(folder) == whole
        assert {name for name in names if "tfevents" not in name} <= set(disk.names())
        campaign.count(part, "told, then went on" if goes_on else "told, then began anew")


def test_places_that_cannot_be_written(disk: Disk, tmp_path: Path, campaign: Campaign) -> None:
    part = "read-only places"
    cache, folder = f"cache={disk.place}/cache", f"hydra.run.dir={disk.place}/run"
    assert run("prepare", *WORDS[:2], cache, within=tmp_path).returncode == 0
    assert run("train", *WORDS, "cache=cache", folder, within=tmp_path).returncode == 0
    before = disk.names()
    disk.protect()
    # A cache that is whole is only read.
    assert run("train", *WORDS, cache, "hydra.run.dir=fine", within=tmp_path).returncode == 0
    new_run = f"hydra.run.dir={disk.place}/other"
    refused = [
        run("train", *FROZEN, cache, "hydra.run.dir=features", within=tmp_path),
        run("train", *WORDS, "data.seed=1", cache, "hydra.run.dir=pixels", within=tmp_path),
        run("train", *WORDS, "cache=cache", new_run, within=tmp_path),
        run("train", "-m", *WORDS, f"hydra.sweep.dir={disk.place}/sweep", within=tmp_path),
        run("train", f"resume={disk.place}/run", "trainer.epochs=9", within=tmp_path),
        run("prepare", "clean=true", cache, within=tmp_path),
        run("prepare", "data.seed=2", *WORDS[:2], cache, within=tmp_path),
        run("compare", str(disk.place), within=tmp_path),
        run("explore", *WORDS[:2], new_run, within=tmp_path),
        run("evaluate", f"run={disk.place}/run", "report=none", new_run, within=tmp_path),
    ]
    for ended in refused:
        print(line := error_of(ended))
        assert str(disk.place) in line
        campaign.count(part, "told")
    assert disk.names() == before
    again = run(
        "evaluate", f"run={disk.place}/run", "report=none", "cache=cache", "hydra.run.dir=judged",
        within=tmp_path,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    campaign.count(part, "only read")
