"""Ctrl-C and a request to end from the system: the first finishes the step and keeps what was trained."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
