"""Python processes that start in milliseconds: forks of a server that has imported what is slow to import.

Each has a folder, an environment, streams and an exit code of its own, and is killed like any other process; it only
does not import torch again. Where the start itself is the question, tests start the real interpreter.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from project_paths import ROOT

PRELOADED = (  # not wandb: its folder of temporary files is made by the import, and removed by the first that ends
    "analysis.figures.spectra", "analysis.spectra", "analysis.spectra_tables", "experiments.plan", "experiments.runner",
    "experiments.studies.workers.worker_process", "experiments.tasks.planted", "forked_python", "pytest",
    "scipy.linalg",
)  # fmt: skip
ENVIRONMENT = {  # of the server: what Python reads when it starts, and torch when it is imported
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "PYTHONIOENCODING": "utf-8",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
POLLING = threading.Lock()  # multiprocessing reads an exit code once, and polls every process when it starts another


class ForkedPython:
    """The part of `subprocess.Popen` that is used, for a command of `sys.executable` and a script.

    `stdin` is a pipe; the other streams are appended to files, or go where those of this process go.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: Path | None = None,
        stderr: Path | None = None,
    ) -> None:
        executable, *words = map(str, command)
        assert executable == sys.executable
        context = _server()
        read, write = context.Pipe(duplex=False)
        environment = dict(os.environ if env is None else env)
        self._process = context.Process(
            target=_run_script, args=(words, cwd or Path.cwd(), environment, read, stdout, stderr), daemon=True
        )
        with POLLING:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.stdin = os.fdopen(os.dup(write.fileno()), "wb")
        read.close()
        write.close()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with POLLING:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired("a forked Python", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_python(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured output."""
    with TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = ForkedPython(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        process.stdin.close()
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(command), code, stdout.read_text("utf-8"), stderr.read_text("utf-8"))


def forked_worker() -> ForkedPython:
    """In the place of `experiments.studies.workers.prestarted.new_worker`."""
    return ForkedPython([sys.executable, ROOT / "experiments" / "study.py", "--worker"])


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with patch.dict(os.environ, ENVIRONMENT):
        forkserver.ensure_running()
    return context


def _run_script(
    words: list[str],
    folder: Path,
    environment: Mapping[str, str],
    stdin: connection.Connection,
    stdout: Path | None,
    stderr: Path | None,
) -> None:
    """Be the script, in a process of the server's."""
    os.dup2(stdin.fileno(), 0)
    stdin.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, path in ((1, stdout), (2, stderr)):
        if path is not None:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:  # as an interpreter does, and multiprocessing does not in every version of Python
        threading._shutdown()
        atexit._run_exitfuncs()
