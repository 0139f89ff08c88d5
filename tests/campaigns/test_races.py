"""Processes that want the same folder at the same time, or lose theirs while they run."""

import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from helpers_campaign import Campaign, error_of, result, run
from helpers_command import SMALL

pytestmark = pytest.mark.campaign

TOGETHER = 8
"""Processes that start at once."""

ROUNDS = 3

TRIALS = 12
"""Moments at which a cache is deleted."""

WORDS = (*SMALL, "results.draws=20")
FROZEN = (*WORDS, "model.freeze_backbone=true", "data.augment.stain_jitter=0")


def together(folder: Path, commands: Sequence[tuple[str, ...]]) -> list[CompletedProcess[str]]:
    """Run commands of idc-train at the same time."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(lambda words: run("train", *words, within=folder), commands))


@pytest.mark.parametrize("words", [WORDS, FROZEN], ids=["pixels", "features"])
def test_many_processes_on_a_cold_cache(
    words: tuple[str, ...], tmp_path: Path, campaign: Campaign
) -> None:
    assert run("train", *words, "cache=own", "hydra.run.dir=alone", within=tmp_path).returncode == 0
    alone = result(tmp_path / "alone")
    for number in range(ROUNDS):
        cache = tmp_path / f"cache{number}"
        folders = [f"{number}-{each}" for each in range(TOGETHER)]
        commands = [(*words, f"cache={cache}", f"hydra.run.dir={name}") for name in folders]
        for ended, folder in zip(together(tmp_path, commands), folders, strict=True):
            assert ended.returncode == 0, ended.stderr
            assert result(tmp_path / folder) == alone
            campaign.count(f"{TOGETHER} processes on a cold cache", "same result")
        assert len(list((cache / "stores").glob("*/pixels.npy"))) == 1
        assert len(list((cache / "features").glob("*/features.json"))) == (words == FROZEN)


def test_two_sweeps_into_one_folder(tmp_path: Path, campaign: Campaign) -> None:
    part = "two sweeps into one folder"
    for number in range(ROUNDS):
        sweep = ("-m", *WORDS, "cache=cache", "seed=0,1", f"hydra.sweep.dir={number}")
        ended = together(tmp_path, [sweep, sweep])
        first, second = sorted(ended, key=lambda each: each.returncode)
        assert first.returncode == 0, first.stderr
        line = error_of(second)
        assert str(number) in line
        campaign.count(part, "one ran, the other was told")
        jobs = [result(tmp_path / str(number) / job) for job in "01"]
        assert [job["config_hash"] for job in jobs] == [
            result(tmp_path / "0" / job)["config_hash"] for job in "01"
        ]
        assert (tmp_path / str(number) / "leaderboard.csv").is_file()


def test_two_runs_into_one_folder(tmp_path: Path, campaign: Campaign) -> None:
    for number in range(ROUNDS):
        words = (*WORDS, "cache=cache", f"hydra.run.dir={number}")
        ended = together(tmp_path, [words, words])
        first, second = sorted(ended, key=lambda each: each.returncode)
        assert first.returncode == 0, first.stderr
        assert f"{number} " in error_of(second)
        assert result(tmp_path / str(number)) == result(tmp_path / "0")
        campaign.count("two runs into one folder", "one ran, the other was told")


@pytest.mark.parametrize("words", [WORDS, FROZEN], ids=["pixels", "features"])
def test_a_cache_that_is_deleted_meanwhile(
    words: tuple[str, ...], tmp_path: Path, campaign: Campaign
) -> None:
    begun = time.monotonic()
    assert run("train", *words, "cache=own", "hydra.run.dir=alone", within=tmp_path).returncode == 0
    lasts, alone = time.monotonic() - begun, result(tmp_path / "alone")
    rng = campaign.rng(f"deleted {words[-1]}")
    for number in range(TRIALS):
        cache, folder = tmp_path / f"cache{number}", f"hydra.run.dir={number}"
        deleting = threading.Timer(
            rng.uniform(0.1, 1) * lasts, shutil.rmtree, (cache,), {"ignore_errors": True}
        )
        deleting.start()
        ended = run("train", *words, f"cache={cache}", folder, within=tmp_path)
        deleting.join()
        if ended.returncode:
            first = ended.stderr.splitlines()[0]
            print(first)
            assert first.startswith("error: ")
            assert str(cache) in first
            campaign.count("cache deleted under a run", "told")
        else:
            assert result(tmp_path / str(number)) == alone
            campaign.count("cache deleted under a run", "same result")
