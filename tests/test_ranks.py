"""Several processes share a training: they follow a single one, and nothing is counted twice."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers_command import SMALL, Command
from helpers_model import config_of, told
from helpers_process import TRAIN, Forked, forked, side_by_side
from helpers_runs import evaluation
from torch.utils.data import SequentialSampler

from idc_lightning import ranks
from idc_lightning.data.batches import BatchShare
from idc_lightning.evaluate import evaluate
from idc_lightning.ranks import ALONE, Place, place_of, started
from idc_lightning.results.sealed import read_results

RUN = (
    *[word for word in SMALL if not word.startswith(("trainer=", "model.backbone="))],
    # Its only BatchNorm is the head's: each one waits for all processes, in each step.
    "model.backbone=squeezenet1_1",
    "trainer.epochs=2",
    "trainer.precision=32-true",
    "scheduler=none",
    "optimizer.lr=0.00001",
    "model.head.dropout=0",
)

NORMED = ("model.backbone=shufflenet_v2_x0_5", "trainer.epochs=1")
"""Has 56 layers of BatchNorm, so that an epoch takes long enough."""

ONE = ("trainer=cpu",)
TWO = ("trainer=ddp_cpu", "trainer.timeout=60")

DOUBLE = """
import idc_lightning.classifier as classifier
import idc_lightning.data.datamodule as datamodule
import torch

single, weights = torch.Tensor.float, classifier.IDCClassifier._fixed_class_weights
balanced, as_float = classifier.balanced_weights, datamodule.as_float
torch.Tensor.float = lambda value: value if value.dtype == torch.float64 else single(value)
classifier.IDCClassifier._fixed_class_weights = lambda self: weights(self.double()).double()
classifier.balanced_weights = lambda counts: balanced(counts).double()
datamodule.as_float = lambda image: as_float(image).double()
"""
"""Trains in float64: in float32 other sums round otherwise, which small nets soon multiply."""

FAILING = """
import os
from idc_lightning.classifier import IDCClassifier
from idc_lightning.errors import IDCError

step = IDCClassifier.training_step

def fail(self, batch, number):
    if os.environ.get("RANK") == "1" and self.data.seed == 0 and number == 1:
        raise IDCError("its disk is broken")
    return step(self, batch, number)

IDCClassifier.training_step = fail
"""
"""The second process fails in the second step of runs with seed 0."""


COUNTING = """
import os
import idc_lightning.frozen as frozen

fill = frozen._fill

def count(*arguments):
    with open(os.environ["COUNTED"], "a") as file:
        print(os.getpid(), file=file)
    fill(*arguments)

frozen._fill = count
"""
"""Writes down each time that features are computed."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **given}


def changed(folder: Path, code: str) -> dict[str, str]:
    """Let all processes of a training run some code when they start."""
    place = folder / "changed"
    place.mkdir(parents=True)
    main = "from idc_lightning.train import main\nmain()\n"
    (place / "train.py").write_text(code + main)
    began = 'import sys\nif "idc_lightning.train" in sys.orig_argv:\n'
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    (place / "sitecustomize.py").write_text(began + lines)
    return {"PYTHONPATH": str(place)}


def leading(folder: Path, *words: str, **given: str) -> AbstractContextManager[Forked]:
    """Start idc-train in a process that needn't import torch again; those that it starts must."""
    script = Path(given["PYTHONPATH"], "train.py") if "PYTHONPATH" in given else TRAIN
    return forked(script, words, within=folder, environment=environment(given))


def run(folder: Path, *words: str, **given: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    with leading(folder, *words, **given) as started:
        return started.ended()


def run_together(
    folder: Path, *words: str, world: int = 2, **given: str
) -> subprocess.CompletedProcess[str]:
    """Run it in processes as torchrun starts them, none of which must import torch again.

    Returns:
        How the first one ended.
    """
    shared = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    first, *others = side_by_side(
        leading(folder, *words, **given, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(world)
    )
    assert [other.returncode for other in others] == [0] * len(others), others
    return first


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


ONE_AND_TWO = (("one", run, ONE), ("two", run_together, TWO))
"""Names of two runs, and how each is started, with what overrides."""


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What lets processes train in float64."""
    return changed(tmp_path_factory.mktemp("double"), DOUBLE)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, double: dict[str, str]) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("single")
    ended = run(folder, *RUN, *ONE, "hydra.run.dir=run", **double)
    assert ended.returncode == 0, ended.stderr
    return folder / "run"


def assert_follows_in_training(ours: Path, single: Path) -> None:
    """A training of several processes took the steps of a single one."""
    logged = [pd.read_csv(path / "metrics.csv") for path in (ours, single)]
    losses = [table["train/loss"].dropna().to_numpy() for table in logged]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    steps = [table.loc[table["train/loss"].notna(), "step"].tolist() for table in logged]
    assert steps[0] == steps[1]


def assert_follows(ours: Path, single: Path) -> None:
    """A run of several processes went the way of a single one, and judged each patch once."""
    assert_follows_in_training(ours, single)
    for split in ("dev", "test"):
        tables = [pd.read_csv(path / "predictions" / f"{split}.csv") for path in (ours, single)]
        cells = [table[["patient_id", "x", "y", "true"]] for table in tables]
        pd.testing.assert_frame_equal(*cells)
        assert tables[0]["proba"].to_numpy() == pytest.approx(tables[1]["proba"], abs=1e-3)
    results = [read_results(path / "results.json") for path in (ours, single)]
    for name in ("patches", "patients", "epochs", "split_hash"):
        assert results[0][name] == results[1][name]
    for split in ("dev", "test"):
        for name, interval in results[1][split].items():
            assert results[0][split][name]["value"] == pytest.approx(interval["value"], abs=0.02)


def test_two_processes_follow_one(tmp_path: Path, double: dict[str, str]) -> None:
    for name, more in (("one", ONE), ("two", TWO)):
        ended = run(tmp_path, *RUN, *NORMED, *more, f"hydra.run.dir={name}", **double)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert_follows(tmp_path / "two", tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_two_processes_learn_and_judge_crops_as_one_does(
    tmp_path: Path, double: dict[str, str]
) -> None:
    """Dev has fewer windows than there are processes, which all have to take part."""
    crops = (*RUN, "data.crop=4", "data.batch_size=64", "trainer.epochs=1")
    first = ("pretraining=patches", "pretraining.epochs=1", "pretraining.batch_size=32")
    few = ("split.dev=0.05", "pretraining.max_lr=0.00001", "model.context.with_single=true")
    for name, start, more in ONE_AND_TWO:
        ended = start(tmp_path, *crops, *first, *few, *more, f"hydra.run.dir={name}", **double)
        assert (ended.returncode, ended.stderr) == (0, "")
    assert read_results(tmp_path / "one" / "results.json")["patients"]["dev"] == 1
    assert_follows(tmp_path / "two", tmp_path / "one")
    assert_follows_in_training(tmp_path / "two" / "pretraining", tmp_path / "one" / "pretraining")


def test_without_shared_statistics_all_processes_judge_by_their_mean(tmp_path: Path) -> None:
    """The number of patches isn't divisible by that of processes."""
    own = ("trainer.devices=3", "trainer.sync_batchnorm=false", "data.sample=225")
    ended = run_together(tmp_path, *RUN, *NORMED, *TWO, *own, "hydra.run.dir=run", world=3)
    assert (ended.returncode, ended.stderr) == (0, "")
    patches = read_results(tmp_path / "run" / "results.json")["patches"]
    assert patches["test"] % 3 != 0
    assert patches["dev"] % 3 != 0
    # A single process, which knows only the statistics that the checkpoint holds.
    evaluate(evaluation(tmp_path / "run", "trainer.precision=32-true"), tmp_path)
    for split in ("dev", "test"):
        tables = [
            pd.read_csv(path / "predictions" / f"{split}.csv")
            for path in (tmp_path / "run", tmp_path)
        ]
        assert len(tables[0]) == patches[split]
        pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-5)


def test_the_head_on_features_learns_in_two_processes_and_computes_them_once(
    tmp_path: Path,
) -> None:
    views = ("data.augment.stain_jitter=0", "data.augment.brightness=0")
    frozen = (*RUN, *views, "model.freeze_backbone=true")
    counted = changed(tmp_path / "counted", COUNTING)
    for name, start, more in ONE_AND_TWO:
        own = (f"cache={tmp_path}/cache-{name}", f"hydra.run.dir={name}")
        ended = start(tmp_path, *frozen, *more, *own, **counted, COUNTED=f"{tmp_path}/{name}.txt")
        assert (ended.returncode, ended.stderr) == (0, "")
    filled = {name: (tmp_path / f"{name}.txt").read_text() for name in ("one", "two")}
    assert len(filled["one"].splitlines()) == 2  # train with dev, then test
    assert len(filled["two"].splitlines()) == 2
    assert_follows(tmp_path / "two", tmp_path / "one")


def test_the_range_test_of_two_processes_finds_what_that_of_one_finds(
    tmp_path: Path, double: dict[str, str]
) -> None:
    settings = {"ramp": "exponential", "start": "1e-6", "end": "1e-3", "steps": "20"}
    search = [f"callbacks.lr_range_test.{name}={value}" for name, value in settings.items()]
    cycle = ("scheduler=cyclic", "scheduler.half_cycle=3", "scheduler.unit=steps")
    others = {"scheduler=none", "optimizer.lr=0.00001", "model.head.dropout=0"}
    kept = [word for word in RUN if word not in others]
    words = (
        *kept,
        "callbacks=lr_range_test",
        *search,
        *cycle,
        "model.head.hidden=[]",
        "data.batch_size=40",
        "trainer.epochs=1",
    )
    found, used = {}, {}
    for name, start, more in ONE_AND_TWO:
        ended = start(tmp_path, *words, *more, f"hydra.run.dir={name}", **double)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.count("learning rate range test: ") == 1
        found[name] = pd.read_csv(tmp_path / name / "learning_rate_search.csv")
        used[name] = pd.read_csv(tmp_path / name / "metrics.csv")["lr-SGD"].dropna().to_numpy()
    pd.testing.assert_frame_equal(found["two"], found["one"], rtol=1e-4)
    assert used["two"] == pytest.approx(used["one"], rel=1e-4)
    assert used["one"].max() <= 1e-3  # Proposed, since the configured one is .006


def test_a_grid_of_runs_of_two_processes_has_a_folder_for_each_run_and_no_other(
    tmp_path: Path,
) -> None:
    grid = ("-m", *RUN, *TWO, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=grid")
    ended = run(tmp_path, *grid)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["grid"]
    folders = sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir())
    assert folders == ["0", "1", "leaderboard"]
    assert len(list(tmp_path.rglob("results.json"))) == 2


def test_a_job_that_fails_in_one_process_ends_and_the_next_one_runs(tmp_path: Path) -> None:
    grid = ("-m", *RUN, *TWO, "trainer.epochs=1", "seed=0,1", "hydra.sweep.dir=grid")
    failing = changed(tmp_path / "own", FAILING)
    began = time.monotonic()
    ended = run(tmp_path, *grid, **failing)
    assert time.monotonic() - began < 120
    assert ended.returncode == 1
    said = "error: job 0: another process of the training failed: process 1: its disk is broken"
    assert said in ended.stderr.splitlines()
    folders = sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir())
    assert folders == ["0.failed", "1", "leaderboard"]


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in listed.stdout.split()]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_keeps_silent_ends_the_run(
    tmp_path: Path, by: signal.Signals
) -> None:
    often = ("callbacks.checkpoint.last_every=0", "trainer.epochs=500", "hydra.run.dir=run")
    with leading(tmp_path, *RUN, "trainer=ddp_cpu", "trainer.timeout=10", *often) as leader:
        while not (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file():
            assert leader.runs
            time.sleep(0.05)
        (follower,) = children_of(leader.pid)
        os.kill(follower, by)
        ended = leader.ended(timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: another process of the training failed: ")
    assert not Path("/proc", str(follower)).exists()
    assert (tmp_path / "run.failed" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_if_the_first_is_stopped_and_the_run_goes_on(
    tmp_path: Path, by: signal.Signals, single: Path, double: dict[str, str]
) -> None:
    often = ("callbacks.checkpoint.last_every=0", "hydra.run.dir=run")
    with leading(tmp_path, *RUN, *TWO, *often, **double) as leader:
        last = tmp_path / "run" / "checkpoints" / "last.ckpt"
        while not last.is_file():
            assert leader.runs
            time.sleep(0.05)
        followers = children_of(leader.pid)
        assert followers
        os.kill(leader.pid, by)
        ended = leader.ended(timeout=20)
    if by == signal.SIGTERM:
        assert ended.returncode == 143
        assert ended.stderr.endswith(f"error: interrupted: to go on, resume={tmp_path}/run\n")
    until = time.monotonic() + 20
    while any(Path("/proc", str(pid)).exists() for pid in followers):
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.1)
    ended = run(tmp_path, "resume=run", **double)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert_follows(tmp_path / "run", single)


def test_two_machines_of_torchrun_train_together(
    tmp_path: Path, single: Path, double: dict[str, str]
) -> None:
    port = free_port()
    words = (*RUN, *TWO, "trainer.devices=1", "hydra.run.dir=run")
    nodes = []
    for number in range(2):
        start = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        start += [f"--node-rank={number}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        nodes.append(
            subprocess.Popen(
                [sys.executable, *start, "-m", "idc_lightning.train", *words],
                cwd=tmp_path,
                env=environment(double),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    printed = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    for told_once in ("epoch 1/2", "run folder: "):
        assert told_once in printed[0]
        assert told_once not in printed[1]
    assert_follows(tmp_path / "run", single)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_tasks_of_slurm_run_a_grid_together(tmp_path: Path) -> None:
    words = ("-m", *RUN, "trainer=slurm", "trainer.accelerator=cpu", "trainer.epochs=1")
    words += ("seed=0,1", "hydra.sweep.dir=grid")
    slurm = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "7",
        "MASTER_PORT": str(free_port()),
    }
    tasks = side_by_side(
        leading(tmp_path, *words, **slurm, SLURM_PROCID=str(task), SLURM_LOCALID=str(task))
        for task in range(2)
    )
    assert [task.returncode for task in tasks] == [0, 0], tasks
    folders = sorted(path.name for path in (tmp_path / "grid").iterdir() if path.is_dir())
    assert folders == ["0", "1", "leaderboard"]
    assert [path.name for path in tmp_path.iterdir()] == ["grid"]


# Which process this one is


def test_a_process_alone_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started() == ALONE
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of sbatch, without srun
    assert started() == ALONE


def test_slurm_gives_each_task_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "1234567",
    }
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {**os.environ, **given})
        assert started() == Place(5, 8, 1, 4)
        assert os.environ["MASTER_ADDR"] == "gpu07"
        assert os.environ["MASTER_PORT"] == str(15000 + 4567)


@pytest.mark.parametrize(
    ("given", "overrides", "said"),
    [
        (Place(0, 2, 0, 2), ("trainer=cpu",), "2 processes were started on this machine, but"),
        (Place(0, 4, 0, 2), ("trainer=ddp_cpu", "trainer.devices=3"), "take trainer.devices=2"),
    ],
)
def test_other_numbers_of_processes_than_were_started_are_told(
    given: Place, overrides: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "started", lambda: given)
    with told(said):
        place_of(config_of(*overrides).trainer, "cpu")


def test_there_is_a_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert place_of(config_of("trainer=ddp").trainer, "gpu") == Place(world=4, local_world=4)
    assert place_of(config_of("trainer=auto").trainer, "gpu") == ALONE
    with told("trainer.devices=8, but 4 GPUs are present"):
        place_of(config_of("trainer=ddp", "trainer.devices=8").trainer, "gpu")


# How batches are shared


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_share_out_each_batch(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = BatchShare(SequentialSampler(range(23)), 7, drop_last=False)
    whole = [list(range(start, min(start + 7, 23))) for start in range(0, 23, 7)]
    assert list(batches) == whole
    shares = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "world", lambda: count)
        shares.append(list(batches))
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sorted(sum(parts, [])) == batch
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_too_small_to_be_shared_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = Command(tmp_path, capsys, monkeypatch)
    ended = command(*RUN, *TWO, "data.batch_size=3")
    assert ended.code == 1
    assert "data.batch_size=3 is less than 2 patches for each of 2 processes" in ended.err
    assert ended.left == []
