"""One start of a study: what is faulty is said before any compute; then workers train until all has ended."""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path

from experiments.models.weights import fingerprint
from experiments.studies.collect import Collection
from experiments.studies.consistency import (
    agree_on_content,
    agree_on_file,
    agree_on_protocol,
    agree_on_runs_folder,
    one_setting,
    warnings_of_arms,
)
from experiments.studies.plan import plan_study
from experiments.studies.protocol.progress import Board, fill, look
from experiments.studies.queue.entries import ENDED
from experiments.studies.queue.storage import Address, storage_address
from experiments.studies.queue.trial_queue import GRACE_SECONDS, TrialQueue
from experiments.studies.search.proposer import refuse_impossible_searches
from experiments.studies.spec.study import Study, load_study
from experiments.studies.status import Standing, awake, standing_of, untouched
from experiments.studies.terminal import StudyView, headline
from experiments.studies.wandb import StudyMirror, study_mode
from experiments.studies.workers.pool import Workforce, steps_kept
from experiments.studies.workers.prestarted import Process
from experiments.studies.workers.worker_process import Order, PlainStudy, open_queue
from experiments.terminal import Display
from experiments.training.interruption import Interrupted, Interruption

TURN_SECONDS = 0.3
LOOK_SECONDS = 1.0
SHARE_OF_LOOKING = 0.05  # of one core, for a study whose board is long
MIRROR_SECONDS = 1.0  # between two looks
CONCLUSION = "analysis.study_results.conclusion"  # with pandas and figures: imported only where there is an end


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    file: Path
    settings: Sequence[str] = ()
    workers: int = 1
    runs_dir: Path = Path("runs")
    storage: str | None = None
    plan: bool = False
    status: bool = False
    pack: int | None = None
    retry_failed: bool = False
    separate_runs: bool = False
    collect: Sequence[Path] = ()
    wandb: str | None = None
    wandb_trials: bool = False


def carry_out(request: Request, display: Display | None = None, spares: list[Process] | None = None) -> int:
    """Do what was asked; 0: all has ended well, 1: a trial failed or something is missing. See `spares.py` for those.

    Raises: ConfigError, ValueError, OSError, QueueError, WorkerError for what the user has to mend; Interrupted.
    """
    view = StudyView(display or Display())
    study = load_study(request.file, request.settings)
    address = storage_address(request.storage, runs_dir=request.runs_dir, study=study.name)
    if request.status:
        return show_status(study, address, view)
    for warning in study.warnings:
        view.display.warn(warning)
    for label, points in study.collapsed.items():
        view.display.say(f"{label} stands for {', '.join(points)}: they come to the same configuration")
    for note in study.notes:
        view.display.say(note)
    if request.plan:
        plan_study(study, view, workers=request.workers, pack=request.pack)
        return 0
    start = Start(request, study, address, view, spares or [])
    return start.collect() if request.collect else start.conduct()


def show_status(study: Study, address: Address, view: StudyView) -> int:
    """Print how the study stands; nothing is written, and nobody who trains notices."""
    queue = TrialQueue.find(address, study.name)
    if queue is None:
        view.table(standing_of(study, untouched(study)))
        view.display.say(f"nothing of it was started yet (no study {study.name!r} in {address})")
        return 1
    workers = awake(queue.workers(), within=timedelta(minutes=5))
    standing = standing_of(study, look(study, queue), workers)
    view.table(standing)
    view.display.say(f"{standing.workers} workers gave signs of life in the last 5 minutes")
    return _exit_code(standing)


class Start:
    """A study that is started, or started again, on this machine."""

    def __init__(
        self, request: Request, study: Study, address: Address, view: StudyView, spares: list[Process]
    ) -> None:
        """Raises: whatever is faulty about the request, the machine, the storage or the folder."""
        self.request, self.study, self.view, self.spares = request, study, view, spares
        self.address, self.runs_dir = address, request.runs_dir.resolve()
        mode = request.wandb or study.arms[0].config.wandb.mode
        study_mode(mode)
        self.setting = one_setting(study)
        for warning in warnings_of_arms(study, self.setting):
            view.display.warn(warning)
        refuse_impossible_searches(study, self.setting)
        _make_writable(self.runs_dir / study.name)
        self.queue = open_queue(study, address)
        agree_on_file(study, self.queue, request.file)
        agree_on_runs_folder(study, self.queue, self.runs_dir, separate=request.separate_runs)
        self.queue.bury()
        board = look(study, self.queue)
        change = agree_on_protocol(study, self.queue, board)
        if change is not None:
            view.display.say(str(change))
        planned = standing_of(study, board).planned
        self.mirror = StudyMirror(study, self.runs_dir, mode=mode, planned=planned, every_trial=request.wandb_trials)

    def conduct(self) -> int:
        """Train what the study wants and has not; then write down what it says."""
        if self.request.retry_failed:
            board = look(self.study, self.queue)
            again = fill(self.queue, board, at_most=len(board.wanted), retry_failed=True)
            self.view.display.say(f"{again} trials wait again or for the first time")
        board = look(self.study, self.queue)
        if board.complete:
            self.view.display.say(f"study {self.study.name}: all {len(board.wanted)} trials have ended already")
        else:
            self._train(board)
        return self._conclude()

    def collect(self) -> int:
        """Bring the records of other machines here; then write down what the study says."""
        base_sha256 = self.queue.facts().get("base_sha256") or self._prepare_base()
        collection = Collection(self.study, self.setting, base_sha256, self.runs_dir)
        self.view.display.say(str(collection.take(self.request.collect)))
        if not look(self.study, self.queue).complete:
            self.view.display.say("not all trials have ended; the same command without --collect trains the others")
        return self._conclude()

    def _prepare_base(self) -> str:
        """The fingerprint of W0; what takes long is done once, before there are workers to wait for it."""
        _ = self.setting.data_sha256  # what is wrong with the data is known before anything is computed
        with self.view.display.live():
            return fingerprint(self.setting.task.base_model(self.view.display.report).state_dict())

    def _train(self, board: Board) -> None:
        base_sha256 = self._prepare_base()
        agree_on_content(self.study, self.queue, self.setting, base_sha256)
        standing = standing_of(self.study, board)
        workers = min(self.request.workers, standing.planned - standing.counts["done"] - standing.counts["failed"])
        order = Order(
            study=PlainStudy.of(self.study),
            address=self.address,
            runs_dir=self.runs_dir,
            pack=self.request.pack,
            workers=workers,
            name=self.queue.worker,
            base_sha256=base_sha256,
        )
        interruption = Interruption()
        with ExitStack() as stack:
            stack.enter_context(interruption.heeded())
            force = stack.enter_context(
                Workforce(order, bury=self.queue.bury, progress=self._progress, spares=self.spares)
            )
            stack.enter_context(self.view.live())
            force.start(workers)
            threading.Thread(target=import_module, args=(CONCLUSION,), daemon=True).start()  # while nothing is to do
            self._watch(force, interruption)

    def _watch(self, force: Workforce, interruption: Interruption) -> None:
        """Until no worker is left.

        Raises: Interrupted when they were stopped; WorkerError.
        """
        looked_at, pause = 0.0, 0.0
        while force.hands:
            if time.monotonic() - looked_at >= pause:
                looked_at = time.monotonic()
                self._look()
                pause = max(LOOK_SECONDS, (time.monotonic() - looked_at) / SHARE_OF_LOOKING)
            for told in force.watch():
                self.view.display.warn(told)
            if interruption.asked and not force.stopping:
                self.view.display.say("stopping: every worker finishes its step and writes checkpoints")
                force.ask_to_stop()
            time.sleep(TURN_SECONDS)
        if not look(self.study, self.queue).complete:
            how = "stopped" if force.stopping else "the workers were stopped"
            raise Interrupted(f"{how}, with checkpoints; the same command goes on from there")

    def _look(self) -> None:
        """Show how the study stands, and copy what has ended."""
        self.queue.bury()
        board = look(self.study, self.queue)
        heard = [worker for worker in self.queue.workers() if worker.silent_seconds < GRACE_SECONDS]
        standing = standing_of(self.study, board, awake(heard, within=timedelta(hours=1)))
        self.view.show(standing)
        self.mirror.follow(board, seconds=MIRROR_SECONDS)

    def _progress(self) -> tuple[int, int]:
        """Trials that have ended, and steps that the others would go on from."""
        entries = self.queue.latest().values()
        return sum(e.state in ENDED for e in entries), steps_kept(self.runs_dir / self.study.name)

    def _conclude(self) -> int:
        """Copies and results of what has ended; the exit code."""
        board = look(self.study, self.queue)
        standing = standing_of(self.study, board)
        self.mirror.follow(board, seconds=float("inf"))
        if board.complete:
            self.mirror.conclude(standing)
        for warning in self.mirror.warnings:
            self.view.display.warn(warning)
        if board.complete:
            self.view.display.say(headline(standing))
        else:
            self.view.table(standing)
        _write_results(self.study, board, self.runs_dir, self.view)
        return _exit_code(standing)


def _write_results(study: Study, board: Board, runs_dir: Path, view: StudyView) -> None:
    """What the study says, on disk and on the screen."""
    from analysis.study_results.conclusion import conclude  # see CONCLUSION

    concluded = conclude(study, board, runs_dir)
    for line in concluded.lines():
        view.display.say(line)
    view.display.say(f"written: {', '.join(str(file) for file in concluded.files)}")


def _make_writable(folder: Path) -> None:
    """Raises: OSError where records cannot be written."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"{folder}: records cannot be written there: {error.strerror or error}; choose another --runs-dir"
        ) from None


def _exit_code(standing: Standing) -> int:
    return 0 if standing.complete and not standing.failures else 1
