"""Files as text: plain or gzipped, decoded whole, and refused where they are torn, empty or no text."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

SHOWN = 5


_kept: ContextVar[list[str] | None] = ContextVar("kept", default=None)


class DataError(ValueError):
    """Data that cannot be used: for each error which file, which line, why, and the way out."""

    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


@contextmanager
def errors_together() -> Iterator[None]:
    """The errors of the parts inside are one DataError at the end; inside another such block, at the end of that."""
    if _kept.get() is not None:
        yield
        return
    errors: list[str] = []
    token = _kept.set(errors)
    try:
        with one_part():
            yield
    finally:
        _kept.reset(token)
    if errors:
        raise DataError(*dict.fromkeys(errors))


@contextmanager
def one_part() -> Iterator[None]:
    """A DataError inside ends this part alone: the others are looked at too, before `errors_together` raises it."""
    errors = _kept.get()
    try:
        yield
    except DataError as error:
        if errors is None:
            raise
        errors.extend(error.errors)


@dataclass(frozen=True)
class Malformed:
    """A row that says nothing usable."""

    place: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.place} line {self.line}: {self.reason}"


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where its name ends in .gz.

    Raises: DataError for a file that is not there, cannot be opened, is torn or is empty.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty")
    return content


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file, without the mark that some editors put first.

    Raises: DataError, also for what is not text in this encoding.
    """
    content = read_bytes(path)
    if b"\0" in content:
        raise DataError(f"{path} is no text: it has a zero byte at {content.index(0)}")
    try:
        return content.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} line {line}: not {encoding} text ({error.reason}); if the text is right, say task.encoding=latin-1"
        ) from None
    except LookupError:
        raise DataError(f"task.encoding: Python knows no encoding {encoding!r}; try utf-8 or latin-1") from None


def bare_name(path: Path) -> str:
    """The name without what says how it is stored: 'train' of train.tsv.gz."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def kind_of(path: Path) -> str:
    """What a file's name says of its form: 'tsv' of train.tsv.gz, '' where it says nothing."""
    return path.name.removesuffix(".gz").rpartition(".")[2].lower() if "." in path.name.removesuffix(".gz") else ""


def refuse_malformed(malformed: list[Malformed], rows: int) -> None:
    """Raises: DataError that counts the malformed rows and shows the first, of every file some."""
    if malformed:
        by_place: dict[str, list[int]] = {}
        for i, row in enumerate(malformed):
            by_place.setdefault(row.place, []).append(i)
        in_turn = [i for turn in zip_longest(*by_place.values()) for i in turn if i is not None]
        shown = "\n".join(f"  {malformed[i]}" for i in sorted(in_turn[:SHOWN]))
        more = f"\n  and {len(malformed) - SHOWN} more" if len(malformed) > SHOWN else ""
        raise DataError(
            f"{len(malformed)} of {rows} rows are malformed; mend them, or leave them out, counted, "
            f"with task.skip_malformed=true:\n{shown}{more}"
        )
