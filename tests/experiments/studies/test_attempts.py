"""Attempts at a trial: one becomes its record, whichever worker sleeps between two of its steps."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from experiments.record.run_dir import RunDirectory
from experiments.studies.workers.attempts import ADOPTED, adopt, attempt_at, discard, publish
from experiments.training.checkpoint import CHECKPOINT


@pytest.fixture
def record(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "lora-r2")


def attempt(record: RunDirectory, number: int, key: str = "key") -> RunDirectory:
    made = attempt_at(record, key, number)
    made.path.mkdir(parents=True)
    for name in ADOPTED:
        (made.path / name).write_text("{}")
    (made.path / "metrics.jsonl").write_text('{"step": 1}\n' * number)
    (made.path / CHECKPOINT).write_text(f"of {number}")
    return made


def attempts(record: RunDirectory) -> list[str]:
    return sorted(path.name for path in (record.path.parent / ".attempts").iterdir())


def test_who_slept_before_publishing_a_failure_leaves_that_of_who_took_the_trial_over(record: RunDirectory) -> None:
    slept, took_over = attempt(record, 1), attempt(record, 2)
    slept.fail("not finite")
    took_over.fail("not finite")
    assert publish(took_over, record)
    assert not publish(slept, record)
    assert (record.path / "error.txt").read_text() == "not finite\n"
    assert attempts(record) == []


def test_who_slept_leaves_a_later_attempt_to_the_worker_that_is_at_it(record: RunDirectory) -> None:
    slept, at_work = attempt(record, 9), attempt(record, 10)
    slept.finish({"score": 1.0})
    assert publish(slept, record)
    assert attempts(record) == [at_work.path.name]
    at_work.finish({"score": 1.0})
    assert publish(at_work, record)
    assert attempts(record) == []
    assert len(record.history()) == 9, "the first finished one stays"


def test_a_failure_is_replaced_by_a_later_attempt_and_a_result_is_not(record: RunDirectory) -> None:
    failed, finished, failed_again = attempt(record, 1), attempt(record, 2), attempt(record, 3)
    failed.fail("no room")
    finished.finish({"score": 1.0})
    failed_again.fail("no room")
    assert publish(failed, record)
    assert not record.finished
    assert publish(finished, record)
    assert publish(failed_again, record)
    assert record.result() == {"score": 1.0}
    assert not (record.path / "error.txt").exists()


def test_an_attempt_waits_for_whoever_has_the_record_in_hand(record: RunDirectory) -> None:
    ended = attempt(record, 1)
    ended.finish({"score": 1.0})
    locked = threading.Event()

    def copy() -> None:
        with record.locked():
            locked.set()
            time.sleep(0.3)
            assert not record.finished

    copying = threading.Thread(target=copy)
    copying.start()
    locked.wait()
    assert publish(ended, record)
    copying.join()
    assert record.finished


def test_an_attempt_begins_with_what_the_one_that_came_farthest_has_left(record: RunDirectory) -> None:
    attempt(record, 3)
    attempt(record, 2)
    attempt(record, 8, key="of another trial with this record")
    fourth = attempt_at(record, "key", 4)
    adopt(fourth, record)
    assert (fourth.path / CHECKPOINT).read_text() == "of 3"
    assert len(fourth.history()) == 3
    adopt(attempt_at(record, "new", 5), record)
    assert not attempt_at(record, "new", 5).path.exists()


def test_an_attempt_begins_from_nothing_when_the_one_it_follows_is_cleared_away_meanwhile(
    record: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, copyfile = attempt(record, 1), shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        copyfile(source, target)
        discard(slept)

    monkeypatch.setattr(shutil, "copyfile", copy)
    adopt(attempt_at(record, "key", 2), record)
    assert attempts(record) == []


def test_what_is_discarded_takes_earlier_attempts_at_its_trial_along(record: RunDirectory) -> None:
    attempt(record, 1)
    later, of_another = attempt(record, 11), attempt(record, 1, key="other")
    discard(attempt(record, 2))
    assert attempts(record) == sorted([later.path.name, of_another.path.name])
