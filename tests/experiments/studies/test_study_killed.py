"""A study that is stopped or killed at any moment and started again comes to the same results, bit for bit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project_paths import ROOT
from tiny_studies import (
    CHECKPOINT_EVERY,
    TINY,
    Running,
    checkpoints,
    command,
    finished_study,
    kill_workers,
    learned,
    lost_steps,
    queue_of,
    start,
    study_file,
    wait_for,
)

from experiments.studies.protocol.progress import enqueue, snapshot
from experiments.studies.queue.processes import has_ended, this_process
from experiments.studies.queue.storage import Address, storage_address
from experiments.studies.spec.study import load_study
from experiments.studies.workers.pool import WorkerError, WorkerPool
from experiments.studies.workers.worker_process import PlainStudy, WorkerSpec, open_queue

HOLD = """
import sys, time
from pathlib import Path
from experiments.studies.queue.storage import read_address
from experiments.studies.queue.trial_queue import TrialQueue
queue = TrialQueue.open(read_address(sys.argv[1], told_by=""), "tiny", direction="minimize")
print(len(queue.claim(lambda waiting: waiting[:1])), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory)


@pytest.mark.slow
def test_killed_as_a_whole_then_one_worker_of_two_it_ends_bit_identical(undisturbed: Path, tmp_path: Path) -> None:
    file, runs_dir = study_file(tmp_path), tmp_path / "runs"
    with command(tmp_path, "--pack", "1") as process:
        wait_for(lambda: checkpoints(runs_dir))
        os.killpg(process.pid, signal.SIGKILL)
    locked = [entry for entry in queue_of(file, runs_dir).entries() if entry.state == "running"]
    assert locked
    seen = checkpoints(runs_dir)
    running = Running(file, runs_dir, workers=2, pack=1)
    wait_for(lambda: [found for found in checkpoints(runs_dir) if found not in seen])
    assert kill_workers(file, runs_dir)
    ended = running.ended()
    assert (ended.error, ended.code) == (None, 0)
    assert "SIGKILL" in ended.said
    assert learned(file, runs_dir) == learned(undisturbed / "tiny.yaml", undisturbed / "runs")
    assert max(lost_steps(file, runs_dir).values()) <= 2 * CHECKPOINT_EVERY
    assert not checkpoints(runs_dir)


@pytest.mark.slow
def test_ten_kills_of_the_only_worker_change_nothing(tmp_path: Path) -> None:
    longer = {**TINY["set"], "training.steps": 600}  # so that ten kills find it at work
    whole, whole_runs = study_file(tmp_path / "whole", set=longer), tmp_path / "whole" / "runs"
    assert start(whole, whole_runs, pack=4).code == 0
    file, runs_dir = study_file(tmp_path / "killed", set=longer), tmp_path / "killed" / "runs"
    running, kills, dice = Running(file, runs_dir, pack=4), 0, random.Random(0)
    while kills < 10:
        seen = set(checkpoints(runs_dir))
        wait_for(lambda run=running, seen=seen: run.over or set(checkpoints(runs_dir)) - seen)
        time.sleep(dice.uniform(0, 0.3))
        if running.over:  # five kills without progress in between are its limit: the user starts it again
            assert isinstance(running.ended().error, WorkerError)
            running = Running(file, runs_dir, pack=4)
        else:
            kills += kill_workers(file, runs_dir)
    ended = running.ended()
    if isinstance(ended.error, WorkerError):
        ended = start(file, runs_dir, pack=4)
    assert (ended.error, ended.code) == (None, 0)
    assert learned(file, runs_dir) == learned(whole, whole_runs)
    assert max(lost_steps(file, runs_dir).values()) <= kills * CHECKPOINT_EVERY


@pytest.mark.slow
def test_ctrl_c_stops_every_worker_with_checkpoints_and_says_how_to_go_on(tmp_path: Path) -> None:
    file, runs_dir = study_file(tmp_path, set={**TINY["set"], "training.steps": 100000}), tmp_path / "runs"
    with command(tmp_path, "--workers", "2", "--pack", "2") as process:
        wait_for(lambda: len({path for path, _ in checkpoints(runs_dir)}) == 3)  # all of a group: two, and one
        status = start(file, runs_dir, status=True)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "stopping" in output
    assert status.code == 1
    assert "3 running" in status.said
    queue = queue_of(file, runs_dir)
    assert {entry.state for entry in queue.latest().values()} == {"waiting"}
    assert not queue.workers()


@pytest.mark.slow
def test_workers_stop_when_their_driver_is_killed(tmp_path: Path) -> None:
    file, runs_dir = study_file(tmp_path, set={**TINY["set"], "training.steps": 100000}), tmp_path / "runs"
    with command(tmp_path, "--pack", "2") as process:
        wait_for(lambda: checkpoints(runs_dir))
        process.kill()
        queue = queue_of(file, runs_dir)
        wait_for(lambda: not queue.workers())
    assert {entry.state for entry in queue.latest().values()} == {"waiting"}


def test_workers_that_die_one_after_the_other_end_the_study_with_what_they_said(tmp_path: Path) -> None:
    study = PlainStudy.of(load_study(study_file(tmp_path)))
    spec = WorkerSpec(study, Address(journal=tmp_path / "journal.log"), tmp_path / "runs", 1, 1, "driver", "0" * 64)
    requeued: list[str] = []
    pool = WorkerPool(spec, requeue_dead=requeued.extend, progress=lambda: (3, 40))

    def one_more_dies() -> None:
        pool.workers[0].process.kill()
        pool.workers[0].process.wait()
        pool.watch()

    with pool:
        pool.start(1)
        for _ in range(4):
            one_more_dies()
        with pytest.raises(WorkerError, match=r"5 workers died (.|\n)*--pack 1"):
            one_more_dies()
    assert requeued == [f"driver.{number}" for number in range(1, 6)]


def test_trials_of_a_process_that_was_killed_here_wait_again_at_once(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path))
    address = storage_address(None, runs_dir=tmp_path / "runs", study="tiny")
    queue = open_queue(study, address)
    enqueue(queue, snapshot(study, queue), at_most=3)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(address.journal)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "1\n"
    assert not queue.requeue_dead()  # it lives
    holder.kill()
    holder.wait()
    assert len(queue.requeue_dead()) == 1
    assert {entry.state for entry in queue.latest().values()} == {"waiting"}
    assert not queue.workers()
    assert not queue.requeue_dead()


def test_of_a_process_of_another_machine_or_container_nothing_is_known_here() -> None:
    here = this_process()
    if not here:
        pytest.skip("this system does not say which process is which")
    with subprocess.Popen(["sleep", "60"]) as child:
        of_child = {**here, "pid": child.pid, "born": -1}
        assert not has_ended(here)
        assert has_ended(of_child)  # another process had that number before
        child.kill()
    assert has_ended({**here, "pid": child.pid})
    for key in ("boot", "pids"):
        assert not has_ended({**here, "pid": child.pid, key: "another"})
    assert not has_ended({})
