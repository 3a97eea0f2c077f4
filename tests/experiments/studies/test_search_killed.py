"""A search whose workers are killed at random moments asks and trains what an undisturbed one does."""

import random
import time
from pathlib import Path

import pytest
from in_process_search import HALVED_LONGER, outcome, study_in, worker_on
from tiny_studies import Running, kill_workers, queue_of, wait_for

from experiments.studies.queue.entries import ENDED
from experiments.studies.queue.storage import Address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.study import load_study
from experiments.studies.workers.pool import WorkerError

KILLS = 5


@pytest.mark.slow
def test_kills_at_random_moments_neither_lose_nor_double_a_trial_of_a_search(tmp_path: Path) -> None:
    undisturbed = worker_on(tmp_path / "undisturbed", pack=4, **HALVED_LONGER)
    undisturbed.work()
    runs_dir = tmp_path / "killed"
    study_in(runs_dir, **HALVED_LONGER)
    file, kills, dice = runs_dir / "search.yaml", 0, random.Random(0)
    running = Running(file, runs_dir, workers=2, pack=4)
    while kills < KILLS:
        before = _ended(file, runs_dir)
        wait_for(lambda run=running, before=before: run.over or _ended(file, runs_dir) > before)
        time.sleep(dice.uniform(0, 0.5))
        assert not running.over
        kills += kill_workers(file, runs_dir)
    ended = running.ended()
    if isinstance(ended.error, WorkerError):  # kills without progress in between are limited: it is started again
        ended = Running(file, runs_dir, workers=2, pack=4).ended()
    assert (ended.error, ended.code) == (None, 0)
    assert outcome(worker_on(runs_dir, pack=4, **HALVED_LONGER)) == outcome(undisturbed)
    keys = [entry.key for entry in queue_of(file, runs_dir).entries() if entry.state in ENDED]
    assert len(keys) == len(set(keys))


def _ended(file: Path, runs_dir: Path) -> int:
    name = load_study(file).name
    queue = TrialQueue.find(Address(journal=runs_dir / name / "journal.log"), name)
    return 0 if queue is None else sum(entry.state in ENDED for entry in queue.entries())
