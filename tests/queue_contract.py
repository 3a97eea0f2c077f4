"""What a queue promises on every storage: journal and PostgreSQL run the same tests."""

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from experiments.studies.queue.entries import Entry, NewTrial, waiting_trials
from experiments.studies.queue.liveness import StalenessClock
from experiments.studies.queue.storage import Address, QueueError
from experiments.studies.queue.trial_queue import Claim, TrialQueue

STUDY = "rank"


def trials(count: int) -> list[NewTrial]:
    return [
        NewTrial(f"trial {i}", {"learning_rate": 1e-3, "seed": i, "rank": 4}, {"arm": "lora r=4", "stage": "tuning"})
        for i in range(count)
    ]


def everything(waiting: Sequence[Entry]) -> Sequence[Entry]:
    return waiting


def one_claim(queue: TrialQueue) -> Claim:
    [claim] = queue.claim(lambda waiting: waiting[:1])
    return claim


def beat_once(address: Address, worker: str) -> None:
    TrialQueue.open(address, STUDY, direction="minimize", worker=worker).beat({})


class DiedError(Exception):
    """In place of an end of the process."""


def dies_once_it_has_won(queue: TrialQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """It claims all that waits, and dies before it can say that it has the first."""
    wins = queue.store.optuna.set_trial_state_values

    def wins_and_dies(*change: Any) -> None:
        assert wins(*change)
        raise DiedError

    with monkeypatch.context() as patched:
        patched.setattr(queue.store.optuna, "set_trial_state_values", wins_and_dies)
        with pytest.raises(DiedError):
            queue.claim(everything)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Listener:
    """A queue that hears time pass as the test says."""

    def __init__(self, queue: TrialQueue) -> None:
        self.queue = queue
        self.clock = Clock()
        queue._liveness.staleness = StalenessClock(self.clock)

    def after(self, *gaps: float) -> list[Entry]:
        """What it has requeued, after looking now and then at these seconds' distance."""
        requeued = self.queue.requeue_stale()
        for gap in gaps:
            self.clock.seconds += gap
            requeued += self.queue.requeue_stale()
        return requeued


def url_of(address: Address) -> str | None:
    """With the password, for another program."""
    if address.url is None or address.password is None:
        return address.url
    import sqlalchemy

    return sqlalchemy.make_url(address.url).set(password=address.password).render_as_string(hide_password=False)


class Fixtures:
    """Needs a fixture `address`: an empty storage."""

    @pytest.fixture
    def opened(self, address: Address) -> Callable[..., TrialQueue]:
        def queue(**knobs: Any) -> TrialQueue:
            return TrialQueue.open(address, STUDY, **{"direction": "minimize", **knobs})

        return queue

    @pytest.fixture
    def queue(self, opened: Callable[..., TrialQueue]) -> TrialQueue:
        return opened()


class QueueContract(Fixtures):
    def test_an_entry_says_what_was_wanted_and_what_came_of_it(self, queue: TrialQueue) -> None:
        queue.add(trials(3))
        first, second = queue.claim(lambda waiting: waiting[1:])
        assert queue.finish(first, 0.25, {"loss": 1.5})
        assert queue.fail(second, "loss is not finite at step 3", {"loss": 2.5})
        waiting, done, failed = queue.entries()
        given = {"arm": "lora r=4", "stage": "tuning"}
        assert (waiting.state, waiting.worker, waiting.facts) == ("waiting", None, given)
        assert (done.key, done.state, done.score, done.worker) == ("trial 1", "done", 0.25, queue.worker)
        assert done.facts == {**given, "loss": 1.5}
        assert done.params == {"learning_rate": 1e-3, "seed": 1, "rank": 4}
        assert (failed.state, failed.score) == ("failed", None)
        assert failed.facts == {**given, "loss": 2.5, "failure": "loss is not finite at step 3"}

    def test_optuna_and_its_dashboard_find_score_parameters_and_arm(self, queue: TrialQueue, address: Address) -> None:
        queue.add(trials(2))
        low, high = queue.claim(everything)
        queue.finish(high, 2.0, {})
        queue.finish(low, 1.0, {})
        storage = url_of(address) or queue.store.optuna
        best = optuna.load_study(study_name=STUDY, storage=storage).best_trial
        assert best.value == 1.0
        assert best.params == {"learning_rate": 1e-3, "seed": 0, "rank": 4}
        assert best.user_attrs["key"] == "trial 0"
        assert best.user_attrs["arm"] == "lora r=4"

    def test_the_range_of_a_parameter_is_that_of_its_values(self, queue: TrialQueue) -> None:
        queue.add(trials(3))
        queue.add([NewTrial("full", {"learning_rate": 0.1, "seed": 7}, {})])
        last = queue.store.optuna.get_all_trials(queue._study_id)[-1]
        assert last.distributions == {
            "learning_rate": FloatDistribution(1e-3, 0.1, log=True),
            "seed": IntDistribution(0, 7),
        }

    def test_a_key_is_added_once(self, queue: TrialQueue, opened: Callable[..., TrialQueue]) -> None:
        assert queue.add(trials(2)) == 2
        claim = one_claim(queue)
        assert opened().add([*trials(3), *trials(3)]) == 1
        queue.finish(claim, 1.0, {})
        assert queue.add(trials(3)) == 0
        assert len(queue.entries()) == 3

    def test_a_failed_trial_is_added_again_on_request_only(self, queue: TrialQueue) -> None:
        queue.add(trials(1))
        queue.fail(one_claim(queue), "out of memory", {})
        assert queue.add(trials(1)) == 0
        assert queue.latest()["trial 0"].state == "failed"
        assert queue.add(trials(1), retry_failed=True) == 1
        queue.fail(one_claim(queue), "out of memory again", {})
        assert queue.latest()["trial 0"].facts["failure"] == "out of memory again"

    def test_of_two_that_choose_the_same_trial_one_wins(self, opened: Callable[..., TrialQueue]) -> None:
        slow, quick = opened(), opened()
        slow.add(trials(3))
        won: list[Claim] = []

        def overtaken(waiting: Sequence[Entry]) -> Sequence[Entry]:
            won.extend(quick.claim(lambda there: there[:2]))
            return waiting

        assert [claim.key for claim in slow.claim(overtaken)] == ["trial 2"]
        assert [claim.key for claim in won] == ["trial 0", "trial 1"]
        assert {entry.key: entry.worker for entry in slow.entries()} == {
            "trial 0": quick.worker,
            "trial 1": quick.worker,
            "trial 2": slow.worker,
        }

    def test_of_two_that_choose_a_trial_that_has_ended_meanwhile_none_wins(
        self, opened: Callable[..., TrialQueue]
    ) -> None:
        slow, quick = opened(), opened()
        slow.add(trials(1))

        def overtaken(waiting: Sequence[Entry]) -> Sequence[Entry]:
            quick.finish(one_claim(quick), 1.0, {})
            return waiting

        assert slow.claim(overtaken) == []
        assert slow.latest()["trial 0"].score == 1.0

    def test_what_is_released_waits_again_and_its_old_claim_is_void(self, queue: TrialQueue) -> None:
        queue.add(trials(2))
        old, kept = queue.claim(everything)
        queue.release([old])
        assert not queue.holds(old)
        assert queue.holds(kept)
        again = one_claim(queue)
        assert (again.key, again.number) == (old.key, 2)
        assert not queue.finish(old, 99.0, {"by": "the old claim"})
        assert not queue.fail(old, "too late", {})
        assert queue.finish(again, 1.0, {})
        counting = queue.latest()["trial 0"]
        assert (counting.number, counting.score, counting.facts) == (2, 1.0, trials(1)[0].facts)
        assert queue.entries()[0].state == "returned"
        queue.release([again])
        assert len(queue.entries()) == 3

    def test_a_trial_may_be_reported_twice(self, queue: TrialQueue) -> None:
        queue.add(trials(2))
        done, failed = queue.claim(everything)
        assert all(queue.finish(done, 1.0, {"loss": 2.0}) for _ in range(2))
        assert all(queue.fail(failed, "no room", {}) for _ in range(2))
        assert not queue.finish(failed, 1.0, {})
        assert [entry.state for entry in queue.entries()] == ["done", "failed"]

    @pytest.mark.parametrize("score", [math.nan, math.inf])
    def test_a_score_is_finite(self, queue: TrialQueue, score: float) -> None:
        queue.add(trials(1))
        claim = one_claim(queue)
        with pytest.raises(QueueError, match="a score is a finite number"):
            queue.finish(claim, score, {})
        assert queue.holds(claim)

    def test_a_twin_is_never_claimed(self, queue: TrialQueue) -> None:
        for _ in range(3):
            queue.store.optuna.create_new_trial(queue._study_id, *waiting_trials(trials(1), []))
        offered: list[int] = []

        def all_that_is_offered(waiting: Sequence[Entry]) -> Sequence[Entry]:
            offered.extend(entry.number for entry in waiting)
            return waiting

        [claim] = queue.claim(all_that_is_offered)
        assert offered == [claim.number] == [0]
        assert [entry.state for entry in queue.entries()] == ["running", "returned", "returned"]
        queue.finish(claim, 1.0, {})
        queue.store.optuna.create_new_trial(queue._study_id, *waiting_trials(trials(1), []))
        assert queue.claim(everything) == []
        assert queue.latest()["trial 0"].score == 1.0

    def test_a_crash_between_giving_back_and_adding_again_loses_nothing(self, queue: TrialQueue) -> None:
        queue.add(trials(1))
        claim = one_claim(queue)
        queue.store.optuna.set_trial_state_values(claim.trial_id, TrialState.FAIL)
        assert queue.latest() == {}
        assert queue.add(trials(1)) == 1

    def test_a_worker_whose_heartbeat_goes_on_keeps_its_trials(self, opened: Callable[..., TrialQueue]) -> None:
        holder, listener = opened(grace=60.0), Listener(opened(grace=60.0))
        holder.add(trials(1))
        claim = one_claim(holder)
        for _ in range(5):
            assert listener.after(29.0) == []
            holder._liveness.last_beat_at = -math.inf
            holder.beat({"steps": 10})
        assert holder.holds(claim)
        [seen] = listener.queue.workers()
        assert (seen.name, seen.stale_seconds, seen.progress) == (holder.worker, 0.0, {"steps": 10})

    def test_a_stale_worker_is_dead_after_the_grace_that_it_announced(self, opened: Callable[..., TrialQueue]) -> None:
        holder, listener = opened(grace=600.0), Listener(opened(grace=60.0))
        holder.add(trials(1))
        claim = one_claim(holder)
        assert listener.after(*[100.0] * 5) == []
        [lost] = listener.after(100.0, 100.0)
        assert (lost.key, lost.number, lost.worker) == ("trial 0", 0, holder.worker)
        assert [entry.state for entry in holder.entries()] == ["returned", "waiting"]
        assert not holder.finish(claim, 99.0, {})
        assert listener.queue.workers() == []

    def test_who_died_right_after_a_claim_loses_the_trial_at_once(
        self, opened: Callable[..., TrialQueue], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue, dying = opened(), opened()
        queue.add(trials(1))
        dies_once_it_has_won(dying, monkeypatch)
        assert [entry.worker for entry in queue.entries()] == [dying.worker]
        assert [entry.key for entry in queue.requeue_dead([dying.worker])] == ["trial 0"]
        assert queue.latest()["trial 0"].facts == trials(1)[0].facts

    def test_who_died_right_after_a_claim_that_another_tried_loses_the_trial_after_the_grace(
        self, opened: Callable[..., TrialQueue], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        queue, dying, listener = opened(), opened(), Listener(opened(grace=60.0))
        queue.add(trials(1))

        def overtaken(waiting: Sequence[Entry]) -> Sequence[Entry]:
            dies_once_it_has_won(dying, monkeypatch)
            return waiting

        assert queue.claim(overtaken) == []
        assert queue.requeue_dead([queue.worker, dying.worker]) == []
        assert listener.after(30.0, 30.0) == []
        assert len(listener.after(30.0)) == 1
        assert queue.latest()["trial 0"].state == "waiting"

    def test_a_worker_does_not_take_over_from_itself(self, opened: Callable[..., TrialQueue]) -> None:
        listener = Listener(opened(grace=60.0))
        listener.queue.add(trials(1))
        claim = one_claim(listener.queue)
        assert listener.after(60.0, 60.0, 60.0) == []
        assert listener.queue.holds(claim)

    def test_who_has_left_is_not_listed(self, opened: Callable[..., TrialQueue]) -> None:
        queue, other = opened(), opened()
        queue.beat({})
        other.beat({"pack": 8})
        assert {seen.name for seen in queue.workers()} == {queue.worker, other.worker}
        other.leave()
        assert [seen.name for seen in queue.workers()] == [queue.worker]

    def test_who_has_ended_on_this_machine_is_not_listed(
        self, address: Address, opened: Callable[..., TrialQueue]
    ) -> None:
        queue = opened()
        process = multiprocessing.get_context("spawn").Process(target=beat_once, args=(address, "it"))
        process.start()
        process.join()
        assert "it" in queue._liveness.heartbeats()
        assert queue.workers() == []

    def test_the_first_worker_settles_what_later_ones_must_have(self, opened: Callable[..., TrialQueue]) -> None:
        opened().record_or_check({"W0": "a1b2", "schema": (3, 1)})
        opened().record_or_check({"schema": (3, 1), "torch": "2.13"})
        with pytest.raises(QueueError, match=r"W0 = 'a1b2', here it is 'ffff'; torch = '2.13', here it is '2.15'"):
            opened().record_or_check({"W0": "ffff", "schema": (3, 1), "torch": "2.15"})
        assert opened().facts().items() >= {"W0": "a1b2", "schema": [3, 1], "torch": "2.13"}.items()

    def test_a_study_has_one_direction(self, queue: TrialQueue, opened: Callable[..., TrialQueue]) -> None:
        with pytest.raises(QueueError, match=r"'rank' whose direction is minimize, not maximize; give yours another"):
            opened(direction="maximize")

    def test_a_study_of_another_program_is_refused(self, queue: TrialQueue, opened: Callable[..., TrialQueue]) -> None:
        queue.store.optuna.create_new_trial(queue._study_id)
        with pytest.raises(QueueError, match="trials of another program"):
            opened()

    def test_finding_makes_no_study(self, address: Address) -> None:
        assert TrialQueue.find(address, STUDY) is None
        assert TrialQueue.find(address, STUDY) is None
        TrialQueue.open(address, STUDY, direction="maximize").add(trials(1))
        found = TrialQueue.find(address, STUDY)
        assert found is not None
        assert len(found.entries()) == 1

    def test_a_deleted_study_is_an_error(self, queue: TrialQueue) -> None:
        queue.store.optuna.delete_study(queue._study_id)
        with pytest.raises(QueueError, match="deleted"):
            queue.entries()

    def test_a_queue_does_not_survive_a_fork(self, queue: TrialQueue) -> None:
        def in_the_child() -> None:
            try:
                queue.entries()
            except QueueError:
                os._exit(7)
            os._exit(0)

        child = multiprocessing.get_context("fork").Process(target=in_the_child)
        child.start()
        child.join()
        assert child.exitcode == 7

    @pytest.mark.parametrize(
        ("trial", "told"),
        [
            (NewTrial("a", {"learning_rate": 0.0}, {}), "a learning_rate is above 0 and finite, 0.0 is not"),
            (NewTrial("a", {"rank": 2.5}, {}), "rank is a whole number, 2.5 is not; make it a fact"),
            (NewTrial("a", {"alpha": 1.0}, {}), "the parameters are learning_rate, rank, seed; make 'alpha' a fact"),
            (NewTrial("a", {}, {"worker": "me"}), "the queue uses the name 'worker' itself; rename the fact"),
        ],
    )
    def test_what_an_entry_cannot_hold_is_refused_before_any_is_added(
        self, queue: TrialQueue, trial: NewTrial, told: str
    ) -> None:
        with pytest.raises(QueueError, match=told):
            queue.add([*trials(2), trial])
        assert queue.entries() == []
