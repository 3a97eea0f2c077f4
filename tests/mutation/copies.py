"""Copies of the project in which tests run, each in processes that have imported what is slow to import."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FORK = get_context("fork")
OPTIONS = ("-o", "addopts=", "-m", "not slow and not acceptance and not gpu", "-q", "--tb=no", "-p",
           "no:cacheprovider", "--strict-markers")  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a process does in a copy of the project."""

    work: Callable[..., None]
    arguments: tuple[Any, ...]
    changes: tuple[str, ...] = ()


def a_copy(folder: Path) -> Path:
    """The files that git knows or would take, with byte code that is checked by what a file holds, not by its time."""
    names = subprocess.run(
        ("git", "ls-files", "-co", "--exclude-standard"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in names.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    command = (sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", ".")
    subprocess.run(command, cwd=folder, check=True)
    return folder


def on_copies(tasks: Sequence[Task], original: Path, copies: Sequence[Path]) -> Iterator[tuple[Task, int, float]]:
    """Each task in a process of its own, one at a time on each copy: it, its exit code and its seconds, as they end."""
    waiting, free = list(tasks), list(copies)
    running: dict[Any, tuple[BaseProcess, Task, Path, float]] = {}
    while waiting or running:
        while waiting and free:
            task, copy = waiting.pop(0), free.pop()
            process = FORK.Process(target=task.work, args=(copy, *task.arguments))
            process.start()
            running[process.sentinel] = (process, task, copy, time.perf_counter())
        for sentinel in connection.wait(list(running)):
            process, task, copy, started = running.pop(sentinel)
            process.join()
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)  # what a test left behind
            for path in task.changes:
                shutil.copy(original / path, copy / path)
            free.append(copy)
            yield task, process.exitcode or 0, time.perf_counter() - started


def in_copy(copy: Path, log: Path) -> None:
    """Make this process one that runs the copy's tests: its folder, its modules, its own group, nothing on screen."""
    os.setsid()
    os.chdir(copy)
    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ["PYTHONPATH"] = str(copy)
    sys.dont_write_bytecode = True
    others = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, Path(__file__).parent)]
    sys.path[:] = [str(copy), str(copy / "tests"), *others]


def file_of(test: str) -> str:
    return test.partition("::")[0]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
