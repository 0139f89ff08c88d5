"""Sweeps as users run them: jobs fail, are killed, and are started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from helpers_command import SMALL, Command
from helpers_process import TRAIN, forked
from hydra.errors import HydraException

from idc_lightning.conf_folder import describe
from idc_lightning.config import Config
from idc_lightning.errors import IDCError
from idc_lightning.trainer import build_trainer

GRID = ("-m", *SMALL, "hydra.sweep.dir=grid", "model.head.dropout=0.1,0.2,0.3")


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float | None, BaseException], None]:
    """Let the job with a dropout fail, or none."""

    def choose(dropout: float | None, error: BaseException) -> None:
        def build(config: Config, *arguments: Any, **named: Any) -> Any:
            if config.model.head.dropout == dropout:
                raise error
            return build_trainer(config, *arguments, **named)

        monkeypatch.setattr("idc_lightning.training.build_trainer", build)

    return choose


def holder_of(run: Path) -> int:
    """The process that runs in a folder, which has its lock open."""
    lock = run / ".hydra" / ".lock"
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if any(path.resolve() == lock.resolve() for path in (process / "fd").iterdir()):
                return int(process.name)
    raise LookupError(f"no process runs in {run}")


def left(sweep: Path) -> list[str]:
    return sorted(path.name for path in sweep.iterdir() if path.is_dir())


def test_a_failed_job_does_not_end_the_others_and_is_made_up_for(
    command: Command, fails_at: Any, tmp_path: Path
) -> None:
    grid = tmp_path / "grid"
    fails_at(0.2, IDCError("the disk is full"))
    ended = command(*GRID)
    assert ended.code == 1
    assert left(grid) == ["0", "1.failed", "2", "leaderboard"]
    assert "error: job 1: the disk is full" in ended.err
    assert ended.err.endswith(
        "error: 1 jobs failed (1): each has its reason in grid/<job>.failed/error.txt\n"
    )
    board = pd.read_csv(grid / "leaderboard.csv")
    assert sorted(board["model.head.dropout"]) == [0.1, 0.2, 0.3]
    assert board.set_index("runs").loc["1.failed", "problem"] == "the disk is full"

    written = {job: (grid / job / "results.json").stat().st_mtime_ns for job in ("0", "2")}
    fails_at(None, IDCError(""))
    torn = [grid / ".leaderboard.html.7.partial", grid / "leaderboard" / ".f1.png.7.partial"]
    for path in torn:  # of a process that was killed
        path.touch()
    ended = command(*GRID, "sweep.resume=true")
    assert (ended.code, ended.err) == (0, "")
    assert not any(path.exists() for path in torn)
    assert left(grid) == ["0", "1", "1.failed", "2", "leaderboard"]
    assert written == {job: (grid / job / "results.json").stat().st_mtime_ns for job in written}
    board = pd.read_csv(grid / "leaderboard.csv")
    assert sorted(board["runs"]) == [0, 1, 2]
    assert board["problem"].isna().all()


def test_jobs_in_deeper_folders_fail_and_are_made_up_for(
    command: Command, fails_at: Any, tmp_path: Path
) -> None:
    subdir = "hydra.sweep.subdir=seed${seed}/${hydra.job.num}"
    typed = ("-m", *SMALL, "hydra.sweep.dir=grid", subdir, "model.head.dropout=0.1,0.2")
    fails_at(0.2, IDCError("the disk is full"))
    ended = command(*typed)
    assert (ended.code, left(tmp_path / "grid/seed0")) == (1, ["0", "1.failed"])
    assert "1 jobs failed (seed0/1)" in ended.err
    fails_at(None, IDCError(""))
    assert command(*typed, "sweep.resume=true").code == 0
    assert left(tmp_path / "grid/seed0") == ["0", "1", "1.failed"]


def test_a_job_that_has_ended_keeps_its_configuration(command: Command, tmp_path: Path) -> None:
    typed = ("-m", *SMALL, "hydra.sweep.dir=grid", "scheduler=none", "model.head.dropout=0.1,0.2")
    assert command(*typed).code == 0
    assert command("resume=grid/0", "trainer.epochs=2").code == 0
    hydra = tmp_path / "grid" / "0" / ".hydra"
    before = {path.name: path.read_bytes() for path in hydra.iterdir()}
    assert b"epochs: 2" in before["config.yaml"]
    assert command(*typed, "sweep.resume=true").code == 0
    assert {path.name: path.read_bytes() for path in hydra.iterdir()} == before


def test_two_jobs_in_one_folder_are_told(command: Command, tmp_path: Path) -> None:
    typed = (*GRID[:-1], "hydra.sweep.subdir=s${seed}", "model.head.dropout=0.1,0.2")
    ended = command(*typed, "sweep.resume=true")
    assert ended.code == 1
    assert ended.err.endswith(
        "s0 holds the result of another job: give each a folder of its own by hydra.sweep.subdir, "
        "or the sweep another one by hydra.sweep.dir\n"
    )


@pytest.mark.parametrize("more", [(), ("sweep.resume=true",)])
def test_a_sweep_that_was_killed_before_its_first_job_begins_again(
    command: Command, tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / ".lock").touch()
    assert command(*GRID[:-1], "seed=0,1", *more).code == 0
    assert left(tmp_path / "grid") == ["0", "1", "leaderboard"]


def test_folds_of_a_command_are_one_configuration_and_test_each_patient_once(
    command: Command, tmp_path: Path
) -> None:
    folds = ("split=kfold", "split.folds=3", "split.fold=0,1,2")
    assert command("-m", *SMALL, "hydra.sweep.dir=grid", *folds).code == 0
    (row,) = pd.read_csv(tmp_path / "grid" / "leaderboard.csv").to_dict("records")
    assert row["folds"] == 3
    tested = [
        set(pd.read_csv(tmp_path / "grid" / str(fold) / "predictions/test.csv")["patient_id"])
        for fold in range(3)
    ]
    assert len(set.union(*tested)) == sum(map(len, tested)) == 12
    aurocs = [
        json.loads((tmp_path / "grid" / str(fold) / "results.json").read_text())["test"]["auroc"]
        for fold in range(3)
    ]
    mean = sum(auroc["value"] for auroc in aurocs) / 3
    assert row["test_auroc_mean"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("whom", "by", "code", "said"),
    [
        (
            "sweep",
            signal.SIGTERM,
            143,
            "error: interrupted: to go on, start the sweep again with sweep.resume=true",
        ),
        (
            "job",
            signal.SIGKILL,
            1,
            "error: the process of a job was stopped, perhaps for want of memory: start the sweep "
            "again with sweep.resume=true and fewer jobs at a time (hydra.launcher.n_jobs=1)",
        ),
    ],
)
def test_a_sweep_that_is_stopped_leaves_no_job_running(
    tmp_path: Path, whom: str, by: signal.Signals, code: int, said: str
) -> None:
    jobs = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "trainer.epochs=500")
    typed = ("-m", *SMALL, *jobs, "hydra.sweep.dir=grid", "scheduler=none")
    often = ("callbacks.checkpoint.last_every=0",)
    with forked(TRAIN, (*typed, *often), within=tmp_path, environment=os.environ) as sweep:
        until = time.monotonic() + 120
        while len(list(tmp_path.glob("grid/*/checkpoints/last.ckpt"))) < 2:
            assert sweep.runs
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(sweep.pid if whom == "sweep" else holder_of(tmp_path / "grid" / "1"), by)
        ended = sweep.ended(timeout=30)
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1] == said
    for job in (tmp_path / "grid" / "0", tmp_path / "grid" / "1"):
        FileLock(job / ".hydra" / ".lock").acquire(timeout=20).lock.release()  # nobody holds it


def test_a_defect_of_a_job_is_recorded_with_its_traceback(
    command: Command, fails_at: Any, tmp_path: Path
) -> None:
    fails_at(0.1, ZeroDivisionError("a defect"))
    ended = command(*GRID[:-1], "model.head.dropout=0.1,0.2")
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert (tmp_path / "grid/0.failed/error.txt").read_text() == "ZeroDivisionError('a defect')\n"
    assert (tmp_path / "grid/1/results.json").is_file()


def test_an_interrupted_sweep_ends_and_goes_on(
    command: Command, fails_at: Any, tmp_path: Path
) -> None:
    fails_at(0.2, KeyboardInterrupt())
    ended = command(*GRID)
    assert (ended.code, ended.err.splitlines()[-1]) == (1, "error: interrupted")
    assert left(tmp_path / "grid") == ["0", "1.failed"]
    # As it looks after a kill in the middle of a job.
    (tmp_path / "grid" / "1.failed").rename(tmp_path / "grid" / "1")
    (tmp_path / "grid" / "1" / "error.txt").unlink()
    (tmp_path / "grid" / "1" / "splits.csv").touch()
    fails_at(None, IDCError(""))
    assert command(*GRID, "sweep.resume=true").code == 0
    assert left(tmp_path / "grid") == ["0", "1", "1.failed", "2", "leaderboard"]
    reason = (tmp_path / "grid" / "1.failed" / "error.txt").read_text()
    assert reason == "killed before its end\n"
    assert (tmp_path / "grid" / "1" / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("-m", "hydra.sweep.dir=grid", "seed=0,1"), "grid holds files already"),
        (
            ("-m", "hydra.sweep.dir=grid", "seed=0,1,2", "sweep.resume=true"),
            "it was started with hydra/sweeper=basic seed=0,1, and now with hydra/sweeper=basic "
            "seed=0,1,2",
        ),
        (("-m", "seed=0,1", "sweep.resume=true"), "name the sweep's folder by hydra.sweep.dir"),
        (
            ("-m", "hydra.sweep.dir=other", "seed=0,1", "sweep.resume=true"),
            "other holds files, but no sweep that could be resumed",
        ),
        (("sweep.resume=true",), "sweep.resume=true has no effect on a single run: add -m"),
        (("-m", "sweep.metric=recal", "seed=0"), "sweep.metric"),
    ],
)
def test_what_is_no_sweep_to_go_on_with_is_told(
    command: Command, tmp_path: Path, typed: tuple[str, ...], said: str
) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "multirun.yaml").write_text(
        "hydra: {overrides: {task: ['seed=0,1', sweep.resume=false]}}"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    ended = command(*typed)
    assert ended.code == 1
    assert said in ended.err


def test_a_sweep_whose_jobs_cannot_be_composed_leaves_nothing(
    command: Command, tmp_path: Path
) -> None:
    ended = command("-m", "hydra.sweep.dir=outputs/s", "model.head.droput=0.1,0.2")
    assert (ended.code, ended.left) == (1, [])
    assert "did you mean model.head.dropout" in ended.err


@pytest.mark.parametrize(
    ("launcher", "plugin", "said"),
    [("slurm", "submitit", 'Could not detect "srun"'), ("ray_cluster", "ray", "Ray instance")],
)
def test_a_cluster_that_is_not_there_is_told_in_one_line(
    command: Command, launcher: str, plugin: str, said: str
) -> None:
    pytest.importorskip(plugin, reason=f"the extra that installs {plugin} is absent")
    ended = command("-m", f"hydra/launcher={launcher}", "hydra.sweep.dir=outputs/s", "seed=0,1")
    assert (ended.code, ended.err.count("\n"), ended.left) == (1, 1, [])
    assert ended.err.startswith(f"error: hydra/launcher={launcher}: ")
    assert said in ended.err


@pytest.mark.parametrize(
    ("missing", "extra"), [("submitit_slurm", "slurm"), ("submitit_local", "slurm"), ("ray", "ray")]
)
def test_a_plugin_that_is_not_installed_is_named(missing: str, extra: str) -> None:
    error = HydraException(f"In 'hydra/config': Could not find 'hydra/launcher/{missing}'")
    assert f'pip install "idc-lightning[{extra}]"' in describe(error, "train")


def test_a_launcher_that_does_not_exist_is_told(command: Command) -> None:
    ended = command("-m", "hydra/launcher=jobli", "seed=0,1")
    assert "unknown choice hydra/launcher=jobli, did you mean joblib?" in ended.err
    assert "submitit_slurm" in ended.err


def test_a_sweep_that_runs_is_not_resumed(command: Command, tmp_path: Path) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "multirun.yaml").write_text("hydra: {overrides: {task: ['seed=0,1']}}")
    with FileLock(tmp_path / "grid" / ".lock"):
        ended = command("-m", "hydra.sweep.dir=grid", "seed=0,1", "sweep.resume=true")
    assert ended.code == 1
    assert ended.err == "error: another process runs the sweep of grid: wait until it ends\n"


def test_jobs_at_the_same_time_fail_alone(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "idc_lightning.train", "-m", *SMALL, "hydra/launcher=joblib"]
    start += ["hydra.sweep.dir=grid", "model.head.dropout=0.1,1.5,0.3"]
    # Not forked: joblib ends its processes only with the interpreter.
    ended = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "1 jobs failed (1)" in ended.stderr
    assert left(tmp_path / "grid") == ["0", "1.failed", "2", "leaderboard"]


def test_a_sweep_gives_its_metric_to_whoever_searches(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        "hydra._internal.callbacks.Callbacks.on_job_end",
        lambda *_, job_return, **__: given.append(job_return.return_value),
    )
    assert command(*GRID[:-1], "seed=0", "sweep.metric=auroc").code == 0
    results = json.loads((tmp_path / "grid" / "0" / "results.json").read_text())
    assert given == [results["dev"]["auroc"]["value"]]


def test_a_name_that_reads_as_another_number_is_refused_in_each_job(command: Command) -> None:
    small = [word for word in SMALL if not word.startswith(("data.patients", "data.patches"))]
    ended = command("-m", *small, "data=idc", "data.root=2024_01_15", "seed=0,1")
    assert ended.code == 1
    for job in (0, 1):
        assert (
            f"error: job {job}: data.root=2024_01_15 is taken for the number 20240115" in ended.err
        )
