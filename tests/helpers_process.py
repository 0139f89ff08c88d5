"""Commands in processes of their own, which needn't import torch again: that costs seconds."""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["idc_lightning.train", "torch.utils.tensorboard"])


def run_script(
    script: Path,
    words: Sequence[str],
    *,
    within: Path,
    environment: Mapping[str, str],
    timeout: float = 240,
    killed_after: float | None = None,
    alone: bool = False,
) -> CompletedProcess[str]:
    """Run a file as ``python script words`` would.

    Args:
        script: Path of the file.
        words: Its arguments.
        within: Folder in which it starts.
        environment: Its whole environment.
        timeout: Seconds after which it is killed, which fails the test.
        killed_after: Seconds after which it is killed, which is what is tested.
        alone: Whether the processes that it has started are left alive then.
    """
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        process = FORKS.Process(
            target=_run, args=(script, [*words], within, dict(environment), out, err)
        )
        process.start()
        assert process.pid is not None
        process.join(timeout if killed_after is None else killed_after)
        if process.exitcode is None:
            with suppress(ProcessLookupError):
                (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            process.join()
            if killed_after is None:
                raise TimeoutError(f"{script} {' '.join(words)} took more than {timeout} s")
        return CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


@contextmanager
def started_process(
    words: Sequence[str], *, within: Path, environment: Mapping[str, str]
) -> Iterator[Popen[str]]:
    """A process whose errors are kept, and which doesn't outlive a test that fails meanwhile.

    Args:
        words: Of its command line.
        within: Folder in which it starts.
        environment: Its whole environment.
    """
    with Popen(
        words,
        cwd=within,
        env=environment,
        stdout=DEVNULL,
        stderr=PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


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
