"""The worker processes of one start of a study: begun, watched, replaced when they die, and asked to stop."""

import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from experiments.studies.queue.storage import QueueError
from experiments.studies.workers.attempts import ATTEMPTS
from experiments.studies.workers.prestarted import Process, new_worker
from experiments.studies.workers.worker_process import DONE, FAULTY, STOPPED, WorkerSpec
from experiments.training.checkpoint import CHECKPOINT

DEATHS_IN_A_ROW = 5  # without progress in between: what kills one will kill the next
TAIL_LINES = 12
STOP_SECONDS = 30.0  # for a step and the checkpoints of a pack


class WorkerError(RuntimeError):
    """Workers cannot go on; the text is what they said."""


@dataclass
class WorkerProcess:
    """One worker process, where it writes, and from where on in that file."""

    name: str
    process: Process
    log: Path
    begins: int

    def said(self) -> str:
        """The end of its log."""
        with self.log.open("rb") as file:
            file.seek(self.begins)
            return "\n".join(file.read().decode(errors="replace").splitlines()[-TAIL_LINES:])


class WorkerPool:
    """As a context manager it leaves no process behind.

    `requeue_dead` gets the names of workers that have ended; `progress` says how far the study is: more is greater.
    `prestarted` are workers without a spec, which are used first.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        requeue_dead: Callable[[list[str]], object],
        progress: Callable[[], tuple[int, int]],
        prestarted: list[Process] | None = None,
    ) -> None:
        self.spec, self.requeue_dead, self.progress, self.prestarted = spec, requeue_dead, progress, prestarted or []
        self.reached = (-1, -1)  # at the last death
        self.workers: list[WorkerProcess] = []
        self.started = self.deaths = 0
        self.stopping = self.stopped_by_others = False

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
        if self.workers:
            with suppress(QueueError):  # what happened first is what is told, and the next start does the same
                self.requeue_dead([worker.name for worker in self.workers])

    def start(self, workers: int) -> None:
        for _ in range(workers):
            self._start_one()

    def ask_to_stop(self) -> None:
        """Every worker finishes its step, writes checkpoints, gives its trials back and ends."""
        if not self.stopping:
            self.stopping = True
            for worker in self.workers:
                _close(worker)

    def end(self) -> None:
        """Every worker has stopped as asked; one that does not within STOP_SECONDS is left to be killed."""
        self.ask_to_stop()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=max(0.0, deadline - time.monotonic()))

    def watch(self) -> list[str]:
        """Notice who has ended, and replace who died; what there is to tell.

        Raises: WorkerError for what the user has to mend, and when workers die one after the other.
        """
        gone = [worker for worker in self.workers if worker.process.poll() is not None]
        self.workers = [worker for worker in self.workers if worker not in gone]
        if gone:
            self.requeue_dead([worker.name for worker in gone])
        return [told for worker in gone if (told := self._after(worker))]

    def _after(self, worker: WorkerProcess) -> str:
        code = worker.process.returncode
        _close(worker)
        if code == DONE:
            return ""
        if code == FAULTY:
            errors = [line for line in worker.said().splitlines() if line.startswith("error: ")]
            silent = f"a worker had to stop and could not write down why in {worker.log}: is the disk full?"
            raise WorkerError((errors or [worker.said() or silent])[-1].removeprefix("error: "))
        if code == STOPPED or self.stopping:
            self.stopped_by_others |= not self.stopping
            return ""
        reached = self.progress()
        self.deaths = 1 if reached > self.reached else self.deaths + 1
        self.reached = reached
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with an error (exit code {code})"
        if self.deaths >= DEATHS_IN_A_ROW:
            raise WorkerError(
                f"{self.deaths} workers died without progress in between; the last one {how}; if it was memory, "
                f"--pack 1 needs less, or fewer --workers. Its log, {worker.log}, ends with:\n{worker.said()}"
            )
        self._start_one()
        said = f":\n{worker.said()}" if worker.said() else ""
        return f"a worker {how}; its trials go on from their checkpoints in another one{said}"

    def _start_one(self) -> None:
        self.started += 1
        name = f"{self.spec.name}.{self.started}"
        log = self.spec.runs_dir / self.spec.study.config["name"] / "logs" / f"worker-{self.started}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        process = self.prestarted.pop() if self.prestarted else new_worker()
        self.workers.append(WorkerProcess(name, process, log, begins=log.stat().st_size))
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # one that has died already is noticed by `watch`
            process.stdin.write(pickle.dumps(replace(self.spec, name=name, log=log)))
            process.stdin.flush()


def steps_kept(folder: Path) -> int:
    """The steps in all checkpoints of a study's unfinished trials, of several of one trial the most."""
    found: dict[str, int] = {}
    for path in (folder / ATTEMPTS).glob(f"*/{CHECKPOINT}"):
        with suppress(OSError, SafetensorError), safe_open(path, framework="numpy") as file:
            trial = path.parent.name.rpartition(".")[0]
            found[trial] = max(found.get(trial, 0), int(file.metadata()["step"]))
    return sum(found.values())


def _close(worker: WorkerProcess) -> None:
    assert worker.process.stdin is not None
    with suppress(BrokenPipeError):
        worker.process.stdin.close()
