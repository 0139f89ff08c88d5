"""``idc-prepare`` from the command line."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_command import Command, Ended
from helpers_data import make_patches, pixels_of, place_of, tissue

from idc_lightning.data import pack
from idc_lightning.files import locked, partial_of
from idc_lightning.prepare import main

PATCHES = tissue({"1": (2, 1), "2": (1, 2), "3": (2, 0)})

Run = Callable[..., Ended]


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    make_patches(tmp_path / "data", PATCHES)
    return Command(tmp_path, capsys, monkeypatch, main)


@pytest.fixture
def run(command: Command) -> Run:
    """Prepare ``data`` in ``cache``; the command must end well."""

    numbers = itertools.count()

    def prepared(*overrides: str) -> Ended:
        data = ("data=idc", f"data.root={command.folder}/data", f"hydra.run.dir={next(numbers)}")
        ended = command(*data, f"cache={command.folder}/cache", *overrides)
        assert ended.code == 0, ended.err
        assert ended.err == ""
        return ended

    return prepared


def stores(folder: Path) -> list[Path]:
    return list((folder / "cache" / "stores").glob("[!.]*"))


def test_all_patches_are_packed_and_the_store_is_named(tmp_path: Path, run: Run) -> None:
    ended = run()
    (store,) = stores(tmp_path)
    pixels = np.load(store / "pixels.npy")
    paths = pd.read_csv(store / "table.csv")["path"].tolist()
    by_path = {f"{p[0]}/{p[3]}/{place_of(tmp_path, p).name}": pixels_of(p) for p in PATCHES}
    assert sorted(by_path) == paths
    np.testing.assert_array_equal(pixels, [by_path[path] for path in paths])
    assert "packing 8 patches once" in ended.out
    assert f"store: 8 patches of {tmp_path}/data, 1 MB in {store}\n" in ended.out
    assert (tmp_path / "0" / "health.csv").is_file()


def test_what_is_wrong_is_said_and_listed(tmp_path: Path, run: Run) -> None:
    place_of(tmp_path / "data", PATCHES[0]).write_bytes(b"text")
    other = place_of(tmp_path / "data", ("2", 1, 1, 1))
    other.write_bytes(place_of(tmp_path / "data", ("2", 1, 1, 0)).read_bytes())
    (tmp_path / "data" / "3" / "notes.txt").write_text("mine")
    ended = run()
    health = pd.read_csv(tmp_path / "0" / "health.csv")
    assert health["kind"].value_counts()[["broken", "both labels", "left out"]].tolist() == [
        1,
        2,
        1,
    ]
    assert "idc-train will stop at files that can't be read unless data.on_broken=skip" in ended.out
    assert "idc-train will stop at positions with both labels" in ended.out
    assert "left out 1 files that are no patches" in ended.out


def test_a_second_call_checks_all_pixels(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    (store,) = stores(tmp_path)
    whole = (store / "pixels.npy").read_bytes()
    spoiled = bytearray(whole)
    spoiled[5000] ^= 1
    (store / "pixels.npy").write_bytes(spoiled)
    monkeypatch.setattr(pack, "LOOKED_AT", 0)
    assert "packing again, since its pixels were changed" in run().out
    assert (store / "pixels.npy").read_bytes() == whole
    assert "packing" not in run().out


def test_stores_of_other_data_are_listed_with_their_place(tmp_path: Path, run: Run) -> None:
    run()
    make_patches(tmp_path / "other", PATCHES[:4])
    ended = run(f"data.root={tmp_path}/other")
    assert f"\nstore: 4 patches of {tmp_path}/other, 1 MB in {tmp_path}/cache/stores/" in ended.out
    assert f"\nalso stored: 8 patches of {tmp_path}/data, 1 MB in " in ended.out
    assert "clean=true" in ended.out


@pytest.mark.parametrize("content", [None, "", "[1]", "{}"])
def test_a_damaged_store_of_other_data_is_listed_as_such(
    tmp_path: Path, run: Run, content: str | None
) -> None:
    other = tmp_path / "cache" / "stores" / "abc"
    other.mkdir(parents=True)
    (other / "pixels.npy").write_bytes(b"x")
    if content is not None:
        (other / "pack.json").write_text(content)
    assert f"\nalso stored: 1 MB in {other}, which is damaged\n" in run().out


def test_cleaning_removes_stores_and_features_and_nothing_else(
    tmp_path: Path, run: Run, command: Command
) -> None:
    run()
    cache = tmp_path / "cache"
    for folder in ("features/abc", "stores/.abc.partial", "demo/kept", "archives/kept"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "file").write_bytes(b"x" * 1000)
    ended = command("clean=true", f"cache={cache}", "hydra.run.dir=first")
    assert ended.code == 0
    assert f"removed 3 stores and features from {cache}: 1 MB" in ended.out
    left = {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.stat().st_size}
    assert left == {"demo/kept/file", "archives/kept/file"}
    assert (
        f"nothing to remove in {cache}"
        in command("clean=true", f"cache={cache}", "hydra.run.dir=again").out
    )
    assert "packing 8 patches once" in run().out


def test_data_is_not_named_for_cleaning(command: Command) -> None:
    ended = command("clean=true", "data=idc")
    assert ended.code == 1
    assert ended.err == (
        "error: data has no effect, since clean=true empties the cache: leave it out\n"
    )


@pytest.mark.parametrize(
    "idle", ["data.sample=2", "data.edge_patches=drop", "data.augment.turns=false"]
)
def test_what_packing_leaves_alone_is_not_named(command: Command, idle: str) -> None:
    ended = command("data=idc", "data.root=data", idle)
    assert ended.code == 1
    assert f"{idle.partition('=')[0]} has no effect on idc-prepare, which packs all" in ended.err


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_cleaned_cache_keeps_what_a_link_leads_to(tmp_path: Path, command: Command) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mine")
    (tmp_path / "cache" / "stores" / "abc").mkdir(parents=True)
    (tmp_path / "cache" / "stores" / "abc" / "link").symlink_to(tmp_path / "elsewhere")
    assert command("clean=true", f"cache={tmp_path}/cache").code == 0
    assert (tmp_path / "elsewhere" / "file").exists()


def test_cleaning_removes_a_store_that_became_whole_while_it_waited(
    tmp_path: Path, command: Command
) -> None:
    whole = tmp_path / "cache" / "stores" / "abc"
    partial = partial_of(whole)
    partial.mkdir(parents=True)

    def cleaned() -> None:
        said.append(subprocess.check_output(start, cwd=tmp_path, text=True))

    said: list[str] = []
    start = [sys.executable, "-m", "idc_lightning.prepare", "clean=true", "cache=cache"]
    with locked(whole):
        thread = threading.Thread(target=cleaned)
        thread.start()
        until = time.monotonic() + 60
        while not list((tmp_path / "outputs").glob("*")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)  # it waits for the lock now
        partial.rename(whole)
    thread.join(timeout=60)
    assert "removed 1 stores and features" in said[0]
    assert not whole.exists()


def test_features_are_listed_by_what_they_take(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "cache" / "features" / "abc"
    folder.mkdir(parents=True)
    with (folder / "view-0.npy").open("wb") as file:
        file.write(b"x" * 3_000_000)
        file.truncate(3_000_000_000)  # sparse
    said = run().out
    assert f"\nfeatures of frozen backbones: 3 MB in {tmp_path}/cache/features\n" in said
    assert said.count("idc-prepare clean=true removes all stores and features") == 1
