"""Python processes that start in milliseconds: forks of a process that has imported what is slow to import.

Each has a folder, an environment, streams and an exit code of its own, and is killed like any other; what it does not
do is to import torch again. Where the start itself is the question, tests start the real interpreter.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from struct import Struct
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryFile
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
PATHS = str(ROOT), str(ROOT / "tests")
IMPORTED = (  # not wandb: its folder of temporary files is made by the import, and removed by the first that ends
    "analysis.figures", "analysis.spectra", "analysis.spectrum_tables", "experiments.plan", "experiments.runner",
    "experiments.studies.work.worker_process", "experiments.tasks.planted", "scipy.linalg",
)  # fmt: skip
NUMBER = Struct("i")


class ForkedPython:
    """What is used of `subprocess.Popen`, for a command of `sys.executable` and a script, or `-c` and code.

    `stdin` is a pipe; where the other streams go to is given as files, or they are those of this process.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> None:
        executable, *words = map(str, command)
        assert executable == sys.executable
        self._reports, reporting = socket.socketpair()
        read, written = os.pipe()
        streams = [read, stdout.fileno() if stdout else 1, stderr.fileno() if stderr else 2]
        request = {
            "words": words,
            "folder": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
        }
        _starter().ask(request, [reporting.fileno(), *streams])
        reporting.close()
        os.close(read)
        self.stdin = os.fdopen(written, "wb")
        (self.pid,) = NUMBER.unpack(self._reports.recv(NUMBER.size))
        self.returncode: int | None = None
        self._asking = threading.Lock()

    def poll(self) -> int | None:
        return self._ended_within(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended_within(timeout)
        if code is None:
            raise TimeoutExpired("a forked Python", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended_within(self, seconds: float | None) -> int | None:
        with self._asking:
            if self.returncode is None and select.select([self._reports], [], [], seconds)[0]:
                (self.returncode,) = NUMBER.unpack(self._reports.recv(NUMBER.size))
                self._reports.close()
            return self.returncode


def run_python(
    command: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> CompletedProcess[str]:
    """As `subprocess.run` with captured output."""
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = ForkedPython(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        process.stdin.close()
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        for stream in (stdout, stderr):
            stream.seek(0)
        return CompletedProcess(list(command), code, stdout.read().decode(), stderr.read().decode())


def forked_worker() -> ForkedPython:
    """In the place of `experiments.studies.work.spares.new_worker`."""
    return ForkedPython([sys.executable, ROOT / "experiments" / "study.py", "--worker"])


class Starter:
    """The process that is forked; it ends when its standard input does."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair()
        own = {"PYTHONPATH": os.pathsep.join(PATHS), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen([sys.executable, __file__], stdin=theirs, env=os.environ | own)
        self._asking = threading.Lock()

    def ask(self, request: Mapping[str, Any], files: list[int]) -> None:
        with self._asking:
            text = json.dumps(request).encode()
            self._requests.sendall(NUMBER.pack(len(text)))
            socket.send_fds(self._requests, [b"f"], files)
            self._requests.sendall(text)


@cache
def _starter() -> Starter:
    return Starter()


def _serve() -> None:
    """Fork whenever it is asked for: once to wait for the end of the process, once more to be it."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits is not waited for
    with socket.socket(fileno=os.dup(0)) as requests:
        while size := requests.recv(NUMBER.size):
            _, files, _, _ = socket.recv_fds(requests, 1, 4)
            request = json.loads(requests.recv(*NUMBER.unpack(size), socket.MSG_WAITALL))
            if os.fork() == 0:
                requests.close()
                _report(request, *files)
            for file in files:
                os.close(file)


def _report(request: Mapping[str, Any], reports: int, *streams: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if (pid := os.fork()) == 0:
        os.close(reports)
        _become(request, streams)
    os.write(reports, NUMBER.pack(pid))
    os.write(reports, NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    for number, file in enumerate(streams):
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = 1
    try:
        code = _interpret(request["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interpret(words: list[str]) -> int:
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    _serve()
