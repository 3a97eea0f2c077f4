"""What a queue promises on every storage about processes that start at once, sleep and die."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from queue_contract import STUDY, Fixtures, everything, one_claim, trials, url_of

from experiments.studies.queue.entries import Entry
from experiments.studies.queue.storage import ADDRESS_VARIABLE, Address
from experiments.studies.queue.trial_queue import TrialQueue


@contextmanager
def worker(role: str, address: Address, *, grace: float = 120.0) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {ADDRESS_VARIABLE: url_of(address) or str(address.journal)}
    command = [sys.executable, str(Path(__file__).with_name("queue_worker.py")), role, str(grace)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert heard(process) == "ready"
            yield process
        finally:
            process.kill()


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def heard(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def requeued_by(queue: TrialQueue) -> list[Entry]:
    """It listens until something is requeued."""
    for _ in range(600):
        if lost := queue.requeue_stale():
            return lost
        time.sleep(0.1)
    raise AssertionError("nothing was requeued")


class ProcessContract(Fixtures):
    """Needs a fixture `address`, like the contract of one process."""

    def test_two_processes_that_start_at_once_train_each_trial_once(self, address: Address) -> None:
        with worker("drain", address) as first, worker("drain", address) as second:
            tell(first)
            tell(second)
            assert [heard(process) for process in (first, second)] == ["works", "works"]
            trained = [int(heard(process).removeprefix("trained ")) for process in (first, second)]
        queue = TrialQueue.find(address, STUDY)
        assert queue is not None
        entries = queue.entries()
        assert [entry.state for entry in entries] == ["done"] * 60  # no twins either
        assert len({entry.key for entry in entries}) == 60
        assert sum(trained) == 60
        assert min(trained) > 0
        assert all(entry.worker == entry.facts["by"] for entry in entries)

    @pytest.mark.slow
    def test_workers_killed_at_random_moments_lose_no_trial_and_train_none_twice(
        self, address: Address, queue: TrialQueue
    ) -> None:
        moments = random.Random(0)
        for _ in range(6):
            with worker("drain", address, grace=2.0) as first, worker("drain", address, grace=2.0) as second:
                tell(first)
                tell(second)
                assert heard(first) == "works"
                time.sleep(moments.uniform(0, 0.3))
                first.send_signal(signal.SIGKILL)
                second.send_signal(signal.SIGKILL)
        with worker("drain", address, grace=2.0) as last:
            tell(last)
            assert heard(last) == "works"
            heard(last)
        assert any(entry.state == "returned" for entry in queue.entries())
        done = [entry.key for entry in queue.entries() if entry.state == "done"]
        assert sorted(done) == sorted(trial.key for trial in trials(60))
        assert len(queue.latest()) == 60

    def test_trials_of_a_killed_process_are_trained_by_another(self, address: Address, queue: TrialQueue) -> None:
        queue.add(trials(2))
        with worker("hold", address, grace=1.0) as holder:
            tell(holder)
            assert heard(holder) == "holds trial 0"
            holder.send_signal(signal.SIGKILL)
            [lost] = requeued_by(queue)
        assert lost.key == "trial 0"
        for claim in queue.claim(everything):
            queue.finish(claim, 1.0, {})
        assert {key: entry.score for key, entry in queue.latest().items()} == {"trial 0": 1.0, "trial 1": 1.0}

    def test_a_worker_that_slept_cannot_overwrite_the_result_of_its_successor(
        self, address: Address, queue: TrialQueue
    ) -> None:
        queue.add(trials(1))
        with worker("hold", address, grace=1.0) as sleeper:
            tell(sleeper)
            assert heard(sleeper) == "holds trial 0"
            sleeper.send_signal(signal.SIGSTOP)
            requeued_by(queue)
            assert queue.finish(one_claim(queue), 1.0, {"by": "the successor"})
            sleeper.send_signal(signal.SIGCONT)
            tell(sleeper)
            assert heard(sleeper) == "finished False"
        counting = queue.latest()["trial 0"]
        assert (counting.score, counting.facts["by"]) == (1.0, "the successor")
