"""Where the queue of a study is kept: a journal file, or a PostgreSQL database that several machines reach."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import URL

ADDRESS_VARIABLE = "LORA_STUDIES_STORAGE"
POSTGRESQL = ("postgresql", "postgresql+psycopg")


class QueueError(RuntimeError):
    """The queue cannot be used as it is; the text names the rule, the value and the way out, and holds no password."""


class TurnLostError(QueueError):
    """This process was suspended in its turn for so long that others were let in."""


@dataclass(frozen=True)
class Patience:
    """For how long to try again while a database does not answer, who is told of it, and whether nobody waits now."""

    seconds: float
    say: Callable[[str], object]
    is_over: Callable[[], bool] = lambda: False


NO_PATIENCE = Patience(0.0, say=print)  # of who asks once, and then says what the storage said


@dataclass(frozen=True)
class Address:
    """A journal file or a database. As text, and in its repr, it has no password."""

    journal: Path | None = None
    url: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str(self.journal) if self.url is None else self.url

    def without_password(self, text: str) -> str:
        """`text`, safe to show."""
        return text.replace(self.password, "***") if self.password else text


def storage_address(
    option: str | None, *, runs_dir: Path, study: str, environment: Mapping[str, str] = os.environ
) -> Address:
    """From the command line, else from LORA_STUDIES_STORAGE, else `<runs_dir>/<study>/journal.log`.

    Both forms may be a path or `postgresql+psycopg://user@host:port/database`. A password may come from the URL in the
    environment; libpq finds it by itself in PGPASSWORD, PGPASSFILE and ~/.pgpass.

    Raises: QueueError for another kind of database, an unreadable URL, or a password on the command line.
    """
    if option is not None:
        address = read_address(option, told_by="--storage")
        if address.password is not None:
            raise QueueError(
                f"--storage {address}: a password on the command line is visible to everyone on this machine; "
                f"leave it out and put it into ~/.pgpass or PGPASSWORD, or put the whole URL into {ADDRESS_VARIABLE}"
            )
        return address
    if environment.get(ADDRESS_VARIABLE):
        return read_address(environment[ADDRESS_VARIABLE], told_by=ADDRESS_VARIABLE)
    return Address(journal=runs_dir / study / "journal.log")


def read_address(text: str, *, told_by: str) -> Address:
    """The address that a path or a URL names.

    Raises: QueueError, which never quotes a URL that could not be taken apart: it may hold a password.
    """
    if "://" not in text:
        return Address(journal=Path(text).expanduser())
    url = parsed(text, told_by)
    if url.drivername not in POSTGRESQL:
        raise QueueError(
            f"{told_by}: a queue is kept in a journal file or in PostgreSQL, not in {url.drivername!r}; "
            "give a path, or postgresql+psycopg://user@host:port/database"
        )
    in_query = url.query.get("password")
    password = url.password if url.password is not None else in_query if isinstance(in_query, str) else None
    bare = url.create(POSTGRESQL[-1], url.username, None, url.host, url.port, url.database, url.query)
    bare = bare.difference_update_query(["password"])
    return Address(url=bare.render_as_string(hide_password=False), password=None if password is None else str(password))


def parsed(text: str, told_by: str) -> "URL":
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    advice = (
        f"{told_by}: the URL cannot be read; write postgresql+psycopg://user@host:port/database, with @ : / % in a "
    )
    advice += "name or password percent-encoded (%40 %3A %2F %25)"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise QueueError(advice) from None
    parts = (url.host or "", url.database or "", *url.query)
    if any(mark in part for part in parts for mark in "@{}"):  # a password with an @ in it is cut there
        raise QueueError(advice)
    if "sslpassword" in url.query:
        raise QueueError(f"{told_by}: leave sslpassword out of the URL; libpq also takes it from a service file")
    return url


class Store(ABC):
    """An opened storage: Optuna's, with one process at a time where that is needed, and errors in our words."""

    optuna: "BaseStorage"

    def __init__(self, address: Address) -> None:
        self.address = address
        self.process = os.getpid()

    @contextmanager
    def use(self) -> Iterator["BaseStorage"]:
        """Optuna's storage. What goes wrong inside with it is a QueueError outside."""
        if os.getpid() != self.process:
            raise QueueError("a queue belongs to the process that opened it; open one in each process")
        with self.errors():
            yield self.optuna

    @abstractmethod
    def turn(self, study: str) -> AbstractContextManager[None]:
        """Inside, no other process is in its turn of this study; a process that dies loses it.

        Raises: TurnLostError at its end, where a suspended process loses it too and this one has.
        """

    @abstractmethod
    def errors(self) -> AbstractContextManager[None]: ...
