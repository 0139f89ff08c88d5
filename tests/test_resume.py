"""A run that is killed, stopped or prolonged goes on in its folder as if nothing had happened."""

import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock
from helpers_command import SMALL, Command
from helpers_process import run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from idc_lightning.results.sealed import read_results

KILLED = Path(__file__).with_name("killed_command.py")

RUN = (*SMALL, "trainer.epochs=3", "trainer.precision=32-true", "callbacks.checkpoint.last_every=0")

WHOLE_NET = (
    *RUN,
    "scheduler=cyclic",
    "callbacks.ema_decay=0.9",
    "callbacks=early_stopping",
    "callbacks.early_stopping.patience=1",
    "trainer.epochs=4",
    "data.workers=1",
)

HEAD = (
    *RUN,
    "model.freeze_backbone=true",
    "scheduler=onecycle",
    "callbacks=lr_range_test",
    "callbacks.lr_range_test.start=0.0001",
    "callbacks.lr_range_test.steps=20",
    "report.enabled=true",
    "callbacks.checkpoint.last_every=3",
)


def run(
    folder: Path, *words: str, at: int | None = None, by: str = "SIGKILL"
) -> CompletedProcess[str]:
    """Run idc-train in a process, which a signal meets at a moment."""
    chosen = {} if at is None else {"KILL_AT": str(at), "KILL_BY": by}
    return run_script(KILLED, words, within=folder, environment={**os.environ, **chosen})


def moments(ended: CompletedProcess[str]) -> int:
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.rpartition("moments: ")[2])


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return {**content["state_dict"], "step": torch.tensor(content["global_step"])}


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: steps and values by name."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def files(run: Path) -> list[str]:
    """Names of all files, without those of TensorBoard, whose names tell the time."""
    places = (
        path for path in run.rglob("*") if path.is_file() and path.parent.name != "tensorboard"
    )
    return sorted(str(path.relative_to(run)) for path in places)


def results(run: Path) -> dict[str, Any]:
    """Without what tells the time, or how the run was started."""
    content = read_results(run / "results.json")
    files = content["files"].items()
    content["files"] = {name: found for name, found in files if not name.startswith(".hydra")}
    return {k: v for k, v in content.items() if k not in ("seconds", "images_per_second")}


def assert_same(ours: Path, undisturbed: Path) -> None:
    """Two runs have the same weights to the last bit, the same results and the same curves."""
    for name in ("best", "last"):
        wanted = weights(undisturbed, name)
        for key, value in weights(ours, name).items():
            assert torch.equal(value, wanted[key]), (name, key)
    assert results(ours) == results(undisturbed)
    logged = [pd.read_csv(path / "metrics.csv") for path in (ours, undisturbed)]
    pd.testing.assert_frame_equal(*logged)
    assert curves(ours) == curves(undisturbed)
    assert files(ours) == files(undisturbed)


CROPS = (
    *RUN,
    "data.crop=4",
    "data.batch_size=64",
    "trainer.epochs=2",
    "pretraining=patches",
    "pretraining.epochs=2",
    "pretraining.batch_size=32",
    "model.context.name=smooth",
    "model.context.with_single=true",
)


@pytest.mark.parametrize("recipe", [WHOLE_NET, HEAD, CROPS], ids=["whole net", "head", "crops"])
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(
    tmp_path: Path, recipe: Sequence[str]
) -> None:
    seed = random.randrange(10**6)
    print(f"seed of the moments: {seed}")
    drawn = random.Random(seed)
    whole = moments(run(tmp_path, *recipe, "hydra.run.dir=undisturbed"))
    start: tuple[str, ...] = (*recipe, "hydra.run.dir=killed")
    for _ in range(2):  # a campaign does so hundreds of times
        at = drawn.randrange(whole // 2)
        ended = run(tmp_path, *start, at=at)
        if ended.returncode == 0:  # less was left to do
            break
        assert ended.returncode == -9, ended.stderr
        print(f"killed at {at} of {whole}")
        start = ("resume=killed",)
    else:
        assert run(tmp_path, *start).returncode == 0
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    moments(run(folder.parent, *RUN, "scheduler=none", "hydra.run.dir=run"))
    return folder


@pytest.mark.usefixtures("undisturbed")  # has filled the cache, so that moments are alike
def test_a_run_that_is_killed_while_it_is_judged_goes_on(tmp_path: Path) -> None:
    """Dev and test are judged, and results are written, after the last step of training."""
    recipe = (*RUN, "scheduler=none", "trainer.epochs=1")
    whole = moments(run(tmp_path, *recipe, "hydra.run.dir=undisturbed"))
    for number, before_end in enumerate((0, 1, 2, 4)):
        name = f"killed{number}"
        at = whole - 1 - before_end
        assert run(tmp_path, *recipe, f"hydra.run.dir={name}", at=at).returncode == -9
        assert not (tmp_path / name / "results.json").exists() or before_end == 0
        assert run(tmp_path, f"resume={name}").returncode == 0
        assert_same(tmp_path / name, tmp_path / "undisturbed")


@pytest.mark.parametrize("at", [20, 117])
def test_sigterm_saves_and_ends_within_10_seconds(
    undisturbed: Path, tmp_path: Path, at: int
) -> None:
    recipe = (*RUN, "scheduler=none", "callbacks.checkpoint.last_every=1000")
    ended = run(tmp_path, *recipe, "hydra.run.dir=run", at=at, by="SIGTERM")
    seconds = time.time() - float(ended.stdout.rpartition("signal at ")[2].split()[0])
    assert ended.returncode == 143, ended.stderr
    assert ended.stderr.endswith(f"error: interrupted: to go on, resume={tmp_path}/run\n")
    assert seconds < 10
    # Nothing that was learned is lost, but the end of an epoch that would take too long.
    before = weights(tmp_path / "run", "last")["step"]
    resumed = run(tmp_path, "resume=run")
    assert moments(resumed) > 0
    assert int(before) > 0
    assert_same(tmp_path / "run", undisturbed)


def test_a_run_without_a_checkpoint_yet_is_removed_by_sigterm(tmp_path: Path) -> None:
    ended = run(tmp_path, *RUN, "hydra.run.dir=run", at=0, by="SIGTERM")
    assert (ended.returncode, ended.stderr) == (143, "error: interrupted\n")
    assert not (tmp_path / "run").exists()


# What can be typed with resume=


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_changes_nothing(command: Command, undisturbed: Path) -> None:
    before = snapshot(undisturbed)
    ended = command(f"resume={undisturbed}")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "the run has ended already: nothing is left to do\n"
    assert snapshot(undisturbed) == before


def test_a_prolonged_run_is_as_one_that_was_as_long_from_the_start(
    command: Command, undisturbed: Path, tmp_path: Path
) -> None:
    short = ("scheduler=none", "trainer.epochs=1", "hydra.run.dir=run")
    assert command(*RUN, *short).code == 0
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert command("resume=elsewhere", "trainer.epochs=3", "logger.csv=true").code == 0
    assert_same(moved, undisturbed)
    typed = yaml.safe_load((moved / ".hydra" / "overrides.yaml").read_text())
    assert {"trainer.epochs=3", "logger.csv=true"} < set(typed)
    config = yaml.safe_load((moved / ".hydra" / "config.yaml").read_text())
    assert config["trainer"]["epochs"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("resume=run", "-m"), "goes on with a single run: leave out -m"),
        (("resume=",), "name one run by resume=<run folder>"),
        (("resume=run", "resume=other"), "name one run by resume=<run folder>"),
        (("resume=absent",), "absent holds no run of idc-train"),
        (("resume=sweep",), "start it again as before, with sweep.resume=true"),
        (("resume=run", "optimizer.lr=0.1"), "optimizer.lr=0.1 can't be changed in a run that"),
        (("resume=run", "sweep.resume=true"), "sweep.resume=true can't be changed"),
        (("resume=run", "optimizer=adamw"), "optimizer=adamw: a run goes on with its own choices"),
        (("resume=run", "trainer.epoch=3"), "unknown key trainer.epoch, did you mean"),
        (("resume=run", "trainer.epochs=many"), "trainer.epochs=many should be a valid integer"),
        (("resume=run", "trainer.epochs=5,6"), "goes on with single values"),
        (("resume=run", "+trainer.epochs=5"), "goes on with single values"),
        (("resume=run", "trainer.epochs=2"), "trainer.epochs=2 is less than the run's own"),
        (("resume=run", "data.root=a (1)"), "can't read the override data.root=a (1)"),
    ],
)
def test_what_cannot_go_on_is_told(
    command: Command, undisturbed: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    before = snapshot(undisturbed)
    (tmp_path / "run").symlink_to(undisturbed)
    ended = command(*words)
    assert ended.code == 1
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert snapshot(undisturbed) == before


def test_a_run_whose_rates_depend_on_its_length_is_not_prolonged(
    command: Command, tmp_path: Path
) -> None:
    assert command(*SMALL, "hydra.run.dir=run").code == 0
    ended = command("resume=run", "trainer.epochs=2")
    assert ended.code == 1
    assert "scheduler=onecycle spreads its learning rates over trainer.epochs=1" in ended.err
    assert (tmp_path / "run" / "results.json").is_file()
    edited = tmp_path / "run" / ".hydra" / "config.yaml"
    edited.write_text(edited.read_text().replace("seed: 0\n", "seed: 1\n"))
    ended = command("resume=run", "logger.csv=false")
    assert ended.code == 1
    assert "last.ckpt was trained with other values than those of" in ended.err


def test_a_run_that_learns_nothing_goes_on_but_is_not_prolonged(
    command: Command, tmp_path: Path
) -> None:
    assert command(*SMALL, "hydra.run.dir=run").code == 0
    taken = ("pretraining=patches", "pretraining.run=run", "trainer.epochs=0")
    small = (word for word in SMALL if not word.startswith("data.batch_size"))
    assert command(*small, *taken, "hydra.run.dir=judged").code == 0
    before = read_results(tmp_path / "judged" / "results.json")
    (tmp_path / "judged" / "results.json").unlink()
    assert command("resume=judged").code == 0
    after = read_results(tmp_path / "judged" / "results.json")
    assert all(after[split] == before[split] for split in ("dev", "test"))
    ended = command("resume=judged", "trainer.epochs=2")
    assert ended.code == 1
    assert "trainer.epochs=2: a run of trainer.epochs=0 can't be prolonged" in ended.err


def test_a_head_does_not_go_on_in_other_steps(command: Command, tmp_path: Path) -> None:
    head = ("model.freeze_backbone=true", "data.augment.stain_jitter=0", "scheduler=none")
    assert command(*SMALL, *head, "hydra.run.dir=run").code == 0
    ended = command("resume=run", "trainer.epochs=2", "data.features=off")
    assert ended.code == 1
    assert "it took 50 batches in a step of Lightning and would take 1: go on with" in ended.err
    assert (tmp_path / "run" / "results.json").is_file()
    (tmp_path / "run" / "report.html").write_text("of one epoch")
    assert command("resume=run", "trainer.epochs=2").code == 0
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_run_that_had_ended_is_left_as_it_was_if_it_cannot_begin_again(
    command: Command, tmp_path: Path
) -> None:
    assert command(*SMALL, "scheduler=none", "hydra.run.dir=run").code == 0
    (tmp_path / "run" / "report.html").write_text("of one epoch")
    before = snapshot(tmp_path / "run")
    ended = command("resume=run", "trainer.epochs=2", "data.root=nowhere")
    assert ended.code == 1
    assert "data.root=nowhere doesn't exist" in ended.err
    ended = command("resume=run", "trainer.epochs=2", "data.root=2024_01")
    assert "data.root=2024_01 is taken for the number 202401" in ended.err
    assert snapshot(tmp_path / "run") == before
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_another_precision_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*SMALL, "hydra.run.dir=run", "trainer.precision=auto").code == 0
    (tmp_path / "run" / "results.json").unlink()
    used = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[used["precision"]]
    monkeypatch.setattr("idc_lightning.resume.resolve_precision", lambda *_: other)
    ended = command("resume=run")
    assert ended.code == 1
    assert f"trained in {used['precision']}, and would be in {other} on this machine" in ended.err


def test_a_run_that_failed_goes_on_under_its_own_name(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("idc_lightning.train.judge_splits", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(*SMALL, "hydra.run.dir=run")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run.failed"]
    ended = command("resume=run")
    assert "the run failed, go on with resume=run.failed" in ended.err
    (tmp_path / "run.failed" / "error.txt").unlink()  # as if the disk had had no room for it
    assert command("resume=run.failed").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    assert (tmp_path / "run" / "results.json").is_file()
    assert not (tmp_path / "run" / "error.txt").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("metrics.csv", b"\n0", b"\n\xac0", "metrics.csv is damaged: delete it, to go on"),
        ("metrics.csv", b",", b"", "metrics.csv is damaged: delete it"),
        ("metrics.csv", b"step", b"stop", "metrics.csv is damaged: delete it"),
        ("metrics.csv", b"0.", b"O.", "metrics.csv is damaged: delete it"),
        ("checkpoints/best.ckpt", b"PK", b"KP", "best.ckpt: it is damaged, incomplete or no"),
        ("checkpoints/last.ckpt", b"PK", b"KP", "last.ckpt: it is damaged, incomplete or no"),
        (".hydra/config.yaml", b"data:", b"dota:", "config.yaml is damaged or of another version"),
        (".hydra/config.yaml", b":", b"", "config.yaml is damaged"),
        (".hydra/hydra.yaml", b"job:", b"jab:", "hydra.yaml is damaged: it has no hydra.job"),
        (".hydra/hydra.yaml", b"runtime:", b"rantime:", "damaged: it has no hydra.runtime"),
    ],
)
def test_a_damaged_file_of_a_run_that_goes_on_is_told(
    command: Command,
    undisturbed: Path,
    tmp_path: Path,
    name: str,
    old: bytes,
    new: bytes,
    said: str,
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    file = tmp_path / "run" / name
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    ended = command("resume=run")
    assert ended.code == 1
    assert len(ended.err.splitlines()) == 1
    assert said in ended.err


def test_a_run_that_goes_on_elsewhere_is_left_alone(command: Command, undisturbed: Path) -> None:
    with FileLock(undisturbed / ".hydra" / ".lock"):
        ended = command(f"resume={undisturbed}", "trainer.epochs=4")
    assert ended.code == 1
    assert ended.err == f"error: another process runs in {undisturbed}: wait until it ends\n"


def test_relative_places_are_those_of_where_the_run_was_started(
    command: Command, tmp_path: Path
) -> None:
    assert command(*SMALL, "scheduler=none", "hydra.run.dir=run", "cache=own").code == 0
    (tmp_path / "other").mkdir()
    elsewhere = Command(tmp_path / "other", command.capture, command.patch)
    assert elsewhere(f"resume={tmp_path}/run", "trainer.epochs=2").code == 0
    assert (tmp_path / "own").is_dir()
    assert not (tmp_path / "other" / "own").exists()


# Jobs of a sweep


def test_a_killed_job_of_a_sweep_goes_on(tmp_path: Path) -> None:
    grid = (
        "-m", *RUN, "scheduler=none", "hydra.sweep.dir=grid", "model.head.dropout=0.1,0.2"
    )  # fmt: skip
    assert run(tmp_path, *grid, at=100).returncode == -9
    reached = weights(tmp_path / "grid" / "0", "last")["step"]
    assert 0 < int(reached) < 30
    ended = run(tmp_path, *grid, "sweep.resume=true")
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir()) == [
        "0",
        "1",
        "leaderboard",
    ]
    steps = pd.read_csv(tmp_path / "grid" / "0" / "metrics.csv")["train/loss"].count()
    assert steps == int(weights(tmp_path / "grid" / "0", "last")["step"])
