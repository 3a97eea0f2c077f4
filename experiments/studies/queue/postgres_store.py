"""A queue kept in a PostgreSQL database, which several machines reach.

A process that is suspended inside a transaction (SIGSTOP, a closed lid) would hold its locks and block all others.
So the server drops its connection, which rolls the transaction back; when the process wakes up, it repeats the call
from the start, and what the others have done meanwhile stands.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from typing import Any, cast

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import Engine, NullPool, create_engine, func, make_url, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from experiments.studies.queue.storage import Address, QueueError, Store, TurnLostError

CONNECT_SECONDS = 10
LOCK_SECONDS = 300
ASLEEP_SECONDS = 30  # then the server drops a connection that holds locks and is idle: its process is suspended


class PostgresStore(Store):
    """Opening creates Optuna's tables where there are none."""

    def __init__(self, address: Address) -> None:
        assert address.url is not None
        super().__init__(address)
        with self.errors():
            settings: dict[str, Any] = {"pool_pre_ping": True, "connect_args": self.connect_arguments(address.url)}
            self.turns = create_engine(address.url, poolclass=NullPool, connect_args=settings["connect_args"])
            # Of two processes that create the tables at once one crashes; it may take long.
            with advisory_lock(self.turns, "tables of optuna", asleep=LOCK_SECONDS):
                storage = RDBStorage(address.url, engine_kwargs=settings)
            self.optuna = cast(BaseStorage, Repeating(get_storage(storage)))  # that reads each finished trial once

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
            lock.enter_context(advisory_lock(self.turns, f"study {study}"))
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
                f"{self.address}: the database cannot be used: {self.address.without_password(reason(error))}; "
                "is the server up, the database there (createdb), the password in ~/.pgpass or PGPASSWORD?"
            ) from None
        except KeyError:
            raise QueueError(f"{self.address}: the study was deleted from it; start the study again") from None
        except RuntimeError as error:
            raise QueueError(f"{self.address}: {self.address.without_password(str(error))}") from None


class Repeating:
    """Optuna's storage. Retries a call once if its connection was dropped.

    Each call is one transaction and is harmless when repeated: an added trial has a twin entry, a claim has a holder
    without a name, a result is found to be there.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.storage, name)

        @wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except (SQLAlchemyError, StorageInternalError) as error:
                if not disconnected(error):
                    raise
            return method(*arguments, **named)

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


def disconnected(error: BaseException) -> bool:
    """Whether there was a connection, and it has ended."""
    while error.__cause__ is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    return isinstance(error, DBAPIError) and error.connection_invalidated


def reason(error: BaseException) -> str:
    """What the server or the driver said, without the statement and its values."""
    while error.__cause__ is not None and not hasattr(error, "orig"):
        error = error.__cause__
    said = str(getattr(error, "orig", None) or error).strip()
    return " ".join(said.split())
