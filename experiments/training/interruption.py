"""Ctrl-C and a request to end from the system: the first finishes the step and keeps what was trained."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The work was interrupted as asked, after a step was finished and a checkpoint written."""


class Interruption:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, the first signal asks to stop after the step that runs; the second does what it always does."""

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            for each, handler in before.items():
                signal.signal(each, handler)

        if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
            yield
            return
        before = {each: signal.signal(each, ask) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def run_command(command: Callable[[], int]) -> NoReturn:
    """Carry out a command and end the process with its exit code, 130 where it was interrupted before it listened.

    What the command has said stands: a later signal ends the process at once, with that code and without a traceback.
    """
    atexit.register(_ignore_signals)  # first in, so last out: after it the interpreter would die of the signal
    code = 130
    try:
        with suppress(KeyboardInterrupt):
            code = command()
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
    except KeyboardInterrupt:  # the second came between these lines
        _ignore_signals()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    sys.exit(code)


def _ignore_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
