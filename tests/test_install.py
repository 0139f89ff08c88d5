"""The wheel that ``pip install .`` makes works without the clone, from any directory."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers_command import SMALL

from idc_lightning.conf_folder import conf_folder

CLONE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel holds, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(CLONE)], check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_all_of_conf(site: Path) -> None:
    wanted = {path.relative_to(conf_folder()) for path in conf_folder().rglob("*.yaml")}
    held = site / "idc_lightning" / "conf"
    assert wanted == {path.relative_to(held) for path in held.rglob("*.yaml")}


def test_the_wheel_holds_all_of_a_report(site: Path) -> None:
    wanted = {path.name for path in (CLONE / "idc_lightning" / "report").iterdir() if path.suffix}
    held = {path.name for path in (site / "idc_lightning" / "report").iterdir()}
    assert {"page.html", "items.html", "page.css", "page.js"} <= wanted == held


def test_the_wheel_runs_from_another_directory(site: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = "import idc_lightning; print(idc_lightning.__file__)"
    for command in (["-c", where], ["-m", "idc_lightning.train", *SMALL]):
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        assert str(site) in ended.stdout or "run folder" in ended.stdout
    (results,) = (tmp_path / "outputs").glob("*/results.json")
    assert results.is_file()
