"""A worker of a study: it claims trials that may share a pack, trains them together, and hands in what they scored."""

import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.record.run_description import RunDescription, describe_run
from experiments.record.run_dir import RunFolder
from experiments.record.starting_point import read_start
from experiments.studies.protocol.progress import Board, fill, look
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.queue.entries import Entry
from experiments.studies.queue.trial_queue import Claim, TrialQueue
from experiments.studies.search.proposer import Proposer
from experiments.studies.spec.study import Study
from experiments.studies.workers.attempts import adopt, attempt_at, discard, publish
from experiments.studies.workers.heartbeat import Progress, beating
from experiments.studies.workers.packing import Packing, out_of_memory, share
from experiments.studies.workers.reporting import HandingIn
from experiments.terminal import Display
from experiments.training.checkpoint import CheckpointError
from experiments.training.context import Setting
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.pack import train_together
from experiments.training.trial import Member, Wishes

KEPT_WAITING = 256  # trials in the queue that wait: enough for all workers, few beside a study of thousands
IDLE_SECONDS = 0.5


@dataclass(frozen=True)
class Held:
    """A claimed trial, where its record belongs, and the attempt at it."""

    claim: Claim
    trial: PlannedTrial
    record: RunFolder
    member: Member


class Worker:
    """One process at work on a study until nothing of it is left."""

    def __init__(
        self,
        study: Study,
        queue: TrialQueue,
        setting: Setting,
        packing: Packing,
        *,
        runs_dir: Path,
        interruption: Interruption,
        workers: int = 1,
    ) -> None:
        self.study, self.queue, self.setting, self.packing = study, queue, setting, packing
        self.runs_dir, self.interruption, self.workers = runs_dir, interruption, workers
        self.handing_in = HandingIn(queue, setting, runs_dir)
        self.progress = Progress()
        self.held: dict[str, Held] = {}
        self.suspects: set[str] = set()  # trials of a pack that met an error: each goes on alone
        search = study.config.search
        self.proposer = None if search is None else Proposer(study, search, setting)
        arms = [*study.arms, *(arm.source for arm in study.arms if arm.source is not None)]
        self.starts = {arm.identity: read_start(arm.config.start) for arm in arms}

    def work(self) -> None:
        """Train what waits, pack by pack, until all that the study wants has ended.

        Raises: Interrupted after a checkpoint of every trial; OSError where a record cannot be written; QueueError.
        Whatever is raised, the trials that this worker holds wait again, and lose nothing but steps.
        """
        with beating(self.queue, self.progress):
            try:
                while self._next_pack():
                    pass
            finally:
                with suppress(Exception):  # what happened first is what is told
                    self.queue.release([held.claim for held in self.held.values()])
                    self.queue.leave()

    def _next_pack(self) -> bool:
        """Train one pack until a trial of it ends; False when nothing is left for anybody."""
        if self.interruption.asked:
            raise Interrupted("stopped between two packs; the same command goes on")
        self.queue.reclaim()
        board = look(self.study, self.queue)
        if self.proposer is not None and self.proposer.fill(self.queue, board):
            board = look(self.study, self.queue)
        waiting = sum(board.entries[key].state == "waiting" for key in board.wanted if key in board.entries)
        if fill(self.queue, board, at_most=max(0, KEPT_WAITING - waiting)):
            board = look(self.study, self.queue)
        if not self.held or self.setting.task.steps_alike:
            self._claim(board)
        if self.held:
            self._train(self._together())
        elif not board.complete:
            time.sleep(IDLE_SECONDS)
        return bool(self.held) or not board.complete

    def _claim(self, board: Board) -> None:
        """Fill the pack with waiting trials of its group, or begin one with the first that waits."""
        begun = next(iter(self.held.values())).trial.arm if self.held else None

        def choose(entries: Sequence[Entry]) -> Sequence[Entry]:
            known = [(entry, board.wanted[entry.key].arm) for entry in entries if entry.key in board.wanted]
            if not known:
                return []
            arm = begun or known[0][1]
            alike = [entry for entry, its_arm in known if self.packing.group(its_arm) == self.packing.group(arm)]
            size = self.packing.size(arm)
            return alike[: max(0, min(size - len(self.held), share(size, len(alike), self.workers)))]

        for claim in self.queue.claim(choose):
            self._begin(claim, board.wanted[claim.key])

    def _together(self) -> list[Held]:
        """The held trials that train now: as many as fit, at one step where batches of different steps differ."""
        held = list(self.held.values())
        alone = [one for one in held if one.claim.key in self.suspects]
        if alone:
            return alone[:1]
        size, first = self.packing.size(held[0].trial.arm), held[0].member.checkpoints.start
        return [one for one in held if self.setting.task.steps_alike or one.member.checkpoints.start == first][:size]

    def _begin(self, claim: Claim, trial: PlannedTrial) -> None:
        """Take up the attempt at a claimed trial, or hand in its record where there is one."""
        start = self.starts[trial.arm.identity]
        rank_total = sum(trial.knobs["rank"].values()) if trial.knobs else self.packing.rank_total(trial.arm)
        run = describe_run(trial.config, self.setting, self.runs_dir, rank_total=rank_total, start=start)
        record = run.run_dir
        attempt = attempt_at(record, claim.key, claim.number)
        if record.finished:
            self.handing_in.record_of(claim, trial, record)
            discard(attempt)
            return
        adopt(attempt)
        wishes = Wishes(
            test=trial.stage == "evaluation",
            runs_dir=self.runs_dir,
            wandb_mode="disabled",
            rungs=self.handing_in.rungs(trial),
        )
        try:
            member = self._member(trial, replace(run, run_dir=attempt), wishes)
        except OSError:
            if self.queue.holds(claim):
                raise
            discard(attempt)  # this worker slept, and who took the trial over has cleared its attempts away
            return
        self.held[claim.key] = Held(claim, trial, record, member)

    def _member(self, trial: PlannedTrial, attempt: RunDescription, wishes: Wishes) -> Member:
        start = self.starts[trial.arm.identity]
        try:
            return Member(trial.config, self.setting, attempt, wishes, Display.silent(), start=start)
        except CheckpointError:  # torn by a crash of the machine: from the first step
            discard(attempt.run_dir)
            return Member(trial.config, self.setting, attempt, wishes, Display.silent(), start=start)

    def _train(self, pack: Sequence[Held]) -> None:
        """The pack until a trial ends, and what became of its trials."""
        self.progress.pack = len(pack)
        try:
            train_together(
                self.setting, [held.member for held in pack], interruption=self.interruption, heard=self._heard
            )
        except Interrupted:
            raise
        except Exception as error:
            self._recover(pack, error)
            return
        for held in pack:
            if held.member.ended:
                self._end(held)

    def _heard(self, trials: int) -> None:
        self.progress.trial_steps += trials

    def _end(self, held: Held) -> None:
        """Publish a trial that has ended, and hand in what became of it."""
        del self.held[held.claim.key]
        if not self._published(held):
            return
        if held.member.failure is not None:
            self.handing_in.failed(held.claim, held.record, held.member.failure)
        elif held.member.stopped is not None:
            member = held.member
            self.handing_in.stopped(
                held.claim, held.trial, held.record, member.reached,
                executed=member.steps_executed, seconds=member.seconds,
            )  # fmt: skip
        else:
            self.handing_in.record_of(held.claim, held.trial, held.record)
        self.progress.trials += 1

    def _recover(self, pack: Sequence[Held], error: Exception) -> None:
        """After an error the pack's trials go on from their checkpoints, in smaller packs; one alone has failed."""
        ours = [held for held in pack if self.queue.holds(held.claim)]
        for held in pack:
            del self.held[held.claim.key]
            if held not in ours:
                discard(held.member.folder)
        if isinstance(error, OSError) and len(ours) == len(pack):
            self.held |= {held.claim.key: held for held in ours}
            raise error
        if len(pack) == 1 and ours:
            self._fail(ours[0], error)
            return
        if out_of_memory(error):
            self.packing.halve(pack[0].trial.arm, len(pack))
        elif len(ours) == len(pack):
            self.suspects |= {held.claim.key for held in pack}
        for held in ours:
            self._begin(held.claim, held.trial)

    def _fail(self, held: Held, error: Exception) -> None:
        """Publish a trial that cannot be trained, and hand that in."""
        with suppress(FileNotFoundError):  # this worker slept
            held.member.folder.fail("".join(traceback.format_exception(error)))
        if self._published(held):
            reason = f"{type(error).__name__}: {error}" + (" (in a pack of one)" if out_of_memory(error) else "")
            self.handing_in.failed(held.claim, held.record, reason)
            self.progress.trials += 1

    def _published(self, held: Held) -> bool:
        """Whether the trial's attempt is its record now; not if another worker has taken it over."""
        if self.queue.holds(held.claim) and publish(held.member.folder, held.record):
            return True
        discard(held.member.folder)
        self.queue.release([held.claim])  # it waits again if nobody has it: its folder was deleted
        return False
