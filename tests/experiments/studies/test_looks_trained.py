"""Looks at a study that trains: its table does not know packs, workers, kills, or the moment of a look."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from in_process_study import TREE, interrupt_every, outcome, starts_until_over, worker_on
from tiny_studies import TINY, command, start, study_file, study_state_of

from analysis.study_results.conclusion import conclude
from analysis.study_results.results import CIRCUMSTANCES
from experiments.studies.protocol.progress import snapshot
from experiments.studies.workers.worker import Worker

LOOKS = [5, 6, 7]
CHANGED: dict[str, Any] = {
    "set": TREE["set"] | {"training.steps": 8, "training.checkpoint_every": 3},
    "arms": [{"variant": "lora", "rank": [1, 2]}, {"variant": "full"}],
    "protocol": {
        "tuning": {"grid": {"learning_rate_multipliers": [0.5, 1, 1e30]}}, "evaluation": {"looks": LOOKS},
        "reference": {"variant": "full"}, "margin": 0.23,
    },
}  # fmt: skip


def sequential(folder: Path, *, pack: int) -> Worker:
    return worker_on(folder, pack=pack, **CHANGED)


def ended_trials(runs_dir: Path) -> int:
    return sum(1 for _ in (runs_dir / "tiny").glob("*/result.json"))


def concluded(worker: Worker, folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    found = conclude(worker.study, snapshot(worker.study, worker.queue), folder)
    return found.table.drop(columns=[*CIRCUMSTANCES]), dict(found.summary)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Worker, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    worker = sequential(folder, pack=6)
    worker.work()
    return worker, folder


def test_arms_stop_at_different_looks(undisturbed: tuple[Worker, Path]) -> None:
    worker, _ = undisturbed
    state = snapshot(worker.study, worker.queue)
    assert state.complete
    assert len({len(each.seeds) for each in state.comparisons}) > 1


def test_packs_and_interruptions_change_no_word_and_no_number(
    undisturbed: tuple[Worker, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_every(30, monkeypatch)
    starts, worker = starts_until_over(lambda: sequential(tmp_path, pack=4))
    assert starts > 3
    assert outcome(worker) == outcome(undisturbed[0])
    ours, theirs = concluded(worker, tmp_path), concluded(*undisturbed)
    pd.testing.assert_frame_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


@pytest.mark.slow
def test_kills_of_two_workers_across_looks_change_no_word_and_no_number(tmp_path: Path) -> None:
    changed = CHANGED | {"set": TINY["set"]}
    whole, whole_runs = study_file(tmp_path / "whole", **changed), tmp_path / "whole" / "runs"
    assert start(whole, whole_runs, pack=4).code == 1  # the highest rate diverges
    file, runs_dir, dice, kills = (
        study_file(tmp_path / "killed", **changed),
        tmp_path / "killed" / "runs",
        random.Random(0),
        0,
    )
    over = False
    while not over:
        with command(file.parent, "--workers", "2", "--pack", "2") as process:
            enough = ended_trials(runs_dir) + dice.randint(3, 9)
            while process.poll() is None and ended_trials(runs_dir) < enough:
                time.sleep(0.01)
            over = process.poll() is not None
            if over:
                assert process.returncode == 1
            else:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
    assert kills >= 3
    tables = [pd.read_parquet(runs / "tiny" / "study.parquet") for runs in (runs_dir, whole_runs)]
    pd.testing.assert_frame_equal(*(table.drop(columns=[*CIRCUMSTANCES]) for table in tables))
    assert study_state_of(file, runs_dir).comparisons == study_state_of(whole, whole_runs).comparisons
