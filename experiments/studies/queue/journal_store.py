"""A queue kept in a journal: a file to which every process appends a line for each thing it does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from experiments.studies.queue.storage import Address, QueueError, Store

LOCK_SECONDS = 300.0  # adding ten thousand trials takes one


class JournalStore(Store):
    """For one machine: that a dead process holds no lock is its kernel's doing."""

    def __init__(self, address: Address) -> None:
        assert address.journal is not None
        super().__init__(address)
        self.path = address.journal
        with self.errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.optuna = JournalStorage(JournalFileBackend(str(self.path), lock_obj=AppendLock(self.path)))

    @contextmanager
    def turn(self, study: str) -> Iterator[None]:
        del study  # a journal holds one
        with self.errors():
            lock = beside(self.path, "turn")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except Timeout:
            raise QueueError(
                f"{self.path}: another process has held it for {LOCK_SECONDS:g} seconds; is one suspended? End it"
            ) from None
        except FileNotFoundError:
            raise QueueError(
                f"{self.path}: the journal was deleted while it was in use; start the study again: it finds the trials "
                "whose run directories are there"
            ) from None
        except OSError as error:
            raise QueueError(
                f"{self.path}: the journal cannot be read or written: {error.strerror or error}; "
                "make room, or choose a place where you may write with --storage"
            ) from None
        except (ValueError, AssertionError, AttributeError) as error:
            raise QueueError(self.unreadable(error)) from None
        except KeyError as error:
            if error.args != ("Record does not exist.",):
                raise QueueError(self.unreadable(error)) from None
            raise QueueError(f"{self.path}: the study was deleted from it; start the study again") from None

    def unreadable(self, error: Exception) -> str:
        line = first_unreadable_line(self.path)
        where = f"line {line} is damaged" if line else f"a line is not one of Optuna {optuna.__version__} ({error})"
        return (
            f"{self.path}: the journal cannot be read: {where}; restore it from a copy, read it with the version that "
            "wrote it, or move it away and start the study again"
        )


class AppendLock(JournalFileOpenLock):
    """Held while a line is appended. The kernel frees it when its holder dies.

    Optuna's locks are files that outlive a killed holder: for 30 seconds all others would wait.

    A write that a crash or a full disk cut short leaves part of a line. Nobody has acted on it, since readers take
    whole lines only. But the next line would be glued to it, and no process could read the file again. So it is cut off
    first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=None)
        self.path = path
        self.lock = beside(path, "lock")

    def acquire(self) -> bool:
        self.lock.acquire()
        try:
            cut_off_part_of_line(self.path)
        except BaseException:
            self.lock.release()
            raise
        return True

    def release(self) -> None:
        self.lock.release()


def beside(path: Path, purpose: str) -> FileLock:
    """Not '<journal>.lock': that name is taken by other programs of Optuna's."""
    return FileLock(path.with_name(f".{path.name}.{purpose}"), timeout=LOCK_SECONDS)


def cut_off_part_of_line(path: Path) -> None:
    """The file ends with a whole line, or is empty."""
    with path.open("rb+") as file:
        end = file.seek(0, 2)
        if end == 0:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        start = end
        part = b""
        while start > 0 and b"\n" not in part:
            start = max(0, start - 65536)
            file.seek(start)
            part = file.read(end - start)
        file.truncate(start + part.rfind(b"\n") + 1)


def first_unreadable_line(path: Path) -> int | None:
    """Counted from 1; None if every line is JSON."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError:
                return number
    return None
