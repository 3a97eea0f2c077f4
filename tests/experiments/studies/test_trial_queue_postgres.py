"""The queue in PostgreSQL, on a real server: what the journal promises, starts at once, passwords, and outages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

import pytest
from postgres_server import PASSWORD, USER, Server, database, postgres_server
from queue_contract import STUDY, QueueContract, one_claim, trials
from queue_processes import ProcessContract, heard, tell, worker
from sqlalchemy import URL, Engine, event, text

from experiments.studies.queue.storage import (
    ADDRESS_VARIABLE,
    Address,
    QueueError,
    Store,
    TurnLostError,
    storage_address,
)
from experiments.studies.queue.trial_queue import Claim, TrialQueue, open_store

__all__ = ["postgres_server"]


@pytest.fixture
def empty(postgres_server: Server) -> Iterator[Address]:
    with database(postgres_server) as address:
        yield address


@pytest.fixture(scope="session")
def with_tables(postgres_server: Server) -> Iterator[Address]:
    with database(postgres_server) as address:
        open_store(address)
        yield address


@pytest.fixture
def address(postgres_server: Server, with_tables: Address) -> Iterator[Address]:
    """A database that has Optuna's tables, and no study."""
    yield with_tables
    postgres_server.execute("TRUNCATE studies CASCADE", database=name_of(with_tables))


def name_of(address: Address) -> str:
    return str(address).rpartition("/")[2]


def opened(address: Address) -> TrialQueue:
    return TrialQueue.open(address, STUDY, direction="minimize")


class TestPostgres(QueueContract):
    pass


@pytest.mark.slow
class TestProcessesWithPostgres(ProcessContract):
    pass


def test_processes_that_start_at_once_on_an_empty_database_all_work(empty: Address) -> None:
    with worker("open", empty) as first, worker("open", empty) as second, worker("open", empty) as third:
        for process in (first, second, third):
            tell(process)
        assert [heard(process) for process in (first, second, third)] == ["opened"] * 3


def test_a_password_is_found_where_libpq_looks(
    address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_option = storage_address(str(address), runs_dir=tmp_path, study=STUDY, environment={})
    assert by_option.password is None
    with pytest.raises(QueueError, match=r"no password supplied; is the server up.*~/\.pgpass or PGPASSWORD"):
        opened(by_option)
    file = tmp_path / "pgpass"
    escaped = PASSWORD.replace(":", "\\:")
    file.write_text(f"127.0.0.1:*:*:{USER}:{escaped}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert opened(by_option).entries() == []
    monkeypatch.delenv("PGPASSFILE")
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert opened(by_option).entries() == []


def test_a_password_may_be_in_the_environments_url(address: Address) -> None:
    url = URL.create("postgresql", USER, PASSWORD, "127.0.0.1", 5432, "x").render_as_string(hide_password=False)
    variable = url.replace(":5432/x", str(address).partition("127.0.0.1")[2])
    found = storage_address(None, runs_dir=Path(), study=STUDY, environment={ADDRESS_VARIABLE: variable})
    assert found == address
    queue = opened(found)
    assert PASSWORD not in repr(vars(queue)) + repr(vars(queue.store)) + str(found)


def test_a_wrong_password_is_an_error_that_does_not_quote_it(address: Address) -> None:
    wrong = Address(url=address.url, password="wr0ng-one")
    with pytest.raises(
        QueueError, match=rf"the database cannot be used: .*authentication failed.*\"{USER}\""
    ) as caught:
        opened(wrong)
    assert "wr0ng-one" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_database_that_is_not_there_is_an_error_with_the_way_out(address: Address) -> None:
    missing = Address(url=f"{address.url}_missing", password=address.password)
    with pytest.raises(
        QueueError, match=r"_missing\" does not exist; is the server up, the database there \(createdb\)"
    ):
        opened(missing)


def test_tables_of_another_version_of_optuna_are_an_error(empty: Address, postgres_server: Server) -> None:
    opened(empty)
    postgres_server.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'", database=name_of(empty))
    with pytest.raises(QueueError, match=r"no longer compatible with the table schema.*optuna storage upgrade"):
        opened(empty)


def test_a_queue_reports_an_outage_and_goes_on_after_it(address: Address, postgres_server: Server) -> None:
    queue = opened(address)
    queue.add(trials(1))
    claim = one_claim(queue)
    postgres_server.stop()
    try:
        for call in (queue.entries, lambda: queue.finish(claim, 1.0, {}), lambda: queue.record_or_check({"a": 1})):
            with pytest.raises(QueueError, match=r"the database cannot be used: .*is the server up") as caught:
                call()
            assert PASSWORD not in str(caught.value)
    finally:
        postgres_server.start()
    assert queue.finish(claim, 1.0, {})
    assert queue.latest()["trial 0"].score == 1.0


def test_a_restart_of_the_server_between_two_calls_is_not_noticed(address: Address, postgres_server: Server) -> None:
    queue = opened(address)
    queue.add(trials(1))
    postgres_server.stop()
    postgres_server.start()
    assert len(queue.entries()) == 1


def test_the_server_ends_every_connection_that_holds_locks_and_says_nothing_for_half_a_minute(address: Address) -> None:
    store = opened(address).store
    for engine in (store_engine(store), vars(store)["turns"]):
        with engine.connect() as connection:
            assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "30s"


def test_a_process_that_is_stopped_in_its_turn_loses_it_and_what_it_was_to_settle_is_an_error(address: Address) -> None:
    sleeps, goes_on = opened(address), opened(address)
    with (
        pytest.raises(TurnLostError, match="idle-in-transaction"),
        impatient_after(vars(sleeps.store)["turns"], "SELECT pg_advisory_xact_lock"),
        sleeps.store.turn(STUDY),
    ):
        assert goes_on.add(trials(3)) == 3


def test_a_stopped_process_that_adds_trials_goes_on_when_it_wakes_up_and_no_trial_is_there_twice(
    address: Address,
) -> None:
    sleeps, goes_on = opened(address), opened(address)
    with sleeping_after(sleeps, "INSERT INTO trials "):
        assert sleeps.add(trials(3)) == 3
    goes_on.add(trials(3))
    assert sorted(entry.key for entry in goes_on.latest().values()) == ["trial 0", "trial 1", "trial 2"]
    assert len(goes_on.claim(lambda entries: entries)) == 3


def test_a_process_stopped_with_a_trial_locked_leaves_it_to_others_and_its_own_claim_is_lost(address: Address) -> None:
    sleeps, goes_on = opened(address), opened(address)
    sleeps.add(trials(1))
    won: list[Claim] = []
    with sleeping_after(sleeps, "UPDATE trials ", meanwhile=lambda: won.append(one_claim(goes_on))):
        assert sleeps.claim(lambda entries: entries) == []
    assert goes_on.finish(won[0], 1.0, {})


def store_engine(store: Store) -> Engine:
    engine = vars(store.optuna)["storage"]._backend.engine
    assert isinstance(engine, Engine)
    return engine


@contextmanager
def impatient_after(engine: Engine, statement: str, then: Callable[[Any], object] = lambda _: None) -> Iterator[None]:
    """The server ends the transaction of the first such statement, and no other, when it stands still for 0.5 s."""
    told: list[str] = []

    @event.listens_for(engine, "after_cursor_execute")
    def tell(connection: Any, cursor: Any, sent: str, *_: Any) -> None:
        if not told and sent.startswith(statement):
            told.append(statement)
            cursor.connection.execute("SET LOCAL idle_in_transaction_session_timeout = '500ms'")
            then(cursor.connection)

    try:
        yield
    finally:
        event.remove(engine, "after_cursor_execute", tell)
    assert told


@contextmanager
def sleeping_after(queue: TrialQueue, statement: str, meanwhile: Callable[[], object] = lambda: None) -> Iterator[None]:
    """The process of `queue` stands still after that statement until the server has ended its transaction."""

    def sleep(connection: Any) -> None:
        meanwhile()
        assert select([connection.fileno()], [], [], 60)[0], "the server has not ended it"

    with impatient_after(store_engine(queue.store), statement, sleep):
        yield
