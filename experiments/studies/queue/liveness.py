"""Which workers of a study are alive: each writes heartbeats, each times those of the others by its own clock alone."""

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

BEATS_PER_GRACE = 6
PREFIX = "worker:"


@dataclass(frozen=True)
class WorkerSeen:
    """`stale_seconds`: since this process saw the last heartbeat; `last_seen_at`: UTC by the worker's clock."""

    name: str
    stale_seconds: float
    last_seen_at: str
    progress: Mapping[str, Any]


class StalenessClock:
    """How long each worker has been without a heartbeat.

    A worker counts its heartbeats; an observer sees the count change or stand still. No clock of another machine is
    read. What is added up is the time between two updates, each at most half the grace: an observer that was itself
    suspended for an hour, with all the others, has not missed an hour of heartbeats.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.last_update = clock()
        self.counts: dict[str, Hashable] = {}
        self.seconds: dict[str, float] = {}

    def update(self, counts: Mapping[str, Hashable], grace: Mapping[str, float]) -> dict[str, float]:
        """Seconds without a heartbeat by worker: 0 for one that is new or has written one since the last update."""
        now = self.clock()
        gap, self.last_update = now - self.last_update, now
        self.seconds = {
            worker: self.seconds[worker] + min(gap, grace[worker] / 2)
            if worker in self.counts and self.counts[worker] == count
            else 0.0
            for worker, count in counts.items()
        }
        self.counts = dict(counts)
        return self.seconds


class Liveness:
    """The heartbeats of this worker and of the others, kept with the study."""

    def __init__(self, store: Store, study_id: int, grace: float, worker: str | None = None) -> None:
        self.store = store
        self.study_id = study_id
        self.grace = grace
        self.worker = worker or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.staleness = StalenessClock()
        self.process = this_process()
        self.count = 0
        self.last_beat_at = -math.inf

    def beat(self, progress: Mapping[str, Any]) -> None:
        """The written heartbeat is not older than a sixth of the grace."""
        now = time.monotonic()
        if now - self.last_beat_at >= self.grace / BEATS_PER_GRACE:
            self.last_beat_at = now
            self.count += 1
            heartbeat = {
                "count": self.count,
                "grace": self.grace,
                "at": utc_now(),
                "process": self.process,
                "progress": dict(progress),
            }
            self.write(self.worker, heartbeat)

    def mark_left(self, worker: str) -> None:
        """It is no longer listed, until its next heartbeat."""
        self.write(worker, {"left": utc_now()})

    def write(self, worker: str, heartbeat: Mapping[str, Any]) -> None:
        with self.store.use() as storage:
            storage.set_study_system_attr(self.study_id, PREFIX + worker, dict(heartbeat))

    def ended(self) -> set[str]:
        """The workers that have not left and whose process on this machine has ended."""
        return {worker for worker, heartbeat in self.heartbeats().items() if has_ended(heartbeat.get("process", {}))}

    def heartbeats(self) -> dict[str, Mapping[str, Any]]:
        """The last heartbeat of each worker that has not left."""
        with self.store.use() as storage:
            written = storage.get_study_system_attrs(self.study_id)
        heartbeats = {
            name.removeprefix(PREFIX): heartbeat for name, heartbeat in written.items() if name.startswith(PREFIX)
        }
        return {name: heartbeat for name, heartbeat in heartbeats.items() if "left" not in heartbeat}

    def observe(self, others: Collection[str]) -> tuple[list[WorkerSeen], set[str]]:
        """The workers that have neither left nor, as far as can be known here, ended; who of all is dead.

        Dead is who had no heartbeat for longer than the grace it announced, or this worker's if it never had one.
        """
        heartbeats = self.heartbeats()
        counts = {name: heartbeats[name]["count"] if name in heartbeats else None for name in {*heartbeats, *others}}
        grace = {name: heartbeats[name]["grace"] if name in heartbeats else self.grace for name in counts}
        silent = self.staleness.update(counts, grace)
        seen = [
            WorkerSeen(name, silent[name], heartbeat["at"], heartbeat["progress"])
            for name, heartbeat in sorted(heartbeats.items())
            if not has_ended(heartbeat.get("process", {}))
        ]
        return seen, {name for name in counts if silent[name] > grace[name]} - {self.worker}


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
