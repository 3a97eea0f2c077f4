"""The queue in a journal file, its address, and what is dead."""

import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project_paths import ROOT
from queue_contract import STUDY, Clock, QueueContract, everything, one_claim, trials
from queue_processes import ProcessContract

from experiments.studies.queue.entries import Entry
from experiments.studies.queue.journal_store import AppendLock
from experiments.studies.queue.liveness import StalenessClock
from experiments.studies.queue.storage import ADDRESS_VARIABLE, Address, QueueError, storage_address
from experiments.studies.queue.trial_queue import TrialQueue

SECRET = "s3cret"


@pytest.fixture
def address(tmp_path: Path) -> Address:
    return Address(journal=tmp_path / "runs" / STUDY / "journal.log")


class TestJournal(QueueContract):
    pass


class TestProcessesWithAJournal(ProcessContract):
    pass


def open_journal(path: Path) -> TrialQueue:
    return TrialQueue.open(Address(journal=path), STUDY, direction="minimize")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.log"
    open_journal(path).add(trials(2))
    return path


def test_a_study_of_an_earlier_format_is_refused_with_the_reason(journal: Path) -> None:
    text = journal.read_text()
    assert '"format":2' in text
    journal.write_text(text.replace('"format":2', '"format":1'))
    written = journal.read_bytes()
    for start in (open_journal, lambda path: TrialQueue.find(Address(journal=path), STUDY)):
        with pytest.raises(QueueError, match=r"written by an earlier version \(format 1.*move its journal away"):
            start(journal)
    assert journal.read_bytes() == written


def test_a_line_that_a_crash_cut_short_is_cut_off(journal: Path) -> None:
    before = open_journal(journal)
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(whole.splitlines()[-1][:40])
    assert len(before.entries()) == 2
    assert open_journal(journal).add(trials(3)) == 1
    assert journal.read_bytes().startswith(whole)
    assert [entry.key for entry in before.entries()] == ["trial 0", "trial 1", "trial 2"]
    assert len(before.claim(everything)) == 3


def test_a_long_line_that_was_cut_short_is_cut_off(journal: Path) -> None:
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(b"x" * 200_000)
    lock = AppendLock(journal)
    lock.acquire()
    lock.release()
    assert journal.read_bytes() == whole


def test_a_damaged_journal_is_an_error_with_its_line(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = b"\x00" * 30 + b"\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(QueueError, match=r"journal\.log: the journal cannot be read: line 3 is damaged; restore it"):
        open_journal(journal)


@pytest.mark.parametrize("line", ['{"op_code": 77, "worker_id": "x"}', '{"op_code": 4, "study_id": 0}'])
def test_a_journal_of_another_version_is_an_error(journal: Path, line: str) -> None:
    with journal.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(QueueError, match=r"a line is not one of Optuna \d.*read it with the version that wrote it"):
        open_journal(journal)


FULL_DISK = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from experiments.studies.queue.storage import Address, QueueError
from experiments.studies.queue.trial_queue import TrialQueue
from queue_contract import STUDY, trials
path = Path({path!r})
queue = TrialQueue.open(Address(journal=path), STUDY, direction="minimize")
full = path.stat().st_size + 60
resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
try:
    queue.add(trials(3))
except QueueError as error:
    print(error)
assert path.stat().st_size == full, "part of a line was written"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(queue.add(trials(3)), len(queue.entries()))
"""


def test_a_full_disk_is_an_error_and_when_there_is_room_the_queue_goes_on(journal: Path) -> None:
    code = FULL_DISK.format(root=str(ROOT), tests=str(ROOT / "tests"), path=str(journal))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    error, added = done.stdout.splitlines()
    assert error.startswith(f"{journal}: the journal cannot be read or written: File too large; make room")
    assert added == "1 3"


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder in which this process may not write, root or not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield folder
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_a_journal_that_is_deleted_while_it_is_in_use_is_an_error_with_the_way_out(journal: Path) -> None:
    queue = open_journal(journal)
    journal.unlink()
    with pytest.raises(QueueError, match=r"the journal was deleted while it was in use; start the study again"):
        queue.add(trials(1))


def test_a_folder_in_which_one_may_not_write_is_an_error(locked_folder: Path) -> None:
    with pytest.raises(QueueError, match=r"journal\.log: .*Permission denied; make room, or choose a place"):
        open_journal(locked_folder / "journal.log")


def test_a_killed_process_does_not_keep_the_journal_locked(journal: Path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from experiments.studies.queue.journal_store import AppendLock\n"
        f"AppendLock(Path({str(journal)!r})).acquire()\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    queue = open_journal(journal)
    start = time.monotonic()
    assert len(queue.claim(everything)) == 2
    assert time.monotonic() - start < 10


def test_only_one_appends_at_a_time(journal: Path) -> None:
    queue, lock = open_journal(journal), AppendLock(journal)
    lock.acquire()
    appending = threading.Thread(target=queue.beat, args=({},))
    appending.start()
    appending.join(timeout=0.3)
    assert appending.is_alive()
    lock.release()
    appending.join(timeout=30)
    assert [seen.name for seen in queue.workers()] == [queue.worker]


def test_what_was_won_before_the_storage_failed_is_kept(journal: Path) -> None:
    queue, aside = open_journal(journal), journal.with_name("aside")

    class Failing(list[Entry]):
        def __iter__(self) -> Iterator[Entry]:
            yield self[0]
            journal.rename(aside)
            journal.mkdir()
            yield self[1]

    [claim] = queue.claim(Failing)
    with pytest.raises(QueueError, match="cannot be read or written: Is a directory"):
        queue.claim(everything)
    journal.rmdir()
    aside.rename(journal)
    assert queue.finish(claim, 1.0, {})


def test_looking_for_a_journal_makes_none(tmp_path: Path) -> None:
    assert TrialQueue.find(Address(journal=tmp_path / "runs" / "journal.log"), STUDY) is None
    assert list(tmp_path.iterdir()) == []


def test_what_has_not_changed_is_not_read_again(journal: Path) -> None:
    queue = open_journal(journal)
    first, second = queue.entries()
    queue.finish(one_claim(queue), 1.0, {})
    assert queue.entries()[0] is not first
    assert queue.entries()[1] is second


@pytest.mark.slow
def test_ten_thousand_finished_trials_open_in_seconds_and_in_200_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.log"
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    queue = open_journal(path)
    queue.add(trials(10_000))
    for claim in queue.claim(everything):
        queue.finish(claim, 1.0, {"loss": 1.0, "seconds": 20.0})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    opened = TrialQueue.find(Address(journal=path), STUDY)
    assert opened is not None
    assert len(opened.latest()) == 10_000
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    start = time.monotonic()
    opened.latest()
    assert time.monotonic() - start < 0.5


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=30))
def test_staleness_grows_between_heartbeats_and_never_by_more_than_half_the_grace_an_observation(
    observations: list[tuple[float, bool]],
) -> None:
    clock, grace = Clock(), 60.0
    staleness = StalenessClock(clock)
    count, before = 0, staleness.update({"a": 0}, {"a": grace})["a"]
    assert before == 0
    for gap, beat in observations:
        clock.seconds += gap
        count += beat
        now = staleness.update({"a": count}, {"a": grace})["a"]
        assert now == 0 if beat else before <= now <= before + min(gap, grace / 2) + 1e-6
        before = now


def test_an_observer_that_was_stopped_with_all_the_others_declares_nobody_dead() -> None:
    clock = Clock()
    staleness = StalenessClock(clock)
    staleness.update({"a": 1}, {"a": 60.0})
    clock.seconds += 3600
    assert staleness.update({"a": 1}, {"a": 60.0})["a"] <= 60


@pytest.mark.parametrize(
    ("option", "variable", "address"),
    [
        (None, None, "RUNS/rank/journal.log"),
        (None, "elsewhere.log", "elsewhere.log"),
        ("here.log", "elsewhere.log", "here.log"),
        ("postgresql://me@db:5433/studies", None, "postgresql+psycopg://me@db:5433/studies"),
        (None, f"postgresql+psycopg://me:{SECRET}@db/studies", "postgresql+psycopg://me@db/studies"),
        (
            None,
            f"postgresql://me@db/s?password={SECRET}&sslmode=require",
            "postgresql+psycopg://me@db/s?sslmode=require",
        ),
    ],
)
def test_the_address_comes_from_option_variable_or_runs_folder_and_shows_no_password(
    option: str | None, variable: str | None, address: str
) -> None:
    environment = {} if variable is None else {ADDRESS_VARIABLE: variable}
    found = storage_address(option, runs_dir=Path("RUNS"), study=STUDY, environment=environment)
    assert str(found) == address
    assert SECRET not in repr(found)
    assert found.password == (SECRET if SECRET in (variable or "") else None)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (f"postgresql://me:{SECRET}@db/studies", "a password on the command line is visible.*~/.pgpass"),
        (f"postgresql://me@db/studies?password={SECRET}", "a password on the command line is visible"),
        (f"postgresql://me:x@{SECRET}@db/studies", "cannot be read.*percent-encoded"),
        (f"postgresql://me:x@/{SECRET}@db:5432/studies", "cannot be read.*percent-encoded"),
        (f"postgresql://me:pw@db:{SECRET}/studies", "cannot be read.*percent-encoded"),
        (f"postgresql://me@db/studies?sslpassword={SECRET}", "leave sslpassword out of the URL"),
        (f"postgresql://me@db/{{{SECRET}}}", "cannot be read.*percent-encoded"),
        (f"sqlite:///{SECRET}.db", "in a journal file or in PostgreSQL, not in 'sqlite'"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_quoting_it(option: str, told: str) -> None:
    with pytest.raises(QueueError, match=told) as caught:
        storage_address(option, runs_dir=Path(), study=STUDY, environment={})
    assert SECRET not in str(caught.value)


def test_without_psycopg_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    address = Address(url="postgresql+psycopg://me@localhost/studies", password=SECRET)
    with pytest.raises(QueueError, match=r"pip install -e '\.\[postgres\]'") as caught:
        TrialQueue.open(address, STUDY, direction="minimize")
    assert SECRET not in str(caught.value)


def test_a_database_that_does_not_answer_is_an_error_without_password() -> None:
    pytest.importorskip("psycopg")
    address = Address(url="postgresql+psycopg://me@127.0.0.1:1/studies", password=SECRET)
    with pytest.raises(
        QueueError, match=r"127\.0\.0\.1:1/studies: the database cannot be used: .*is the server up"
    ) as caught:
        TrialQueue.open(address, STUDY, direction="minimize")
    assert SECRET not in str(caught.value)
