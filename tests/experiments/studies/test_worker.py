"""A worker of a study: what goes wrong in a pack leaves no trace in the other trials' records."""

import errno
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from in_process_study import outcome, study_in, worker_on

from experiments.studies.protocol.progress import StudyState, snapshot
from experiments.studies.queue.storage import QueueError
from experiments.studies.queue.trial_queue import Claim
from experiments.studies.workers.packing import Packing
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import TrialRun


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    worker = worker_on(tmp_path_factory.mktemp("alone"), pack=1)
    worker.work()
    return outcome(worker)


def test_trials_that_differ_in_what_each_has_for_itself_share_packs(tmp_path: Path) -> None:
    own = {
        "max_grad_norm": [0.5, 1.0], "lr_schedule": ["linear", "cosine"], "warmup_ratio": [0.0, 0.1],
        "weight_decay": [0.0, 0.1], "head_learning_rate": [None, 0.1],
    }  # fmt: skip
    study = study_in(tmp_path, arms=[{"variant": "lora", "rank": 1, **own}])
    packing = Packing(TrainingContext(study.arms[0].config))
    assert len(study.arms) == 32
    assert len({packing.group(arm) for arm in study.arms}) == 1
    others = study_in(tmp_path, arms=[{"variant": "lora", "rank": 1, "batch_size": [8, 16], "steps": [20, 30]}])
    assert len({packing.group(arm) for arm in others.arms}) == 4


def test_a_study_ends_with_a_score_for_every_trial_that_did_not_diverge(alone: dict[str, tuple[Any, ...]]) -> None:
    states = [state for state, *_ in alone.values()]
    assert len(states) >= 5 * (3 + 3)
    assert states.count("failed") == 5
    for key, (state, score, test, failure, *_) in alone.items():
        assert (state == "failed") == ("not finite at step" in str(failure)) == (score is None)
        assert (test is not None) == ("-evaluation-" in key)


def test_packs_give_what_trials_give_alone(tmp_path: Path, alone: dict[str, tuple[Any, ...]]) -> None:
    worker = worker_on(tmp_path, pack=8)
    worker.work()
    assert outcome(worker) == alone


Train = Callable[..., list[TrialRun]]


def failing(error: Callable[[Sequence[TrialRun]], Exception | None]) -> Train:
    """`train_pack` that meets an error after some steps."""

    def train(
        context: TrainingContext, trial_runs: Sequence[TrialRun], *, interruption: Interruption, **more: Any
    ) -> list[TrialRun]:
        class Trouble(Interruption):
            steps = 0

            @property
            def asked(self) -> bool:
                self.steps += 1
                found = error(trial_runs) if self.steps == 10 else None
                if found is not None:
                    raise found
                return False

            @asked.setter
            def asked(self, value: bool) -> None:
                pass

        return train_pack(context, trial_runs, interruption=Trouble(), **more)

    return train


def test_a_pack_that_does_not_fit_into_memory_goes_on_in_halves(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")
    monkeypatch.setattr(
        "experiments.studies.workers.worker.train_pack",
        failing(lambda trial_runs: full if len(trial_runs) > 2 else None),
    )
    worker = worker_on(tmp_path, pack=8)
    worker.work()
    assert outcome(worker) == alone
    assert worker.packing.fixed == 2


def test_an_error_of_one_trial_is_its_failure_alone(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_seed_1(trial_runs: Sequence[TrialRun]) -> Exception | None:
        broken = any(m.config.seed == 1 and m.config.variant.name == "lora" for m in trial_runs)
        return RuntimeError("this trial is broken") if broken else None

    monkeypatch.setattr("experiments.studies.workers.worker.train_pack", failing(of_seed_1))
    worker = worker_on(tmp_path, pack=8)
    worker.work()
    found = outcome(worker)
    arms = {arm.config_hash: arm.config.variant.name for arm in worker.study.arms}
    broken = {key for key in found if key.endswith("-s1") and arms[key.partition("-")[0]] == "lora"}
    assert len(broken) == 2
    for key in broken:
        assert found[key][:2] == ("failed", None)
        assert found[key][3] == "RuntimeError: this trial is broken"
        entry = snapshot(worker.study, worker.queue).entries[key]
        assert "this trial is broken" in (tmp_path / "tiny" / str(entry.facts["folder"]) / "error.txt").read_text()
    others = {key: value for key, value in found.items() if key not in broken}
    assert others == {key: value for key, value in alone.items() if key not in broken}


@pytest.mark.parametrize("meets_an_error", [False, True])
def test_a_worker_that_sleeps_when_it_knows_that_a_trial_failed_leaves_it_to_who_took_it_over(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, *, meets_an_error: bool
) -> None:
    sleeps = worker_on(tmp_path, pack=1)
    holds, slept = sleeps.queue.holds, []

    def asked(claim: Claim) -> bool:
        """An answer that is old when the worker wakes up."""
        answer = holds(claim)
        if not slept and (meets_an_error or snapshot(sleeps.study, sleeps.queue).wanted[claim.key].learning_rate > 1):
            slept.append(claim)
            sleeps.queue.release([claim])
            worker_on(tmp_path, pack=1).work()
        return answer

    def trouble(trial_runs: Sequence[TrialRun]) -> Exception | None:
        return ValueError("of this worker alone") if meets_an_error and not slept else None

    monkeypatch.setattr("experiments.studies.workers.worker.train_pack", failing(trouble))
    monkeypatch.setattr(sleeps.queue, "holds", asked)
    sleeps.work()
    assert slept
    assert outcome(sleeps) == alone


def test_a_trial_whose_folder_is_deleted_before_it_is_published_is_trained_again(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_on(tmp_path, pack=1)
    holds = worker.queue.holds

    def asked(claim: Claim) -> bool:
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "tiny" / ".attempts")
        return holds(claim)

    monkeypatch.setattr(worker.queue, "holds", asked)
    worker.work()
    assert outcome(worker) == alone


def test_a_disk_that_stays_full_stops_the_worker_and_loses_nothing(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("experiments.studies.workers.worker.train_pack", full)
        worker = worker_on(tmp_path, pack=4)
        with pytest.raises(OSError, match="No space left"):
            worker.work()
    study_state: StudyState = snapshot(worker.study, worker.queue)
    for entry in study_state.entries.values():
        assert entry.state == "waiting" or "not finite at step" in str(entry.facts.get("failure"))
    again = worker_on(tmp_path, pack=4)
    again.work()
    assert outcome(again) == alone


def test_a_worker_survives_a_disk_that_is_full_for_a_while(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([True, True])
    monkeypatch.setattr(
        "experiments.studies.workers.worker.train_pack",
        failing(lambda trial_runs: OSError(errno.ENOSPC, "No space left on device") if next(times, False) else None),
    )
    worker = worker_on(tmp_path, pack=4)
    worker.work()
    assert outcome(worker) == alone


def test_a_finished_trial_that_was_damaged_since_has_failed_and_the_others_go_on(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]]
) -> None:
    first = worker_on(tmp_path, pack=4)
    first.work()
    done = [e for e in first.queue.entries() if e.state == "done" and "-evaluation-" in e.key]
    damaged = next(e for e in done if str(e.facts["folder"]).startswith("lora"))
    folder = tmp_path / "tiny" / str(damaged.facts["folder"])
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (tmp_path / "tiny" / "journal.log").unlink()
    again = worker_on(tmp_path, pack=4)
    again.work()
    entries = snapshot(again.study, again.queue).entries
    assert "adapter_model.safetensors is not what the run wrote" in str(entries[damaged.key].facts["failure"])
    others = {key: entry.score for key, entry in entries.items() if key != damaged.key}
    assert others == {key: value[1] for key, value in alone.items() if key != damaged.key}


def test_memory_that_is_used_up_by_one_trial_alone_is_its_failure_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = MemoryError("Unable to allocate 3 TiB")
    monkeypatch.setattr(
        "experiments.studies.workers.worker.train_pack",
        failing(lambda trial_runs: full if any(t.config.variant.name == "full" for t in trial_runs) else None),
    )
    worker = worker_on(tmp_path, pack=1)
    worker.work()
    failures = {str(e.facts.get("failure")) for e in worker.queue.entries() if e.state == "failed"}
    assert any(line.startswith("out of memory (Unable to allocate 3 TiB)") for line in failures)
    assert all("--retry-failed" in line and "\n" not in line for line in failures if line.startswith("out of memory"))


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def test_a_trial_that_finished_while_the_queue_was_away_is_not_trained_again(
    tmp_path: Path, alone: dict[str, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_on(tmp_path, pack=1)
    with monkeypatch.context() as patched:
        patched.setattr(worker.queue, "holds", raising(QueueError("the database is away")))
        patched.setattr(worker.queue, "release", raising(QueueError("the database is away")))
        with pytest.raises(QueueError, match="is away"):
            worker.work()
    (held,) = (entry for entry in worker.queue.entries() if entry.state == "running")
    worker.queue.requeue_dead([str(held.worker)])
    again, trained = worker_on(tmp_path, pack=1), list[str]()

    def train(context: TrainingContext, trial_runs: Sequence[TrialRun], **more: Any) -> list[TrialRun]:
        trained.extend(each.name for each in trial_runs)
        return train_pack(context, trial_runs, **more)

    monkeypatch.setattr("experiments.studies.workers.worker.train_pack", train)
    again.work()
    assert outcome(again) == alone
    assert len(trained) == len(alone) - 1


def test_a_step_that_does_not_fit_into_memory_when_packs_are_measured_fails_its_trials_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")
    monkeypatch.setattr(Packing, "_seconds", raising(full))
    monkeypatch.setattr("experiments.studies.workers.worker.train_pack", raising(full))
    worker = worker_on(tmp_path, pack=1)
    worker.packing.fixed = None
    worker.work()
    failed = [entry.facts["failure"] for entry in worker.queue.latest().values() if entry.state == "failed"]
    assert len(failed) == len(worker.queue.latest())
    assert {str(reason).partition(" (")[0] for reason in failed} == {"out of memory"}
