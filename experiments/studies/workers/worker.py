"""A worker of a study: it claims trials that may share a pack, trains them together, and reports their scores."""

import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.record.errors import RecordError
from experiments.record.out_of_resources import describe_exhaustion, is_out_of_memory
from experiments.record.run_description import RunDescription, describe_run
from experiments.record.run_dir import RunDirectory
from experiments.record.starting_point import read_start
from experiments.studies.protocol.progress import StudyState, enqueue, snapshot
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.queue.entries import Entry
from experiments.studies.queue.trial_queue import Claim, TrialQueue
from experiments.studies.search.proposer import Proposer
from experiments.studies.spec.study import Study
from experiments.studies.workers.attempts import adopt, attempt_at, discard, publish, publish_finished
from experiments.studies.workers.heartbeat import Progress, beating
from experiments.studies.workers.packing import Packing, share
from experiments.studies.workers.reporting import Reporter
from experiments.terminal import Display
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import RunOptions, TrialRun

MOST_WAITING = 256  # trials in the queue that wait: enough for all workers, few beside a study of thousands
IDLE_SECONDS = 0.5
DISK_FULL_IN_A_ROW = 3  # packs that a full disk may stop: then the worker ends
DISK_PATIENCE_SECONDS = 120.0
LEAST_FREE_BYTES = 2**26


@dataclass(frozen=True)
class ClaimedTrial:
    """A claimed trial, its run directory, and the attempt at it."""

    claim: Claim
    trial: PlannedTrial
    run_dir: RunDirectory
    trial_run: TrialRun


class Worker:
    """One process at work on a study until nothing of it is left."""

    def __init__(
        self,
        study: Study,
        queue: TrialQueue,
        context: TrainingContext,
        packing: Packing,
        *,
        runs_dir: Path,
        interruption: Interruption,
        workers: int = 1,
    ) -> None:
        self.study, self.queue, self.context, self.packing = study, queue, context, packing
        self.runs_dir, self.interruption, self.workers = runs_dir, interruption, workers
        self.reporter = Reporter(queue, context, runs_dir)
        self.progress = Progress()
        self.claimed: dict[str, ClaimedTrial] = {}
        self.suspects: set[str] = set()  # trials of a pack that met an error: each goes on alone
        self.stopped_by_disk = 0  # packs in a row
        search = study.config.search
        self.proposer = None if search is None else Proposer(study, search, context)
        arms = [*study.arms, *(arm.source for arm in study.arms if arm.source is not None)]
        self.starts = {arm.config_hash: read_start(arm.config.start) for arm in arms}

    def work(self) -> None:
        """Train what waits, pack by pack, until all that the study wants has ended.

        Raises: Interrupted after a checkpoint of every trial; OSError where a directory cannot be written; QueueError.
        Whatever is raised, the trials that this worker holds wait again, and lose nothing but steps.
        """
        with beating(self.queue, self.progress):
            try:
                while self._next_pack():
                    pass
            finally:
                with suppress(Exception):  # what happened first is what is told
                    self.queue.release([claimed.claim for claimed in self.claimed.values()])
                    self.queue.leave()

    def _next_pack(self) -> bool:
        """Train one pack until a trial of it ends; False when nothing is left for anybody."""
        if self.interruption.asked:
            raise Interrupted("interrupted between two packs; the same command goes on")
        self.queue.requeue_stale()
        study_state = snapshot(self.study, self.queue)
        if self.proposer is not None and self.proposer.enqueue(self.queue, study_state):
            study_state = snapshot(self.study, self.queue)
        waiting = sum(
            study_state.entries[key].state == "waiting" for key in study_state.wanted if key in study_state.entries
        )
        if enqueue(self.queue, study_state, at_most=max(0, MOST_WAITING - waiting)):
            study_state = snapshot(self.study, self.queue)
        if not self.claimed or self.context.task.steps_alike:
            self._claim(study_state)
        if self.claimed:
            self._train(self._together())
        elif not study_state.complete:
            time.sleep(IDLE_SECONDS)
        return bool(self.claimed) or not study_state.complete

    def _claim(self, study_state: StudyState) -> None:
        """Fill the pack with waiting trials of its group, or begin one with the first that waits."""
        begun = next(iter(self.claimed.values())).trial.arm if self.claimed else None

        def choose(entries: Sequence[Entry]) -> Sequence[Entry]:
            known = [(entry, study_state.wanted[entry.key].arm) for entry in entries if entry.key in study_state.wanted]
            if not known:
                return []
            arm = begun or known[0][1]
            alike = [entry for entry, its_arm in known if self.packing.group(its_arm) == self.packing.group(arm)]
            size = self.packing.size(arm)
            return alike[: max(0, min(size - len(self.claimed), share(size, len(alike), self.workers)))]

        for claim in self.queue.claim(choose):
            self._begin(claim, study_state.wanted[claim.key])

    def _together(self) -> list[ClaimedTrial]:
        """The held trials that train now: as many as fit, at one step where batches of different steps differ."""
        claimed = list(self.claimed.values())
        alone = [one for one in claimed if one.claim.key in self.suspects]
        if alone:
            return alone[:1]
        size, first = self.packing.size(claimed[0].trial.arm), claimed[0].trial_run.checkpoints.start
        return [one for one in claimed if self.context.task.steps_alike or one.trial_run.checkpoints.start == first][
            :size
        ]

    def _begin(self, claim: Claim, trial: PlannedTrial) -> None:
        """Start or resume the attempt at a claimed trial, or report its run where it has finished already."""
        start = self.starts[trial.arm.config_hash]
        rank_total = sum(trial.knobs["rank"].values()) if trial.knobs else self.packing.rank_total(trial.arm)
        run = describe_run(trial.config, self.context, self.runs_dir, rank_total=rank_total, start=start)
        run_dir = run.run_dir
        attempt = attempt_at(run_dir, claim.key, claim.number)
        publish_finished(attempt, run_dir)
        if run_dir.finished:
            try:
                run_dir.check_files()
                self.reporter.finished(claim, trial, run_dir)
            except RecordError as error:  # damaged since it ended: no score, and the others go on
                self.reporter.failed(claim, run_dir, str(error))
            discard(attempt)
            return
        adopt(attempt)
        options = RunOptions(
            test=trial.stage == "evaluation",
            runs_dir=self.runs_dir,
            wandb_mode="disabled",
            rungs=self.reporter.rungs(trial),
        )
        try:
            trial_run = self._trial_run(trial, replace(run, run_dir=attempt), options)
        except OSError:
            if self.queue.holds(claim):
                raise
            discard(attempt)  # this worker stalled, and who re-claimed the trial has cleared its attempts away
            return
        self.claimed[claim.key] = ClaimedTrial(claim, trial, run_dir, trial_run)

    def _trial_run(self, trial: PlannedTrial, attempt: RunDescription, options: RunOptions) -> TrialRun:
        start = self.starts[trial.arm.config_hash]
        try:
            return TrialRun(trial.config, self.context, attempt, options, Display.silent(), start=start)
        except RecordError:  # damaged by a crash of the machine: from the first step
            discard(attempt.run_dir)
            return TrialRun(trial.config, self.context, attempt, options, Display.silent(), start=start)

    def _train(self, pack: Sequence[ClaimedTrial]) -> None:
        """Train the pack until a trial ends, and report what became of its trials."""
        self.progress.pack = len(pack)
        try:
            train_pack(
                self.context,
                [claimed.trial_run for claimed in pack],
                interruption=self.interruption,
                on_step=self._count_steps,
            )
        except Interrupted:
            raise
        except Exception as error:
            self._recover(pack, error)
            return
        self.stopped_by_disk = 0
        for claimed in pack:
            if claimed.trial_run.ended:
                self._end(claimed)

    def _count_steps(self, trials: int) -> None:
        self.progress.trial_steps += trials

    def _end(self, claimed: ClaimedTrial) -> None:
        """Publish a trial that has ended, and report what became of it."""
        del self.claimed[claimed.claim.key]
        if not self._published(claimed):
            return
        if claimed.trial_run.failure is not None:
            self.reporter.failed(claimed.claim, claimed.run_dir, claimed.trial_run.failure)
        elif claimed.trial_run.pruned is not None:
            trial_run = claimed.trial_run
            self.reporter.pruned(
                claimed.claim, claimed.trial, claimed.run_dir, trial_run.reached,
                executed=trial_run.steps_executed, seconds=trial_run.seconds,
            )  # fmt: skip
        else:
            self.reporter.finished(claimed.claim, claimed.trial, claimed.run_dir)
        self.progress.trials += 1

    def _recover(self, pack: Sequence[ClaimedTrial], error: Exception) -> None:
        """After an error the pack's trials go on from their checkpoints, in smaller packs; one alone has failed.

        Raises: OSError where directories cannot be written, and a full disk stays full. It is no trial's failure.
        """
        ours = [claimed for claimed in pack if self.queue.holds(claimed.claim)]
        for claimed in pack:
            del self.claimed[claimed.claim.key]
            if claimed not in ours:
                discard(claimed.trial_run.folder)
        if isinstance(error, OSError) and len(ours) == len(pack):
            if not self._has_disk_again(error):
                self.claimed |= {claimed.claim.key: claimed for claimed in ours}
                raise error
        elif len(pack) == 1 and ours:
            self._fail(ours[0], error)
            return
        elif is_out_of_memory(error):
            self.packing.halve(pack[0].trial.arm, len(pack))
        elif len(ours) == len(pack):
            self.suspects |= {claimed.claim.key for claimed in pack}
        for claimed in ours:
            self._begin(claimed.claim, claimed.trial)

    def _has_disk_again(self, error: OSError) -> bool:
        """Whether to write once more after an error: where a full disk has room again, soon and not ever anew."""
        self.stopped_by_disk += 1
        if describe_exhaustion(error) is None or self.stopped_by_disk > DISK_FULL_IN_A_ROW:
            return False
        until = time.monotonic() + DISK_PATIENCE_SECONDS
        while shutil.disk_usage(self.runs_dir).free < LEAST_FREE_BYTES:
            if time.monotonic() > until or self.interruption.asked:
                return False
            time.sleep(IDLE_SECONDS)
        return True

    def _fail(self, claimed: ClaimedTrial, error: Exception) -> None:
        """Publish a trial that cannot be trained, and report that."""
        with suppress(OSError):  # this worker stalled, or the disk is full
            claimed.trial_run.folder.fail("".join(traceback.format_exception(error)))
        if self._published(claimed):
            reason = (
                describe_exhaustion(error, then="train it again with --retry-failed")
                or f"{type(error).__name__}: {error}"
            )
            reason += " (in a pack of one)" if is_out_of_memory(error) else ""
            self.reporter.failed(claimed.claim, claimed.run_dir, reason)
            self.progress.trials += 1

    def _published(self, claimed: ClaimedTrial) -> bool:
        """Whether the trial's attempt is its run directory now; not if another worker has re-claimed it."""
        if self.queue.holds(claimed.claim) and publish(claimed.trial_run.folder, claimed.run_dir):
            return True
        discard(claimed.trial_run.folder)
        self.queue.release([claimed.claim])  # it waits again if nobody has it: its folder was deleted
        return False
