"""A database server that does not answer: calls are repeated while there is patience, and only where waiting helps."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError

from experiments.studies.queue.outage import Outages, Server
from experiments.studies.queue.storage import Patience


@dataclass
class Away:
    """A server that is away for some calls; what is asked of it and what was said of it."""

    failures: int
    accepts: bool = False
    calls: int = 0
    said: list[str] = field(default_factory=list)

    def outages(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> Outages:
        return Outages(Server("host:5432", lambda: self.accepts), Patience(seconds, self.said.append, is_over))

    def call(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise OperationalError("SELECT 1", {}, ConnectionRefusedError("connection refused"))
        return "answer"


def test_a_call_outlasts_an_outage_which_is_told_once_and_so_is_its_end() -> None:
    away = Away(failures=2)
    assert away.outages(30.0).bridge(away.call) == "answer"
    assert away.said == [
        "PostgreSQL at host:5432 does not answer (connection refused); trying again for 30 s",
        "PostgreSQL at host:5432 answers again",
    ]


def test_patience_ends_when_it_was_said_to() -> None:
    away = Away(failures=10**6)
    with pytest.raises(OperationalError):
        away.outages(0.6).bridge(away.call)
    assert 2 <= away.calls <= 4  # after 0, 0.25 and at most 0.6 seconds


def test_without_patience_a_call_is_made_once_and_nothing_is_said() -> None:
    away = Away(failures=1)
    with pytest.raises(OperationalError):
        away.outages(0.0).bridge(away.call)
    assert (away.calls, away.said) == (1, [])


def test_a_server_that_accepts_connections_but_refuses_this_user_is_not_waited_for() -> None:
    away = Away(failures=10**6, accepts=True)
    with pytest.raises(OperationalError):
        away.outages(30.0).bridge(away.call)
    assert (away.calls, away.said) == (2, [])  # twice: it may have come back since the first


def test_nobody_waits_once_an_interruption_was_asked_for() -> None:
    away = Away(failures=10**6)
    with pytest.raises(OperationalError):
        away.outages(30.0, is_over=lambda: True).bridge(away.call)
    assert away.calls == 1


def test_a_transaction_in_which_optuna_went_on_after_its_connection_had_ended_is_repeated() -> None:
    calls = []

    def call() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise StorageInternalError from PendingRollbackError(
                "Can't reconnect until invalid transaction is rolled back"
            )
        return "answer"

    away = Away(0, accepts=True)
    assert away.outages(30.0).bridge(call) == "answer"
    assert (len(calls), away.said) == (2, [])


def test_an_error_of_the_statement_is_not_repeated() -> None:
    class WrongError(Exception):
        sqlstate = "42P01"  # undefined table

    calls = []

    def call() -> None:
        calls.append(1)
        raise ProgrammingError("SELECT 1", {}, WrongError("no such table"))

    with pytest.raises(ProgrammingError):
        Away(0).outages(30.0).bridge(call)
    assert len(calls) == 1
