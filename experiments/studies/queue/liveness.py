"""Which workers of a study are there: each gives signs of life, each listens to the others by its own clock alone."""

import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from experiments.studies.queue.processes import has_ended, this_process
from experiments.studies.queue.storage import Store

SIGNS_PER_GRACE = 6
PREFIX = "worker:"


@dataclass(frozen=True)
class WorkerSeen:
    """`silent_seconds`: for how long this process has seen no sign of life; `heard_at`: UTC by the worker's clock."""

    name: str
    silent_seconds: float
    heard_at: str
    progress: Mapping[str, Any]


class Silence:
    """How long each worker has been silent.

    A worker counts its signs of life; an observer sees the count change or stand still. No clock of another machine is
    read. What is added up is the time between two looks, each at most half the grace: an observer that was itself
    stopped for an hour, with all the others, has not heard an hour of silence.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.last_look = clock()
        self.counts: dict[str, Hashable] = {}
        self.seconds: dict[str, float] = {}

    def look(self, counts: Mapping[str, Hashable], grace: Mapping[str, float]) -> dict[str, float]:
        """Seconds of silence by worker: 0 for one that is new or has given a sign since the last look."""
        now = self.clock()
        gap, self.last_look = now - self.last_look, now
        self.seconds = {
            worker: self.seconds[worker] + min(gap, grace[worker] / 2)
            if worker in self.counts and self.counts[worker] == count
            else 0.0
            for worker, count in counts.items()
        }
        self.counts = dict(counts)
        return self.seconds


class Attendance:
    """The signs of life of this worker and of the others, kept with the study."""

    def __init__(self, store: Store, study_id: int, grace: float, worker: str | None = None) -> None:
        self.store = store
        self.study_id = study_id
        self.grace = grace
        self.worker = worker or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.silence = Silence()
        self.process = this_process()
        self.count = 0
        self.said_at = -math.inf

    def beat(self, progress: Mapping[str, Any]) -> None:
        """A sign of life is not older than a sixth of the grace."""
        now = time.monotonic()
        if now - self.said_at >= self.grace / SIGNS_PER_GRACE:
            self.said_at = now
            self.count += 1
            sign = {
                "count": self.count,
                "grace": self.grace,
                "at": utc_now(),
                "process": self.process,
                "progress": dict(progress),
            }
            self.say(self.worker, sign)

    def say_left(self, worker: str) -> None:
        """It is no longer listed, until it gives another sign."""
        self.say(worker, {"left": utc_now()})

    def say(self, worker: str, sign: Mapping[str, Any]) -> None:
        with self.store.use() as storage:
            storage.set_study_system_attr(self.study_id, PREFIX + worker, dict(sign))

    def ended(self) -> set[str]:
        """The workers that have not left and whose process on this machine has ended."""
        return {worker for worker, sign in self.signs().items() if has_ended(sign.get("process", {}))}

    def signs(self) -> dict[str, Mapping[str, Any]]:
        """The last sign of each worker that has not left."""
        with self.store.use() as storage:
            said = storage.get_study_system_attrs(self.study_id)
        signs = {name.removeprefix(PREFIX): sign for name, sign in said.items() if name.startswith(PREFIX)}
        return {name: sign for name, sign in signs.items() if "left" not in sign}

    def listen(self, others: Collection[str]) -> tuple[list[WorkerSeen], set[str]]:
        """The workers that have not left, and who of them or of `others` is dead.

        Dead is who was silent for longer than the grace it announced, or this worker's if it never said anything.
        """
        signs = self.signs()
        counts = {name: signs[name]["count"] if name in signs else None for name in {*signs, *others}}
        grace = {name: signs[name]["grace"] if name in signs else self.grace for name in counts}
        silent = self.silence.look(counts, grace)
        seen = [WorkerSeen(name, silent[name], sign["at"], sign["progress"]) for name, sign in sorted(signs.items())]
        return seen, {name for name in counts if silent[name] > grace[name]} - {self.worker}


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
