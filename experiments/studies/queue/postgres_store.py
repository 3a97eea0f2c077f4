"""A queue kept in a PostgreSQL database, which several machines reach.

A process that is suspended inside a transaction (SIGSTOP, a closed lid) would hold its locks and block all others.
So the server drops its connection, which rolls the transaction back; when the process wakes up, it repeats the call
from the start, and what the others have done meanwhile stands. A call during which the server goes away is repeated
in the same way when it answers again.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from typing import Any, cast

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import Engine, NullPool, create_engine, func, make_url, select, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import SQLAlchemyError

from experiments.studies.queue.outage import Outages, Server, reason
from experiments.studies.queue.storage import Address, Patience, QueueError, Store, TurnLostError

CONNECT_SECONDS = 10
PING_SECONDS = 2
LOCK_SECONDS = 300
ASLEEP_SECONDS = 30  # then the server drops a connection that holds locks and is idle: its process is suspended


class PostgresStore(Store):
    """Opening creates Optuna's tables where there are none."""

    def __init__(self, address: Address, patience: Patience) -> None:
        assert address.url is not None
        super().__init__(address)
        url = address.url
        with self.errors():
            arguments = self.connect_arguments(url)
            self.turns = create_engine(url, poolclass=NullPool, connect_args=arguments)
            self.outages = Outages(server_at(address), patience)
            storage = self.outages.bridge(lambda: self._with_tables(url, arguments))
            cached = get_storage(storage)  # that reads each finished trial once
            self.optuna = cast(BaseStorage, Bridging(cached, self.outages))

    def _with_tables(self, url: str, arguments: dict[str, Any]) -> RDBStorage:
        """Of two processes that create the tables at once one crashes; it may take long."""
        with advisory_lock(self.turns, "tables of optuna", asleep=LOCK_SECONDS):
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": arguments})

    def connect_arguments(self, url: str) -> dict[str, Any]:
        """The password goes here, and so into no URL that a message could show."""
        query = make_url(url).query
        idle = f"-c idle_in_transaction_session_timeout={ASLEEP_SECONDS}s"
        arguments: dict[str, Any] = {"options": f"{query.get('options', '')} {idle}".strip()}
        if "connect_timeout" not in query:
            arguments["connect_timeout"] = CONNECT_SECONDS
        if self.address.password is not None:
            arguments["password"] = self.address.password
        return arguments

    @contextmanager
    def turn(self, study: str) -> Iterator[None]:
        lock = ExitStack()
        with self.errors():
            self.outages.bridge(lambda: lock.enter_context(advisory_lock(self.turns, f"study {study}")))
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what happened first is what is told
                lock.close()
            raise
        try:
            with self.errors():
                lock.close()
        except QueueError as error:
            raise TurnLostError(str(error)) from None

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except (UpdateFinishedTrialError, QueueError):
            raise
        except ImportError:
            raise QueueError(f"{self.address}: PostgreSQL needs psycopg: pip install -e '.[postgres]'") from None
        except (SQLAlchemyError, StorageInternalError) as error:
            raise QueueError(
                f"{self.address}: the database cannot be used: {self.address.without_password(reason(error))}"
                f"{self._tried()}; is the server up, the database there (createdb), the password in ~/.pgpass or "
                "PGPASSWORD?"
            ) from None
        except KeyError:
            raise QueueError(f"{self.address}: the study was deleted from it; start the study again") from None
        except RuntimeError as error:
            raise QueueError(f"{self.address}: {self.address.without_password(str(error))}") from None

    def _tried(self) -> str:
        seconds = self.outages.seconds
        return f" (tried for {seconds:.0f} s)" if seconds else ""


class Bridging:
    """Optuna's storage, each call of which outlasts an outage of the server.

    Repeated is harmless: an added trial has a twin entry, a claim has a holder without a name, a result is found to be
    there.
    """

    def __init__(self, storage: BaseStorage, outages: Outages) -> None:
        self.storage, self.outages = storage, outages

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.storage, name)

        @wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            return self.outages.bridge(lambda: method(*arguments, **named))

        return call


@contextmanager
def advisory_lock(engine: Engine, name: str, *, asleep: float | None = None) -> Iterator[None]:
    """Inside, no other connection holds it; the server frees it when the connection ends, or after `asleep` seconds."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
        if asleep is not None:
            connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{asleep:g}s'"))
        connection.execute(select(func.pg_advisory_xact_lock(number)))
        yield


def server_at(address: Address) -> Server:
    """libpq asks it as pg_isready does, without a password: a server that starts or stops accepts nothing yet."""
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn, Ping

    assert address.url is not None
    _, found = PGDialect_psycopg().create_connect_args(make_url(address.url))
    conninfo = make_conninfo(**found | {"connect_timeout": PING_SECONDS}).encode()
    name = f"{found.get('host', 'localhost')}:{found.get('port', 5432)}"
    return Server(name, lambda: PGconn.ping(conninfo) not in (Ping.REJECT, Ping.NO_RESPONSE))
