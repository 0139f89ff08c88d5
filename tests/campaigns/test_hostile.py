"""Folders and archives of strange files: each is read as told, or refused with its name.

Nothing is written but in the cache and the run folder, nothing is waited for, and no file is read
that can't be a patch.
"""

import io
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_campaign import Campaign, error_of, run
from helpers_command import SMALL
from helpers_data import make_patches, pixels_of, tissue
from helpers_png import by_hand, chunk, png, saved
from PIL import Image

from idc_lightning.data.grid import PATCH, file_name

pytestmark = pytest.mark.campaign

TREES, ARCHIVES = 60, 30
"""Folders and archives that are tried."""

MANY = 100_000
"""Files in one folder."""

PATIENTS = {
    "101": (9, 6),
    "102": (8, 7),
    "103": (7, 5),
    "104": (9, 3),
    "105": (5, 5),
    "é 6": (6, 6),
}

PIXELS = pixels_of(("101", 1, 1, 0))


IMAGE = Image.fromarray(PIXELS)


def called_png(kind: str) -> bytes:
    """An image of another format."""
    file = io.BytesIO()
    IMAGE.save(file, kind)
    return file.getvalue()


def compressed(name: bytes, size: int) -> bytes:
    """A part of a PNG that grows when it is read."""
    return chunk(name, b"x\0\0" + zlib.compress(bytes(size)))


READ: dict[str, bytes] = {
    "plain": png(PIXELS),
    "grey": png(PIXELS[..., 0]),
    "transparent": png(np.dstack([PIXELS, PIXELS[..., :1]])),
    "profile": saved(IMAGE, icc_profile=b"no profile" * 99),
    "palette": saved(IMAGE.quantize(16)),
    "animated": saved(IMAGE, save_all=True, append_images=[Image.fromarray(255 - PIXELS)]),
    "smaller": png(PIXELS[:31, :17]),
    "one pixel": png(PIXELS[:1, :1]),
}
"""Contents that are a patch."""

BROKEN: dict[str, bytes] = {
    "empty": b"",
    "cut": png(PIXELS)[:900],
    "JPEG": called_png("JPEG"),
    "GIF": called_png("GIF"),
    "TIFF": called_png("TIFF"),
    "BMP": called_png("BMP"),
    "page": b"<html><script>alert(1)</script>",
    "noise": bytes(np.random.default_rng(0).integers(0, 256, 7000, dtype=np.uint8)),
    "bomb": by_hand(60_000, 60_000, 8, 2, chunk(b"IDAT", zlib.compress(bytes(9_000_000)))),
    "zero": by_hand(0, 0, 8, 2),
    "long": png(np.zeros((PATCH, 5000, 3), np.uint8)),
    "larger": png(np.zeros((PATCH, PATCH + 1, 3), np.uint8)),
    "huge text": by_hand(PATCH, PATCH, 8, 2, compressed(b"zTXt", 90_000_000)),
    "huge profile": by_hand(PATCH, PATCH, 8, 2, compressed(b"iCCP", 90_000_000)),
    "without pixels": by_hand(PATCH, PATCH, 8, 2),
}
"""Contents that are none."""

STRANGE = (
    "../{patch}",
    "..\\{patch}",
    ".{patch}",
    "{patch}\n",
    "{patch}.exe",
    "\u202e{patch}",
    "{patch}'; DROP TABLE patches; --",
    "$(touch evil) {patch}",
    "[red]{patch}",
    "%s%n{patch}",
    "a" * 200 + ".png",
    "101_idx5_x-49_y1_class0.png",
    "101_idx5_x99999999999999999999_y1_class0.png",
    "101_idx5_x1_y1_class2.png",
    "Thumbs.db",
)
"""Names beside those of the data set."""


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def link_up(path: Path) -> None:
    path.symlink_to("..", target_is_directory=True)


def link_out(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**11)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "link to itself": link_loop,
    "link upwards": link_up,
    "link out of the root": link_out,
    "link to a device": endless,
    "100 GB of nothing": sparse,
}


def write_tree(root: Path, rng: np.random.Generator) -> tuple[int, set[str], set[str]]:
    """Sound patches, and up to three strange things.

    Returns:
        Number of the sound patches, names of all that can't be read though it is called so, and
        strange names.
    """
    patches = tissue(PATIENTS)
    make_patches(root, patches)
    count = len(patches)
    unreadable, strange = set[str](), set[str]()
    for number in range(rng.integers(1, 4)):
        folder = root / str(rng.choice(list(PATIENTS))) / "0"
        named = file_name(folder.parent.name, PATCH * (40 + number) + 1, 1, 0)
        kind = rng.integers(4)
        if kind == 0:
            name = str(rng.choice(STRANGE)).format(patch=named)
            strange.add(name.replace("/", "_"))
            (folder / name.replace("/", "_")).write_bytes(READ["plain"])
            continue
        path = folder / named
        if kind == 1:
            path.write_bytes(READ[str(rng.choice(list(READ)))])
            count += 1
            continue
        if kind == 2:
            path.write_bytes(BROKEN[str(rng.choice(list(BROKEN)))])
        else:
            NO_FILES[str(rng.choice(list(NO_FILES)))](path)
            if path.is_dir():
                continue
        unreadable.add(named)
    return count, unreadable, strange


PLACES = ("cache=cache", "hydra.run.dir=out")


def outside(folder: Path) -> dict[str, float]:
    """All that lies beside the cache and the run folder, and when it was changed."""
    return {
        str(path): path.lstat().st_mtime
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] not in ("cache", "out")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that predicts."""
    folder = tmp_path_factory.mktemp("finished")
    words = (*SMALL, "results.draws=20", "cache=cache", "hydra.run.dir=run")
    assert run("train", *words, within=folder).returncode == 0
    return folder / "run"


def test_trees_of_strange_files(tmp_path: Path, finished: Path, campaign: Campaign) -> None:
    rng = campaign.rng("trees")
    for number in range(TREES):
        folder = tmp_path / str(number)
        count, unreadable, strange = write_tree(folder / "tree", rng)
        skip = bool(rng.random() < 0.5)
        on_broken = f"data.on_broken={'skip' if skip else 'error'}"
        common = (*PLACES, on_broken)
        command, words = {
            0: ("prepare", ("data=idc", "data.root=tree", *common)),
            1: ("predict", (f"run={finished}", "input=tree", "report=none", *common)),
            2: ("explore", ("data=idc", "data.root=tree", *common)),
        }[int(rng.integers(3))]
        before = outside(folder)
        ended = run(command, *words, within=folder)
        assert outside(folder) == before
        if ended.returncode == 0:
            if command != "predict":  # they tell of all that is wrong
                findings = (folder / "out" / "health.csv").read_text()
                assert all(name in findings for name in unreadable)
            else:
                assert skip or not unreadable
            # What can't be read is packed, too, as such; in names may stand another patient.
            counts = range(count, count + len(unreadable | strange) + 1)
            if command == "predict":
                assert len(pd.read_csv(folder / "out" / "predictions.csv")) in counts
            else:
                assert any(f"{each} " in ended.stdout for each in counts)
            campaign.count(f"trees, idc-{command}", "read")
        else:
            first, *listed = ended.stderr.splitlines()
            print(*(first, *listed), sep="\n")
            assert first.startswith("error: ")
            if "(listed below)" in first:
                assert first.startswith(f"error: {len(unreadable)} patches of tree can't be read")
                assert len(listed) == len(unreadable)
                assert all(any(name in line for line in listed) for name in unreadable)
                assert not skip
            else:  # a name that contradicts its folder, or a link that can't be followed
                assert not listed
                names = {*strange, *unreadable, *(ascii(name)[1:-1] for name in strange)}
                assert any(name in first for name in names)
            campaign.count(f"trees, idc-{command}", "told")


def test_strange_archives(tmp_path: Path, campaign: Campaign) -> None:
    rng = campaign.rng("archives")
    for number in range(ARCHIVES):
        folder = tmp_path / str(number) / "deep" / "down"
        folder.mkdir(parents=True)
        patches = tissue(PATIENTS)
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            for patch in patches:
                archive.writestr(
                    f"{patch[0]}/{patch[3]}/{file_name(*patch)}", png(pixels_of(patch))
                )
            for _ in range(rng.integers(1, 4)):
                above = str(
                    rng.choice(["../", "/", "../../", f"{tmp_path}/evil/", "C:\\", "//", "x/../"])
                )
                named = file_name("666", 1, 1, 0)
                strange = zipfile.ZipInfo(f"{above}666/0/{named}")
                if rng.random() < 0.3:
                    strange.external_attr = 0o120777 << 16  # a link
                content = [READ["plain"], b"../../../evil", bytes(2_000_000)][rng.integers(3)]
                archive.writestr(strange, content, zipfile.ZIP_DEFLATED)
        before = outside(folder)
        ended = run("prepare", "data=idc", "data.root=set.zip", *PLACES, within=folder)
        assert outside(folder) == before
        assert not [path for path in tmp_path.rglob("*666*") if "cache" not in path.parts]
        if ended.returncode == 0:
            assert f"{len(patches)} " in ended.stdout
            campaign.count("archives", "read")
        else:
            print(error_of(ended))
            campaign.count("archives", "told")


def test_very_many_files_in_one_folder(tmp_path: Path, campaign: Campaign) -> None:
    folder = make_patches(tmp_path / "tree", tissue(PATIENTS))
    sources = []
    for number in range(20):
        sources.append(tmp_path / f"{number}.png")
        sources[-1].write_bytes(png(pixels_of(("many", number, 0, 0))))
    (folder / "many" / "0").mkdir(parents=True)
    for number in range(MANY):
        name = file_name("many", PATCH * (number % 400) + 1, PATCH * (number // 400) + 1, 0)
        os.link(sources[number % 20], folder / "many" / "0" / name)
    begun = time.monotonic()
    ended = run("prepare", "data=idc", "data.root=tree", "cache=cache", within=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "100,0" in ended.stdout
    campaign.count("100,000 files in one folder", f"packed in {time.monotonic() - begun:.0f} s")
