"""Ctrl-C and a request to end from the system: the first finishes the step and keeps what was trained."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
SAID = b"interrupted; the same command goes on\n"
SHOW_CURSOR = b"\x1b[?25h"  # which a live display hides
IMPORTS = "<frozen importlib._bootstrap>"


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
        before = {each: signal.getsignal(each) for each in SIGNALS}  # known before the first can come
        try:
            for each in SIGNALS:
                signal.signal(each, ask)
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def run_command(command: Callable[[], int], said: bytes = SAID) -> NoReturn:
    """Carry out a command and end the process with its exit code, 130 where it was interrupted before it listened.

    What the command has said stands: a later signal ends the process at once, with that code and without a traceback.
    `said` tells of an interruption that the command does not heed; a worker is silent, as whoever started it speaks.
    """
    atexit.register(_ignore_interrupts)  # first in, so last out: after it the interpreter would die of the signal
    ending = _Ending(said)
    sys.unraisablehook = ending.on_unraisable
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as for a job in the background
            signal.signal(signal.SIGINT, ending.on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # whoever starts a worker blocks it until here
        ending.code = _code_of(command)
    except KeyboardInterrupt:
        ending.code = INTERRUPTED
        ending.say()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    sys.exit(ending.code)


def _code_of(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as ended:  # argparse's
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)


class _Ending:
    """What Ctrl-C does: the first raises KeyboardInterrupt, so that what is open is closed; a later one ends at once.

    `code` is that of a command that has ended: there is nothing left to interrupt.
    """

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.code: int | None = None
        self.raised = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.code is None and not self.raised:
            if _imports(frame):  # nothing is open, and C++ that is being loaded aborts where this is raised
                self.say()
                self.end()
            self.raised = True
            raise KeyboardInterrupt
        self.end()

    def on_unraisable(self, unraisable: "UnraisableHookArgs") -> None:
        """Inside a callback, such as one that frees an object, Python would swallow the interruption and go on."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self.say()
            self.end()
        sys.__unraisablehook__(unraisable)

    def say(self) -> None:
        with suppress(OSError):  # nobody reads it
            os.write(2, self.said)

    def end(self) -> NoReturn:
        with suppress(OSError, ValueError):
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR)
        os._exit(INTERRUPTED if self.code is None else self.code)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORTS:
            return True
        frame = frame.f_back
    return False


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
