"""Files as text: plain or gzipped, decoded whole, and refused where they are torn, empty or no text."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

GZIP = b"\x1f\x8b"  # no utf-8 text begins with these bytes
MARK = "\ufeff"  # some editors put it first, and joined files keep it where another begins
C1 = re.compile(rb"[\x80-\x9f]")  # curly quotes and dashes in cp1252, nothing that is written in latin-1

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


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where its name ends in .gz or it is gzipped whatever its name.

    Raises: DataError for a file that is not there, cannot be opened, is torn or is empty.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz" or content.startswith(GZIP):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if not content.strip():
        raise DataError(f"{path} is empty")
    return content


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file with the line breaks of Unix. Raises: as `decoded`."""
    return line_breaks(decoded(path, encoding))


def line_breaks(text: str) -> str:
    """The text with '\n' at the end of each line, as Windows (and, where it has no other, the old Mac) wrote it."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def decoded(path: Path, encoding: str = "utf-8") -> str:
    """A text file as it is, without byte order marks where a line begins.

    Raises: DataError, also for what is not text in this encoding.
    """
    content = read_bytes(path)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line, advice = content.count(b"\n", 0, error.start) + 1, _advice(content, encoding)
        raise DataError(f"{path} line {line}: not {encoding} text ({error.reason}){advice}") from None
    except (LookupError, UnicodeError):
        raise DataError(f"task.encoding: Python knows no encoding {encoding!r}; try utf-8 or latin-1") from None
    if "\0" in text:
        raise DataError(f"{path} is not text: it has a zero byte at {content.index(0)}{_advice(content, encoding)}")
    if content.startswith(codecs.BOM_UTF8) and not text.startswith(MARK) and "utf" not in encoding.lower():
        raise DataError(f"{path} begins with the mark of utf-8 text, not {encoding}; say task.encoding=utf-8")
    if not text.strip(f"{MARK} \t\r\n"):
        raise DataError(f"{path} is empty")
    return re.sub(f"(?<![^\r\n]){MARK}", "", text) if MARK in text else text


def _advice(content: bytes, encoding: str) -> str:
    """The first encoding in which the content is text, as a way out."""
    first, second = content[0::2].count(0), content[1::2].count(0)
    wide = ["utf-16-be" if first > second else "utf-16"] if first + second > len(content) / 4 else []
    for other in ("utf-8", *wide, *(["cp1252"] if C1.search(content) else []), "latin-1"):
        if codecs.lookup(other) != codecs.lookup(encoding):
            with suppress(UnicodeDecodeError):
                if "\0" not in content.decode(other):
                    return f"; if the text is right, say task.encoding={other}"
    return ""


def bare_name(path: Path) -> str:
    """The name without what says how it is stored: 'train' of train.tsv.gz."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name


def kind_of(path: Path) -> str:
    """What a file's name says of its form: 'tsv' of train.tsv.gz, '' where it says nothing."""
    return path.name.removesuffix(".gz").rpartition(".")[2].lower() if "." in path.name.removesuffix(".gz") else ""
