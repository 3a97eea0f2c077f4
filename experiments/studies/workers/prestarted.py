"""Worker processes that get ready while their driver does: what takes both longest is to import torch."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENTRY = Path(__file__).resolve().parents[2] / "study.py"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Process = subprocess.Popen[bytes]


def new_worker() -> Process:
    """A worker that waits for its spec; the spec says how many threads it has and where it writes its log.

    Ctrl-C, which reaches it too, waits until it listens: Python itself would print a traceback while it starts.
    """
    environment = os.environ | dict.fromkeys(THREADS, "1")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen([sys.executable, str(ENTRY), "--worker"], env=environment, stdin=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def prestarted(count: int) -> Iterator[list[Process]]:
    """So many workers without a spec; whoever gives one a spec takes it out. Afterwards none is left."""
    waiting = [new_worker() for _ in range(count)]
    try:
        yield waiting
    finally:
        for process in waiting:
            process.kill()
            process.wait()
