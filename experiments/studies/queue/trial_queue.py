"""The queue of a study: which trials wait, which worker holds which, and what the finished ones scored.

It is an Optuna study, so optuna-dashboard shows it. Each entry is an Optuna trial that is claimed at most once in its
life: waiting, running, then done, pruned or failed, never back to waiting. A trial that is given back (by its
worker, or because its worker has no heartbeat) fails without a reason and is added again under a new number. That is
the fence: a worker that only stalled finds its own entry finished, and its result is refused, whatever became of the
new one.

Taking a running trial back to waiting would be no fence: the stalled worker could finish the claim of its successor;
and a worker that claims again, from a journal, a trial it once held can be told that it won when another was first.
Both storages settle who was first: the journal by the order of its lines, PostgreSQL by a lock on the row.

A crash between two steps loses nothing: an entry that failed without a reason says nothing about its key, so the next
`add` adds the key again.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState

from experiments.studies.queue.entries import CLAIMANT, Entry, NewTrial, that_count
from experiments.studies.queue.listing import FORMAT, Listing, study_named
from experiments.studies.queue.liveness import Liveness, WorkerSeen
from experiments.studies.queue.storage import NO_PATIENCE, Address, Patience, QueueError, Store

GRACE_SECONDS = 120.0


@dataclass(frozen=True)
class Claim:
    """The right of this process to train a trial, until another takes it over."""

    number: int
    key: str
    trial_id: int


class TrialQueue(Listing):
    """One per process, not shared through a fork; only `beat` may be called by a second thread.

    Every method raises QueueError if the storage cannot be used.
    """

    def __init__(self, store: Store, study: str, study_id: int, *, grace: float, worker: str | None = None) -> None:
        super().__init__(store, study, study_id)
        self._liveness = Liveness(store, study_id, grace, worker)

    @classmethod
    def open(
        cls,
        address: Address,
        study: str,
        *,
        direction: Literal["minimize", "maximize"],
        grace: float = GRACE_SECONDS,
        worker: str | None = None,
        patience: Patience = NO_PATIENCE,
    ) -> Self:
        """The queue of that name, made if there is none.

        `grace`: seconds without a heartbeat after which this worker is dead.
        `worker`: the name of this process, which no other has; one is made by default.

        Raises: QueueError also if the study has another direction, or another program or an earlier version made it.
        """
        store = open_store(address, patience)
        wanted = StudyDirection[direction.upper()]
        with store.use() as storage:
            with suppress(DuplicatedStudyError):  # the storage settles who of several is first
                if study_named(store, study) is None:
                    storage.create_new_study([wanted], study)
            study_id = storage.get_study_id_from_name(study)
            directions = storage.get_study_directions(study_id)
        if directions != [wanted]:
            there = ", ".join(each.name.lower() for each in directions)
            raise QueueError(
                f"{address} has a study {study!r} whose direction is {there}, not {direction}; "
                "give yours another name or another storage"
            )
        queue = cls(store, study, study_id, grace=grace, worker=worker)
        queue.refuse_earlier_format()
        queue.entries()
        queue.record_or_check({"format": FORMAT})
        return queue

    @classmethod
    def find(cls, address: Address, study: str, *, patience: Patience = NO_PATIENCE) -> Self | None:
        """The queue of that name, to read from, or None; neither a study nor a journal is made.

        Raises: QueueError also if the study was made by an earlier version.
        """
        if address.journal is not None and not address.journal.exists():
            return None
        store = open_store(address, patience)
        study_id = study_named(store, study)
        if study_id is None:
            return None
        queue = cls(store, study, study_id, grace=GRACE_SECONDS)
        queue.refuse_earlier_format()
        return queue

    @property
    def worker(self) -> str:
        return self._liveness.worker

    def claim(self, choose: Callable[[Sequence[Entry]], Sequence[Entry]]) -> list[Claim]:
        """Of the waiting trials, given to `choose` by number, the chosen ones for which no other worker was first.

        If the storage fails after some were won, those are returned; the next call says what is wrong.
        """
        if not self._liveness.count:
            self.beat({})
        entries = self.entries()
        counting = that_count(entries)
        waiting = [entry for entry in entries if entry.state == "waiting"]
        for twin in (entry for entry in waiting if counting[entry.key] is not entry):
            self._drop(twin)
        won: list[Claim] = []
        for entry in choose([entry for entry in waiting if counting[entry.key] is entry]):
            try:
                claim = self._take(entry)
            except QueueError:
                if won:
                    break
                raise
            if claim is not None:
                won.append(claim)
        return won

    def holds(self, claim: Claim) -> bool:
        """Whether a result for it would still be taken."""
        with self.store.use() as storage:
            return storage.get_trial(claim.trial_id).state == TrialState.RUNNING

    def finish(
        self, claim: Claim, score: float, facts: Mapping[str, Any], reached: Mapping[int, float] = MappingProxyType({})
    ) -> bool:
        """The trial is done; may be called again after an error. False: another worker has taken it over.

        `reached`: its scores during training, by step. Raises: QueueError for a score that is not finite.
        """
        if not math.isfinite(score):
            raise QueueError(f"trial {claim.key!r}: a score is a finite number, not {score}; a run without one failed")
        return self._end(claim, TrialState.COMPLETE, facts, [float(score)], reached)

    def prune(self, claim: Claim, facts: Mapping[str, Any], reached: Mapping[int, float]) -> bool:
        """The trial was pruned, with these scores at its rungs; else as `finish`."""
        return self._end(claim, TrialState.PRUNED, facts, None, reached)

    def fail(self, claim: Claim, reason: str, facts: Mapping[str, Any]) -> bool:
        """The trial has failed for that reason; may be called again. False: another worker has taken it over."""
        return self._end(claim, TrialState.FAIL, {**facts, "failure": reason}, None)

    def release(self, claims: Iterable[Claim]) -> None:
        """They wait again, under new numbers; those that ended or were re-claimed are left alone."""
        numbers = {claim.number for claim in claims}
        self._give_back(entry for entry in self.entries() if entry.number in numbers and entry.state == "running")

    def beat(self, progress: Mapping[str, Any]) -> None:
        """Heartbeat, with what displays show (JSON values). Call it often: six in a grace are written."""
        self._liveness.beat(progress)

    def leave(self) -> None:
        """This worker is no longer listed. Call it last, after `release`."""
        self._liveness.mark_left(self.worker)

    def workers(self) -> list[WorkerSeen]:
        """Those that have not left, by name."""
        return self._liveness.observe({entry.holder for entry in self._running()})[0]

    def requeue_stale(self) -> list[Entry]:
        """Trials whose worker is dead wait again, under new numbers; the entries that it held are returned.

        To be called regularly: how stale a worker is, this process knows from its own calls, three or more.
        """
        running = self._running()
        dead = self._liveness.observe({entry.holder for entry in running})[1]
        lost = self._give_back(entry for entry in running if entry.holder in dead)
        for worker in {entry.worker for entry in lost if entry.worker is not None}:
            self._liveness.mark_left(worker)
        return lost

    def requeue_dead(self, workers: Collection[str] = ()) -> list[Entry]:
        """At once, trials of these workers, and of all whose process on this machine has ended, wait again.

        `workers` are those that the caller saw end. Unlike `requeue_stale` it waits for no grace: see `has_ended`.
        """
        dead = {*workers, *self._liveness.ended()}
        lost = self._give_back(entry for entry in self._running() if entry.worker in dead) if dead else []
        for worker in sorted(dead):
            self._liveness.mark_left(worker)
        return lost

    def _running(self) -> list[Entry]:
        return [entry for entry in self.entries() if entry.state == "running"]

    def _take(self, entry: Entry) -> Claim | None:
        """It says that it tries, and when the trial is won, that it has it.

        Who dies in between is known to have it, or if others tried too, is a holder without a heartbeat.
        """
        with self.store.use() as storage:
            trial_id = storage.get_trial_id_from_study_id_trial_number(self._study_id, entry.number)
            try:
                storage.set_trial_user_attr(trial_id, CLAIMANT + self.worker, True)
                if not storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                    return None
                storage.set_trial_user_attr(trial_id, "worker", self.worker)
            except UpdateFinishedTrialError:
                return None
        return Claim(entry.number, entry.key, trial_id)

    def _drop(self, twin: Entry) -> None:
        """It is claimed first, so that nobody else's claim ends."""
        claim = self._take(twin)
        if claim is not None:
            with self.store.use() as storage:
                storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)

    def _end(
        self,
        claim: Claim,
        state: TrialState,
        outcome: Mapping[str, Any],
        values: list[float] | None,
        reached: Mapping[int, float] = MappingProxyType({}),
    ) -> bool:
        """Only who claimed a trial completes it or gives it a reason: one that has ended so was ended by this call."""
        with self.store.use() as storage:
            try:
                for step, score in reached.items():
                    storage.set_trial_intermediate_value(claim.trial_id, step, score)
                storage.set_trial_user_attr(claim.trial_id, "outcome", dict(outcome))
                storage.set_trial_state_values(claim.trial_id, state, values)
            except UpdateFinishedTrialError:
                ended = storage.get_trial(claim.trial_id)
                reason = ended.user_attrs.get("outcome", {}).get("failure")
                return ended.state == state and reason == outcome.get("failure")
        return True

    def _give_back(self, entries: Iterable[Entry]) -> list[Entry]:
        """Those that had not ended meanwhile."""
        given_back = []
        for entry in entries:
            with self.store.use() as storage:
                trial_id = storage.get_trial_id_from_study_id_trial_number(self._study_id, entry.number)
                try:
                    storage.set_trial_state_values(trial_id, TrialState.FAIL)
                except UpdateFinishedTrialError:
                    continue
            given_back.append(entry)
        if given_back:
            self.add([NewTrial(entry.key, entry.params, entry.given) for entry in given_back])
        return given_back


def open_store(address: Address, patience: Patience = NO_PATIENCE) -> Store:
    """Raises: QueueError if the storage cannot be reached, read or written."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a warning of it quotes SQL while a server goes away
    if address.url is None:
        from experiments.studies.queue.journal_store import JournalStore

        return JournalStore(address)
    from experiments.studies.queue.postgres_store import PostgresStore

    return PostgresStore(address, patience)
