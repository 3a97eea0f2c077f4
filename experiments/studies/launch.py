"""One start of a study: errors are reported before any compute; then workers train until all has ended."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from experiments.models.weights import fingerprint
from experiments.record.earlier_run import count_earlier_runs
from experiments.record.runs_dir import refuse_unusable
from experiments.studies.collect import Collection
from experiments.studies.consistency import (
    check_content,
    check_file,
    check_protocol,
    check_runs_dir,
    refuse_other_bases,
    shared_context,
    warnings_of_arms,
)
from experiments.studies.plan import plan_study
from experiments.studies.protocol.progress import StudyState, enqueue, snapshot, state_of
from experiments.studies.queue.entries import ENDED
from experiments.studies.queue.storage import Address, Patience, QueueError, storage_address
from experiments.studies.queue.trial_queue import GRACE_SECONDS, TrialQueue
from experiments.studies.search.proposer import refuse_impossible_searches
from experiments.studies.spec.study import Study, load_study
from experiments.studies.status import StudyStatus, awake, status_of
from experiments.studies.terminal import StudyView, describe_workers, headline
from experiments.studies.wandb import StudyWandbLogger, study_mode
from experiments.studies.workers.pool import WorkerError, WorkerPool, steps_kept
from experiments.studies.workers.prestarted import Process
from experiments.studies.workers.worker_process import PlainStudy, WorkerSpec, open_queue
from experiments.terminal import Display
from experiments.training.interruption import Interrupted, Interruption

TURN_SECONDS = 0.3
REFRESH_SECONDS = 1.0
REFRESH_SHARE = 0.05  # of one core, for a study with many trials
MIRROR_SECONDS = 1.0  # between two snapshots


class Conclusion(Protocol):
    """What a study says, written down: the lines for the terminal and the files."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def lines(self) -> list[str]: ...


Conclude = Callable[[Study, StudyState, Path], Conclusion]  # from the study, its state and the runs folder


@dataclass(frozen=True)
class LaunchOptions:
    """What was asked for on the command line."""

    file: Path
    overrides: Sequence[str] = ()
    workers: int = 1
    runs_dir: Path = Path("runs")
    storage: str | None = None
    storage_patience: float = 120.0
    plan: bool = False
    sd: float | None = None
    status: bool = False
    pack: int | None = None
    retry_failed: bool = False
    separate_runs: bool = False
    collect: Sequence[Path] = ()
    wandb: str | None = None
    wandb_trials: bool = False


def launch(
    options: LaunchOptions,
    display: Display | None = None,
    *,
    conclude: Conclude,
    prestarted: list[Process] | None = None,
) -> int:
    """Do what was asked; returns 0 when all has ended well, 1 when a trial failed or something is missing.

    `conclude` writes down what the study says once there is something to say; `prestarted` are worker processes that
    wait for their spec.

    Raises: ConfigError, ValueError, OSError, QueueError, WorkerError for what the user has to mend; Interrupted.
    """
    view = StudyView(display or Display())
    study = load_study(options.file, options.overrides)
    address = storage_address(options.storage, runs_dir=options.runs_dir, study=study.name)
    if options.status:
        return show_status(study, address, view, Patience(options.storage_patience, say=view.display.warn))
    for warning in study.warnings:
        view.display.warn(warning)
    for label, points in study.collapsed.items():
        view.display.say(f"{label} stands for {', '.join(points)}: they come to the same configuration")
    for note in study.notes:
        view.display.say(note)
    if options.plan:
        study_mode(options.wandb or study.arms[0].config.wandb.mode)
        plan_study(study, view, address, options.runs_dir, workers=options.workers, pack=options.pack, sd=options.sd)
        return 0
    this = Launch(options, study, address, view, conclude=conclude, prestarted=prestarted or [])
    return this.collect() if options.collect else this.train()


def show_status(study: Study, address: Address, view: StudyView, patience: Patience) -> int:
    """Print the status of the study; nothing is written, and nobody who trains notices."""
    queue = TrialQueue.find(address, study.name, patience=patience)
    if queue is None:
        view.table(status_of(study, state_of(study, {})))
        view.display.say(f"not started yet: there is no study {study.name!r} in {address}")
        return 1
    workers = awake(queue.workers(), within=timedelta(minutes=5))
    status = status_of(study, snapshot(study, queue), workers)
    view.table(status)
    if not status.complete:
        view.display.say(describe_workers(status))
    return _exit_code(status)


class Launch:
    """A study that is started, or started again, on this machine."""

    def __init__(
        self,
        options: LaunchOptions,
        study: Study,
        address: Address,
        view: StudyView,
        *,
        conclude: Conclude,
        prestarted: list[Process],
    ) -> None:
        """Raises: whatever is wrong with the options, the machine, the storage or the folder."""
        self.options, self.study, self.view = options, study, view
        self.conclude, self.prestarted = conclude, prestarted
        self.address, self.runs_dir = address, options.runs_dir.resolve()
        mode = options.wandb or study.arms[0].config.wandb.mode
        study_mode(mode)
        self.context = shared_context(study)
        for warning in warnings_of_arms(study, self.context):
            view.display.warn(warning)
        refuse_impossible_searches(study, self.context)
        _make_writable(self.runs_dir / study.name)
        self.interruption = interruption = Interruption()
        patience = Patience(options.storage_patience, say=view.display.warn, is_over=lambda: interruption.asked)
        self.queue = open_queue(study, address, patience=patience)
        check_file(study, self.queue, options.file)
        check_runs_dir(study, self.queue, self.runs_dir, separate=options.separate_runs)
        self.queue.requeue_dead()
        study_state = snapshot(study, self.queue)
        change = check_protocol(study, self.queue, study_state, self.runs_dir / study.name)
        if change is not None:
            view.display.say(str(change))
        planned = status_of(study, study_state).planned
        self.mirror = StudyWandbLogger(
            study, self.runs_dir, mode=mode, planned=planned, every_trial=options.wandb_trials
        )

    def train(self) -> int:
        """Train what the study wants and has not; then write down what it says."""
        if self.options.retry_failed:
            study_state = snapshot(self.study, self.queue)
            again = enqueue(self.queue, study_state, at_most=len(study_state.wanted), retry_failed=True)
            self.view.display.say(f"{again} trials wait again or for the first time")
        study_state = snapshot(self.study, self.queue)
        if study_state.complete:
            self.view.display.say(f"study {self.study.name}: all {len(study_state.wanted)} trials have ended already")
        else:
            folder = self.runs_dir / self.study.name
            if earlier := count_earlier_runs(folder):
                self.view.display.say(f"{earlier} finished runs of earlier key names in {folder} do not count here")
            self._train(study_state)
        return self._conclude()

    def collect(self) -> int:
        """Bring the run directories of other machines here; then write down what the study says."""
        base_sha256 = self.queue.facts().get("base_sha256") or self._prepare_base()
        collection = Collection(self.study, self.context, base_sha256, self.runs_dir)
        self.view.display.say(str(collection.take(self.options.collect)))
        if not snapshot(self.study, self.queue).complete:
            self.view.display.say("not all trials have ended; the same command without --collect trains the others")
        return self._conclude()

    def _prepare_base(self) -> str:
        """The fingerprint of W0; what takes long is done once, before there are workers to wait for it."""
        with self.view.display.live():
            self.context.read_data(self.view.display.report)
            self.view.display.data(self.context.task.data_notes(), self.context.task.data_warnings())
            return fingerprint(self.context.task.base_model(self.view.display.report).state_dict())

    def _train(self, study_state: StudyState) -> None:
        base_sha256 = self._prepare_base()
        refuse_other_bases(self.study, base_sha256)
        check_content(self.study, self.queue, self.context, base_sha256)
        status = status_of(self.study, study_state)
        workers = min(self.options.workers, status.planned - status.counts["done"] - status.counts["failed"])
        spec = WorkerSpec(
            study=PlainStudy.of(self.study),
            address=self.address,
            runs_dir=self.runs_dir,
            pack=self.options.pack,
            workers=workers,
            name=self.queue.worker,
            base_sha256=base_sha256,
            patience_seconds=self.options.storage_patience,
        )
        with ExitStack() as stack:
            stack.enter_context(self.interruption.heeded())
            pool = stack.enter_context(
                WorkerPool(
                    spec, requeue_dead=self.queue.requeue_dead, progress=self._progress, prestarted=self.prestarted
                )
            )
            stack.enter_context(self.view.live())
            pool.start(workers)
            try:
                self._watch(pool)
            except (QueueError, WorkerError) as error:
                pool.end()  # they have checkpoints to write, and need no queue for that
                if self.interruption.asked and isinstance(error, QueueError):
                    raise Interrupted(f"interrupted: {error}; the same command goes on") from None
                raise

    def _watch(self, pool: WorkerPool) -> None:
        """Until no worker is left.

        Raises: Interrupted when they were interrupted; WorkerError; QueueError.
        """
        refreshed_at, pause = 0.0, 0.0
        while pool.workers:
            if time.monotonic() - refreshed_at >= pause:
                refreshed_at = time.monotonic()
                self._refresh()
                pause = max(REFRESH_SECONDS, (time.monotonic() - refreshed_at) / REFRESH_SHARE)
            for told in pool.watch():
                self.view.display.warn(told)
            if self.interruption.asked and not pool.stopping:
                self.view.display.say("stopping: every worker finishes its step and writes checkpoints")
                pool.ask_to_stop()
            time.sleep(TURN_SECONDS)
        if not snapshot(self.study, self.queue).complete:
            how = "interrupted" if pool.stopping else "the workers were interrupted"
            raise Interrupted(f"{how}, with checkpoints; the same command goes on from there")

    def _refresh(self) -> None:
        """Show the status of the study, and copy what has ended."""
        self.queue.requeue_dead()
        study_state = snapshot(self.study, self.queue)
        alive = [worker for worker in self.queue.workers() if worker.stale_seconds < GRACE_SECONDS]
        status = status_of(self.study, study_state, awake(alive, within=timedelta(hours=1)))
        self.view.show(status)
        self.mirror.follow(study_state, seconds=MIRROR_SECONDS)

    def _progress(self) -> tuple[int, int]:
        """Trials that have ended, and steps that the others would go on from."""
        entries = self.queue.latest().values()
        return sum(e.state in ENDED for e in entries), steps_kept(self.runs_dir / self.study.name)

    def _conclude(self) -> int:
        """Copies and results of what has ended; the exit code."""
        study_state = snapshot(self.study, self.queue)
        status = status_of(self.study, study_state)
        self.mirror.follow(study_state, seconds=float("inf"))
        if study_state.complete:
            self.mirror.conclude(status)
        for warning in self.mirror.warnings:
            self.view.display.warn(warning)
        if study_state.complete:
            self.view.display.say(headline(status))
        else:
            self.view.table(status)
        conclusion = self.conclude(self.study, study_state, self.runs_dir)
        for line in conclusion.lines():
            self.view.display.say(line)
        self.view.display.say(f"written: {', '.join(str(file) for file in conclusion.files)}")
        if self.study.config.hypothesis is not None and study_state.complete:
            members = self.study.config.hypothesis.family or [self.study.name]
            folders = " ".join(str(self.runs_dir / name) for name in members)
            self.view.display.say(f"the low-rank test of it: python analysis/hypothesis.py {folders}")
        return _exit_code(status)


def _make_writable(folder: Path) -> None:
    """Raises: OSError or RecordError where run directories cannot be written."""
    refuse_unusable(folder)
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"{folder}: run directories cannot be written there: {error.strerror or error}; choose another --runs-dir"
        ) from None


def _exit_code(status: StudyStatus) -> int:
    return 0 if status.complete and not status.failures else 1
