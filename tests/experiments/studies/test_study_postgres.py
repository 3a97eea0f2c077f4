"""A study on a real PostgreSQL: a worker that dies and one that sleeps change no result; every trial counts once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import in_process_study
import pandas as pd
import pytest
from in_process_search import HALVED_LONGER
from in_process_search import outcome as search_outcome
from in_process_search import study_in as search_in
from in_process_search import worker_on as search_worker
from in_process_study import outcome, study_in, worker_on
from postgres_server import Server, database, postgres_server
from project_paths import ROOT
from tiny_studies import TINY, Running, start, study_file, wait_for

from experiments.studies.queue.entries import ENDED
from experiments.studies.queue.storage import ADDRESS_VARIABLE, Address
from experiments.studies.queue.trial_queue import TrialQueue

__all__ = ["postgres_server"]

pytestmark = pytest.mark.slow
GRACE = 3.0


@contextmanager
def process(file: Path, address: Address) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker on a study's file, in a process of its own."""
    url = str(address).replace("@", f":{_escaped(address.password)}@", 1)
    environment = os.environ | {ADDRESS_VARIABLE: url, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "study_worker.py"), str(file), str(GRACE), "3"]
    with subprocess.Popen(command, env=environment) as started:
        try:
            yield started
        finally:
            started.kill()


def held_by(queue: TrialQueue, worker: "subprocess.Popen[bytes]") -> list[str]:
    return [e.key for e in queue.entries() if e.state == "running" and f"-{worker.pid}-" in str(e.worker)]


def _escaped(password: str | None) -> str:
    from urllib.parse import quote

    return quote(password or "", safe="")


def until(said: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, f"not within two minutes: {said}"
        time.sleep(0.05)


def stopped_with_trials(queue: TrialQueue, *workers: "subprocess.Popen[bytes]") -> set[str]:
    """The trials that the workers hold when all of them are stopped, each with one at least."""
    while True:
        until("every worker holds trials", lambda: all(held_by(queue, worker) for worker in workers))
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        time.sleep(1.0)  # what was on its way to the server has come
        held = [held_by(queue, worker) for worker in workers]
        if all(held):
            return {key for keys in held for key in keys}
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


def test_a_dead_worker_and_one_that_slept_leave_the_results_of_an_undisturbed_study(
    tmp_path: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = in_process_study.TREE["set"] | {"training.steps": 150, "training.checkpoint_every": 25}
    monkeypatch.setitem(in_process_study.TREE, "set", longer)
    undisturbed = worker_on(tmp_path / "undisturbed", pack=1)
    undisturbed.work()
    folder = tmp_path / "disturbed"
    study, file = study_in(folder), folder / "tiny.yaml"
    with database(postgres_server) as address, process(file, address) as dies, process(file, address) as sleeps:
        queue = TrialQueue.open(address, study.name, direction="minimize", grace=GRACE)
        lost = stopped_with_trials(queue, dies, sleeps)
        dies.send_signal(signal.SIGKILL)
        with process(file, address) as takes_over:
            assert takes_over.wait(timeout=180) == 0
            sleeps.send_signal(signal.SIGCONT)
            assert sleeps.wait(timeout=60) == 0
        disturbed = worker_on(folder, pack=1)
        disturbed.queue = queue
        assert outcome(disturbed) == outcome(undisturbed)
        done = [entry.key for entry in queue.entries() if entry.state == "done"]
        assert len(done) == len(set(done))
        assert lost <= {entry.key for entry in queue.entries() if entry.state == "returned"}
    assert not list((folder / "tiny" / ".attempts").iterdir())


def test_a_search_with_two_workers_of_which_one_dies_makes_the_suggestions_of_one_undisturbed(
    tmp_path: Path, postgres_server: Server
) -> None:
    undisturbed = search_worker(tmp_path / "undisturbed", pack=4, **HALVED_LONGER)
    undisturbed.work()
    folder = tmp_path / "disturbed"
    study, file = search_in(folder, **HALVED_LONGER), folder / "search.yaml"
    with database(postgres_server) as address, process(file, address) as dies, process(file, address) as goes_on:
        queue = TrialQueue.open(address, study.name, direction="minimize", grace=GRACE)
        until("both workers hold trials", lambda: held_by(queue, dies) and held_by(queue, goes_on))
        dies.send_signal(signal.SIGKILL)
        with process(file, address) as joins:
            assert goes_on.wait(timeout=180) == 0
            assert joins.wait(timeout=180) == 0
        disturbed = search_worker(folder, pack=4, **HALVED_LONGER)
        disturbed.queue = queue
        assert search_outcome(disturbed) == search_outcome(undisturbed)
        ended = [entry.key for entry in queue.entries() if entry.state in ENDED]
        assert len(ended) == len(set(ended))


def test_a_study_outlasts_a_server_that_goes_away_while_it_trains(
    tmp_path: Path, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = {"set": TINY["set"] | {"training.steps": 400}}
    undisturbed = start(study_file(tmp_path / "undisturbed", **longer), tmp_path / "undisturbed", workers=2, pack=1)
    with database(postgres_server) as address:
        monkeypatch.setenv(ADDRESS_VARIABLE, str(address).replace("@", f":{_escaped(address.password)}@", 1))
        folder = tmp_path / "disturbed"
        running = Running(study_file(folder, **longer), folder, workers=2, pack=1)
        wait_for(lambda: list(folder.glob("tiny/lora*/result.json")))
        postgres_server.stop()
        try:
            time.sleep(8)
        finally:
            postgres_server.start()
        disturbed = running.ended()
    assert undisturbed.code == disturbed.code == 0, disturbed
    assert disturbed.said.count("does not answer") == 1
    assert disturbed.said.count("answers again") == 1
    tables = [pd.read_parquet(path / "tiny" / "study.parquet") for path in (folder, tmp_path / "undisturbed")]
    scores = [table.set_index("folder")[["state", "score", "test_score"]].sort_index() for table in tables]
    assert scores[0].equals(scores[1])
