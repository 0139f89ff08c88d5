"""Commands in processes of their own, which needn't import torch again: that costs seconds."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

import idc_lightning

PACKAGE = Path(idc_lightning.__file__).parent
TRAIN = PACKAGE / "train.py"
"""The file that idc-train is."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["idc_lightning.train", "torch.utils.tensorboard"])


@dataclass
class Forked:
    """A process that was started, much like a `subprocess.Popen`."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        """Its number, which is that of its process group, too."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        """Whether it hasn't ended yet."""
        return self.process.exitcode is None

    def kill(self, *, alone: bool = False) -> None:
        """Kill it, and unless ``alone`` what it has started."""
        if self.runs:
            with suppress(ProcessLookupError):
                (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        self.process.join()

    def ended(self, timeout: float = 240) -> CompletedProcess[str]:
        """Wait until it ends.

        Raises:
            TimeoutError: It runs after so many seconds.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutError(f"a process took more than {timeout} s: {self.err.read_text()}")
        code = self.process.exitcode
        return CompletedProcess([], code, self.out.read_text(), self.err.read_text())


@contextmanager
def forked(
    script: Path, words: Sequence[str], *, within: Path, environment: Mapping[str, str]
) -> Iterator[Forked]:
    """Run a file as ``python script words`` would, until the block ends at the latest.

    Args:
        script: Path of the file.
        words: Its arguments.
        within: Folder in which it starts.
        environment: Its whole environment.
    """
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = FORKS.Process(
            target=_run, args=(script, [*words], within, dict(environment), out, err)
        )
        process.start()
        started = Forked(process, out, err)
        try:
            yield started
        finally:
            started.kill()


def run_script(
    script: Path,
    words: Sequence[str],
    *,
    within: Path,
    environment: Mapping[str, str],
    killed_after: float | None = None,
    alone: bool = False,
) -> CompletedProcess[str]:
    """Run a file to its end.

    Args:
        script, words, within, environment: As of `forked`.
        killed_after: Seconds after which it is killed, which is what is tested.
        alone: Whether the processes that it has started are left alive then.
    """
    with forked(script, words, within=within, environment=environment) as started:
        if killed_after is not None:
            started.process.join(killed_after)
            started.kill(alone=alone)
        return started.ended()


def side_by_side(
    starts: Iterable[AbstractContextManager[Forked]],
) -> list[CompletedProcess[str]]:
    """Start several processes, each as of `forked`, and wait until all have ended."""
    with ExitStack() as stack:
        started = [stack.enter_context(start) for start in starts]
        return [each.ended() for each in started]


def _run(
    script: Path,
    words: list[str],
    within: Path,
    environment: dict[str, str],
    out: Path,
    err: Path,
) -> None:
    os.setsid()  # so that it can be killed with all that it starts
    # Else what this process starts would be started by a server, too, which imports torch again and
    # outlives a kill.
    multiprocessing.set_start_method(None, force=True)
    for place, stream in ((out, sys.stdout), (err, sys.stderr)):
        with place.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(within)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")
