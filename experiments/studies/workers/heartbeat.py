"""The heartbeat of a worker while it works, from a thread of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from experiments.studies.queue.trial_queue import TrialQueue

BEAT_SECONDS = 1.0


@dataclass
class Progress:
    """What this worker has done, for displays."""

    trial_steps: int = 0
    trials: int = 0
    pack: int = 0
    began: float = field(default_factory=time.monotonic)

    def tree(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self.began, 1)
        return {"trial_steps": self.trial_steps, "trials": self.trials, "pack": self.pack, "seconds": seconds}


@contextmanager
def beating(queue: TrialQueue, progress: Progress) -> Iterator[None]:
    """Heartbeats all the while: a step may take longer than the grace."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with suppress(Exception):  # the main thread meets the same trouble and tells it
                queue.beat(progress.tree())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
