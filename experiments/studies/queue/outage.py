"""A database server that does not answer for a while: who needs it tries again, says so once, and goes on with it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from experiments.studies.queue.storage import Patience

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 5.0
TURN_SECONDS = 0.1  # between two looks at whether anybody still waits

Result = TypeVar("Result")


@dataclass(frozen=True)
class Server:
    """A database server: what a person calls it, and whether it accepts connections now."""

    name: str
    accepts: Callable[[], bool]


class Outages:
    """Those of one server, for all threads of this process."""

    def __init__(self, server: Server, patience: Patience) -> None:
        self.server, self.patience = server, patience
        self.since: float | None = None  # of the outage that lasts
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """How long the outage has lasted; 0 where there is none, or nobody waits for its end."""
        return time.monotonic() - self.since if self.since is not None and self.patience.seconds else 0.0

    def bridge(self, call: Callable[[], Result]) -> Result:
        """What `call` returns; it is repeated while the server does not answer, as long as there is patience.

        Each call is one transaction and harmless when repeated.
        Raises: what it raises, where waiting does not help or did not.
        """
        pause, accepted = FIRST_PAUSE_SECONDS, 0
        while True:
            try:
                result = call()
            except (SQLAlchemyError, StorageInternalError) as error:
                if not may_be_an_outage(error):
                    raise
                # One that accepts connections has come back meanwhile, or it has refused this user.
                accepted = accepted + 1 if self.server.accepts() else 0
                if accepted > 1 or (not accepted and not self._wait(pause, error)):
                    raise
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                self._end()
                return result

    def _wait(self, pause: float, error: Exception) -> bool:
        """Whether to try again, after a pause."""
        with self._lock:
            if self.since is None:
                self.since = time.monotonic()
                if self.patience.seconds:
                    self.patience.say(
                        f"PostgreSQL at {self.server.name} does not answer ({in_short(error)}); "
                        f"trying again for {self.patience.seconds:g} s"
                    )
            last = self.since + self.patience.seconds
        until = min(time.monotonic() + pause, last)
        while (left := until - time.monotonic()) > 0 and not self.patience.is_over():
            time.sleep(min(left, TURN_SECONDS))
        return time.monotonic() < last and not self.patience.is_over()

    def _end(self) -> None:
        if self.since is not None:
            with self._lock:
                since, self.since = self.since, None
            if since is not None and self.patience.seconds:
                self.patience.say(f"PostgreSQL at {self.server.name} answers again")


def may_be_an_outage(error: BaseException) -> bool:
    """Whether a connection has ended, or none could be made; the server has no code for why it refused one."""
    found = cause(error)
    if isinstance(found, PendingRollbackError):  # Optuna went on in a transaction whose connection had ended
        return True
    if not isinstance(found, DBAPIError):
        return False
    return found.connection_invalidated or getattr(found.orig, "sqlstate", None) is None


def reason(error: BaseException) -> str:
    """What the server or the driver said, without the statement and its values."""
    found = cause(error)
    said = str(getattr(found, "orig", None) or found).strip()
    return " ".join(said.split())


def in_short(error: BaseException) -> str:
    """The first line of it."""
    found = cause(error)
    return str(getattr(found, "orig", None) or found).strip().partition("\n")[0]


def cause(error: BaseException) -> BaseException:
    """The error of the driver that Optuna's error came from, if there is one."""
    while error.__cause__ is not None and not isinstance(error, DBAPIError):
        error = error.__cause__
    return error
