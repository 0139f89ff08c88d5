"""The cache of features: damage, kills in the middle, several processes at once."""

import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_model import told
from torch import Tensor

from idc_lightning.data.features import FeatureCache, Features, stored_dtype
from idc_lightning.data.views import VIEWS

PATCHES, WIDTH = 40, 6
KINDS = [torch.float32, torch.bfloat16, torch.float16]
ALL = np.arange(PATCHES)


def cache_in(folder: Path, dtype: torch.dtype = torch.float32) -> FeatureCache:
    return FeatureCache(folder, patches=PATCHES, width=WIDTH, dtype=dtype)


def values(view: int, rows: np.ndarray = ALL) -> Tensor:
    """Features that differ from patch to patch and view to view, exact in all precisions."""
    first = torch.from_numpy(rows.astype(np.float32))[:, None] + 64 * view
    return first / 512 * torch.tensor([1, -1, 2, -2, 4, 0.5])


def fill(cache: FeatureCache, *views: int, size: int = 16) -> None:
    """Compute what is missing, as a run does."""
    with cache.filling():
        for view in views:
            rows = cache.missing(view, ALL)
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                cache.write(view, part, values(view, part))


def read_all(cache: FeatureCache, *views: int) -> dict[int, Tensor]:
    features = cache.open(list(views), ALL)
    rows = torch.arange(PATCHES)
    return {view: features.read(rows, torch.full((PATCHES,), view)) for view in views}


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_each_patch_gets_the_features_of_its_own_view(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = cache_in(tmp_path / "cache", dtype)
    fill(cache, *range(VIEWS))
    places = np.random.default_rng(0).permutation(PATCHES)[:30]
    features: Features = cache_in(tmp_path / "cache", dtype).open(list(range(VIEWS)), places)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(30, (200,), generator=generator)
    views = torch.randint(VIEWS, (200,), generator=generator)
    found = features.read(rows, views)
    assert found.dtype == torch.float32
    for row, view, feature in zip(rows.tolist(), views.tolist(), found, strict=True):
        expected = values(view, places[[row]])[0].to(dtype).float()
        assert torch.equal(feature, expected)
    assert torch.equal(features.read(rows), features.read(rows, torch.zeros(200).long()))


def test_only_what_was_written_isnt_missing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache")
    cache.write(2, np.array([3, 7]), values(2, np.array([3, 7])))
    again = cache_in(tmp_path / "cache")
    assert again.missing(2, np.array([7, 5, 3, 5, 1])).tolist() == [1, 5]
    assert again.missing(0, np.array([7, 3])).tolist() == [3, 7]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 0xFF
    path.write_bytes(content)


def flip_last(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def flip_checksum(path: Path) -> None:
    checksums = np.load(path)
    checksums[1, 0] ^= 1
    np.save(path, checksums)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def resave(array: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("view-1.npy", cut),
        ("view-1.npy", flip_header),
        ("view-1.npy", flip_last),
        ("view-1.npy", empty),
        ("view-1.npy", Path.unlink),
        ("view-1.npy", resave(np.zeros((PATCHES, WIDTH), np.float64))),
        ("view-1.npy", resave(np.zeros((PATCHES - 1, WIDTH), np.float32))),
        ("checksums.npy", cut),
        ("checksums.npy", flip_header),
        ("checksums.npy", flip_checksum),
        ("checksums.npy", empty),
        ("checksums.npy", Path.unlink),
        ("checksums.npy", resave(np.ones((VIEWS, PATCHES), np.int64))),
        ("checksums.npy", resave(np.ones((VIEWS - 1, PATCHES), np.uint32))),
        ("features.json", empty),
        ("features.json", Path.unlink),
        ("features.json", lambda path: path.write_text("{garbage")),
        ("features.json", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        ("features.json", lambda path: path.write_text('{"format": 0}')),
    ],
)
def test_a_damaged_cache_says_which_folder_to_delete(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    folder = tmp_path / "cache"
    fill(cache_in(folder), 0, 1)
    damage(folder / name)
    with told(f"the features in {folder} are damaged: delete this folder"):
        cache = cache_in(folder)
        fill(cache, 0, 1)
        read_all(cache, 0, 1)


def test_a_cache_of_other_features_is_refused(tmp_path: Path) -> None:
    fill(cache_in(tmp_path / "cache"), 0)
    with told("damaged"):
        cache_in(tmp_path / "cache", torch.bfloat16)


FULL_DISK = """
import sys
from pathlib import Path
import numpy as np, torch
from idc_lightning.data.features import FeatureCache
from idc_lightning.errors import IDCError
cache = FeatureCache(Path(sys.argv[1]), patches=4000, width=256, dtype=torch.float32)
rows = np.arange(4000)
cache.write(0, rows[:9], torch.ones(9, 256))
try:
    cache.write(0, rows[9:], torch.ones(3991, 256))
except IDCError as error:
    print(error)
assert cache.missing(0, rows).tolist() == rows[9:].tolist()
"""


def test_a_full_disk_is_told_and_what_was_marked_stays(tmp_path: Path) -> None:
    """On a small disk, where a memory map would end the process without a word."""
    mount = f"mount -t tmpfs -o size=1m none {shlex.quote(str(tmp_path))}"
    small = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    if not shutil.which("unshare") or subprocess.run([*small, mount], check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    program = shlex.join([sys.executable, "-c", FULL_DISK, str(tmp_path / "cache")])
    ended = subprocess.run(
        [*small, f"{mount} && {program}"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "view-0.npy: No space left on device" in ended.stdout
    assert "data.features=off" in ended.stdout
    assert ended.stdout.count("\n") == 1


def test_too_little_room_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_in(tmp_path / "cache")
    usage = shutil.disk_usage(tmp_path)
    needed = PATCHES * WIDTH * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    cache.check_room(PATCHES)
    with told("features of 41 views of patches take 1 MB", "room", "data.features=off"):
        cache.check_room(PATCHES + 1)


def fill_and_count(folder: Path, at_once: object, counted: object) -> None:
    """In a process of its own: fill together with others, and count the rows it computed."""
    cache = cache_in(folder)
    at_once.wait()  # type: ignore[attr-defined]
    with cache.filling():
        for view in (0, 5):
            rows = cache.missing(view, ALL)
            if len(rows):
                time.sleep(0.2)  # so that the others come in the middle
                cache.write(view, rows, values(view, rows))
            counted.put(len(rows))  # type: ignore[attr-defined]


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_of_processes_that_begin_together_one_fills(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    at_once, counted = fork.Barrier(3), fork.Queue()
    arguments = (tmp_path / "cache", at_once, counted)
    processes = [fork.Process(target=fill_and_count, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    counts = sorted(counted.get(timeout=30) for _ in range(6))
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counts == [0, 0, 0, 0, PATCHES, PATCHES]
    found = read_all(cache_in(tmp_path / "cache"), 0, 5)
    assert all(torch.equal(found[view], values(view)) for view in (0, 5))


def fill_slowly(folder: Path, stop_at: int) -> None:
    """In a process of its own: fill in small parts, and be killed when a part is written.

    The rows of the last part lie on disk, and nothing says so yet.
    """
    cache = cache_in(folder)
    parts = 0
    save = cache._checksums

    def killed_before_marking() -> np.ndarray:
        nonlocal parts
        parts += 1
        if parts == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return save()

    cache._checksums = killed_before_marking  # type: ignore[method-assign]
    fill(cache, 0, 3, size=7)


@pytest.mark.skipif(os.name != "posix", reason="forks and kills")
@pytest.mark.parametrize("stop_at", [2, 4, 9, 12])
def test_after_a_kill_the_next_run_completes_and_nothing_is_lost(
    tmp_path: Path, stop_at: int
) -> None:
    """The lock of the killed process doesn't keep the next one waiting, either."""
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(
        target=fill_slowly, args=(folder, stop_at)
    )
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    cache = cache_in(folder)
    finished = {view: np.setdiff1d(ALL, cache.missing(view, ALL)) for view in (0, 3)}
    assert sum(map(len, finished.values())) < 2 * PATCHES
    for view, rows in finished.items():
        if len(rows):
            features = cache.open([view], rows)
            found = features.read(torch.arange(len(rows)), torch.full((len(rows),), view))
            assert torch.equal(found, values(view, rows))
    fill(cache, 0, 3)
    fill(cache_in(tmp_path / "undisturbed"), 0, 3)
    for name in ("checksums.npy", "view-0.npy", "view-3.npy", "features.json"):
        expected = (tmp_path / "undisturbed" / name).read_bytes()
        assert (folder / name).read_bytes() == expected


def test_a_view_that_was_not_opened_is_refused(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache")
    fill(cache, 0, 1)
    features = cache.open([0], ALL)
    with pytest.raises(ValueError, match=r"views \[1\] weren't opened"):
        features.read(torch.arange(2), torch.tensor([0, 1]))


def test_a_cache_that_is_cleaned_meanwhile_is_begun_again(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache", torch.bfloat16)
    fill(cache, 0)
    shutil.rmtree(cache.folder)
    fill(cache, 0)
    assert torch.equal(read_all(cache, 0)[0], values(0))
    assert stored_dtype(cache.folder) == torch.bfloat16
    assert stored_dtype(tmp_path / "none") is None
