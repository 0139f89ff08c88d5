"""Several processes that train one run: how they find each other, and what they tell each other.

The first process, of rank 0, leads: it alone reads the command line, makes ready the data, writes
the run folder and runs the jobs of a sweep. The others follow: they wait for a job, take part in
its training, and wait for the next one. On one machine the leader starts them; torchrun and Slurm
start all of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from idc_lightning.config import Config, TrainerConfig, parse
from idc_lightning.errors import IDCError

FOREVER = timedelta(days=30)
"""How long a follower waits for the next job, which ends at once if the leader does."""

CONNECTS = timedelta(minutes=30)
"""How long a process waits for the one that leads to be there."""

LEAVES = 10.0
"""Seconds that a follower may take to end before it is killed, or to say why it failed."""

END = "end"
"""In place of a job: there are no more."""


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is.

    Attributes:
        rank: Its number among all.
        world: Number of all.
        local_rank: Its number on its machine.
        local_world: Number of those on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the first one."""
        return self.rank == 0


ALONE = Place()


def started() -> Place:
    """The place that torchrun, Slurm or the leader has given to this process; alone without them.

    Slurm's variables are translated to those of torchrun, by which processes find each other.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # srun sets it, sbatch alone doesn't
    if "RANK" not in os.environ and tasks > 1:
        nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
        first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])
        os.environ |= {
            "RANK": os.environ["SLURM_PROCID"],
            "WORLD_SIZE": str(tasks),
            "LOCAL_RANK": os.environ["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(tasks // nodes),
            "MASTER_ADDR": os.environ.get("MASTER_ADDR", first),
            # Of each job another one, since several may share a machine.
            "MASTER_PORT": os.environ.get(
                "MASTER_PORT", str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000)
            ),
        }
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return ALONE
    return Place(*(int(os.environ[name]) for name in names))


def place_of(config: TrainerConfig, accelerator: str) -> Place:
    """The place of this process in a training.

    Args:
        config: Says how many processes each machine has.
        accelerator: ``"cpu"`` or ``"gpu"``, as it is used.

    Raises:
        IDCError: If other numbers were started, or there are fewer GPUs.
    """
    given = started()
    present = torch.cuda.device_count() if accelerator == "gpu" else None
    wanted = config.devices
    if wanted == "auto":
        wanted = given.local_world if given.world > 1 else (present or 1)
    if given.world > 1 and wanted != given.local_world:
        raise IDCError(
            f"{given.local_world} processes were started on this machine, but "
            f"trainer.devices={config.devices}: take trainer.devices={given.local_world}"
        )
    if present is not None and wanted > present:
        raise IDCError(f"trainer.devices={wanted}, but {present} GPUs are present")
    return given if given.world > 1 else Place(world=wanted, local_world=wanted)


class Environment(LightningEnvironment):
    """What Lightning asks of processes that aren't started by it.

    Args:
        place: Of this process.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place
        self.set_global_rank(place.rank)
        self.set_world_size(place.world)

    @property
    def creates_processes_externally(self) -> bool:
        """Always."""
        return True

    def local_rank(self) -> int:
        """Number of the process on its machine."""
        return self._place.local_rank

    def node_rank(self) -> int:
        """Number of the machine."""
        return self._place.rank // self._place.local_world

    def teardown(self) -> None:
        """Nothing was set."""


@dataclass
class _Channel:
    """Through what the leader tells the followers of jobs; there while it has any."""

    store: Store
    jobs: int = 0


_external: _Channel | None = None
"""To processes that torchrun or Slurm has started, which stay for all jobs of a sweep."""


@contextmanager
def leading(place: Place, config: Config, folder: Path, ready: object) -> Iterator[None]:
    """Let the followers take part in a job, whose training is the block.

    Args:
        place: Of this process, of rank 0.
        config: Of the job.
        folder: Its run folder.
        ready: What the followers needn't make themselves.

    Raises:
        IDCError: If a follower fails, with what it says.
    """
    if place.world == 1:
        yield
        return
    with _followers(place) as channel:
        channel.jobs += 1
        job = {
            "config": config.model_dump(mode="json"),
            "folder": str(folder.absolute()),
            "within": str(Path.cwd()),  # where relative places of the configuration begin
        }
        channel.store.set(f"job{channel.jobs}", json.dumps(job))
        try:
            with _group(channel, place, config.trainer):
                dist.broadcast_object_list([ready], src=0)
                yield
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            told = _told(channel) or "it was stopped, perhaps for want of memory"
            raise IDCError(f"another process of the training failed: {told}") from error


def follow(take_part: Callable[[Config, Path, Any], object]) -> None:
    """Take part in the jobs of the leader until it has no more.

    Args:
        take_part: Called for each with its configuration, its run folder and what is ready.
    """
    for by in (signal.SIGINT, signal.SIGTERM):  # it ends with the leader, which saves first
        signal.signal(by, signal.SIG_IGN)
    place = started()
    channel = _Channel(_rendezvous())
    channel.store.set(f"here{place.rank}", "")
    while True:
        channel.jobs += 1
        try:
            channel.store.wait([f"job{channel.jobs}"], FOREVER)
            job = json.loads(channel.store.get(f"job{channel.jobs}"))
        except RuntimeError:  # the leader is gone
            return
        if job == END:
            return
        config: Config = parse(Config, job["config"])
        try:
            os.chdir(job["within"])
            with _group(channel, place, config.trainer):
                ready: list[Any] = [None]
                dist.broadcast_object_list(ready, src=0)
                take_part(config, Path(job["folder"]), ready[0])
        except Exception as error:
            if _is_lost(error):
                continue
            with suppress(RuntimeError):
                reason = str(error) if isinstance(error, IDCError) else repr(error)
                channel.store.set(f"failed{channel.jobs}", f"process {place.rank}: {reason}")


@contextmanager
def meeting() -> Iterator[None]:
    """Let followers that torchrun or Slurm has started wait for jobs of the block."""
    global _external
    if started().world == 1:
        yield
        return
    _external = _Channel(_rendezvous())
    try:
        yield
    finally:
        _external.store.set(f"job{_external.jobs + 1}", json.dumps(END))
        _external = None


@contextmanager
def _followers(place: Place) -> Iterator[_Channel]:
    """The followers: those that wait already, or others that are started for the block."""
    if _external is not None:
        yield _external
        return
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    channel = _Channel(_of_this_start(server))
    processes = [_start(rank, place, server.port) for rank in range(1, place.world)]
    try:
        for rank, process in enumerate(processes, 1):
            while not channel.store.check([f"here{rank}"]):
                if process.poll() is not None:
                    raise IDCError(f"process {rank} of the training could not be started")
                time.sleep(0.05)
        yield channel
        channel.store.set(f"job{channel.jobs + 1}", json.dumps(END))
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LEAVES)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(rank: int, place: Place, port: int) -> subprocess.Popen[bytes]:
    """Start a follower on this machine."""
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(place.world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(place.local_world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "idc_lightning.train"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _rendezvous() -> Store:
    """The store of all processes, as their environment says."""
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=started().leads and not kept_by_torchrun,
        wait_for_workers=False,
        timeout=CONNECTS,
    )
    return _of_this_start(store)


def _of_this_start(store: Store) -> Store:
    """A store apart from others, since torchrun keeps it when it starts the processes again."""
    return PrefixStore(f"idc{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def _group(channel: _Channel, place: Place, config: TrainerConfig) -> Iterator[None]:
    """Join the processes of a job, which share the threads of their machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // place.local_world))
    gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=PrefixStore(f"group{channel.jobs}", channel.store),
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(seconds=config.timeout),
        )
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(threads)


def _told(channel: _Channel) -> str | None:
    """What a follower said of its failure, if it says it soon."""
    key = f"failed{channel.jobs}"
    until = time.monotonic() + LEAVES
    while time.monotonic() < until:
        if channel.store.check([key]):
            return str(channel.store.get(key).decode())
        time.sleep(0.1)
    return None


def _is_lost(error: Exception) -> bool:
    """Whether an error says that another process closed its connections, or kept silent."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )


def rank() -> int:
    """Number of this process in a training, 0 in one of a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes in a training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_from_leader(tensors: Iterator[Tensor]) -> None:
    """Give all processes the values that tensors have in the leader, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def mean_over_ranks(tensors: Iterator[Tensor]) -> None:
    """Replace tensors by their means over all processes, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= world()


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world() == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def gathered(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Join tensors [n, ...] of all processes, whose n may differ, along their first dimension."""
    if world() == 1:
        return parts
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, tuple(part.cpu() for part in parts))
    device = parts[0].device
    return tuple(torch.cat(of_all).to(device) for of_all in zip(*found, strict=True))
