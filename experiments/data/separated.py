"""Fields separated by commas or tabs (RFC 4180): rows with the lines that they take, none lost and none made up.

Where the quoting is broken nobody knows where rows begin and end, so nothing is left out there: it is an error.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.data.reading import DataError
from experiments.data.rows import Malformed, Row, Table, twice

QUOTE = '"'
csv.field_size_limit(2**31 - 1)  # the limit of 131,072 characters would split a long cell into rows


@dataclass(frozen=True)
class Record:
    """What one row may be: its fields, or why it has none, and its lines as they stand in the file."""

    first: int
    lines: list[str]
    fields: list[str]
    error: str | None = None

    @property
    def where(self) -> str:
        last = self.first + len(self.lines) - 1
        return f"line {self.first}" if last == self.first else f"lines {self.first}-{last}"


def read_separated(path: Path, text: str, delimiter: str, *, header: bool, quoted: bool) -> Table:
    """Every row of a text. Raises: DataError for two columns of one name, and where the quoting is broken."""
    table, names = Table(str(path), None), None
    for record in _quoted(path, text, delimiter) if quoted else _plain(text, delimiter):
        table.lines += len(record.lines)
        if not record.error and (not record.fields or not "".join(record.lines).strip()):
            table.empty += len(record.lines)
            continue
        if names is None and not record.error:
            names = table.columns = _names(path, record, header=header)
            if header:
                table.header = len(record.lines)
                continue
        if error := record.error or _no_row(record, names or (), header=header):
            if len(record.lines) > 1:
                raise DataError(f"{path} {record.where}: one row over {len(record.lines)} lines {error}; mend it")
            table.malformed.append(Malformed(table.place, record.first, error))
            continue
        values = dict(zip(names or (), record.fields, strict=True))
        table.rows.append(Row(table.place, record.first, values, len(record.lines)))
        table.warnings += _like_rows(path, record, delimiter, len(names or ()))
    return table


def _names(path: Path, record: Record, *, header: bool) -> tuple[str, ...]:
    names = tuple(record.fields) if header else tuple(str(i) for i in range(len(record.fields)))
    if again := twice([name for name in names if name.strip()]):  # spreadsheets leave columns without a name
        raise DataError(f"{path} {record.where}: the header has {', '.join(again)} more than once; rename one")
    return names


def _no_row(record: Record, names: tuple[str, ...], *, header: bool) -> str | None:
    """Why the fields are none of a row: another number of them, or the header again, as in files that were joined."""
    if header and len(names) > 1 and tuple(record.fields) == names:
        return "repeats the header"
    if len(record.fields) == len(names):
        return None
    first = "the header" if header else "the first row"
    return f"has {len(record.fields)} field{'s' * (len(record.fields) != 1)}, {first} has {len(names)}"


def _like_rows(path: Path, record: Record, delimiter: str, fields: int) -> list[str]:
    """A warning of a row whose inner lines could be rows: a quote too few and one too many would look like this."""
    inner = record.lines[1:-1]
    if not inner or any(line.count(delimiter) + 1 != fields for line in inner):
        return []
    return [f"{path} {record.where} are one row; each inner line has {fields} fields, like a row: is a quote missing?"]


def _plain(text: str, delimiter: str) -> Iterator[Record]:
    for i, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        yield Record(i, [line], line.split(delimiter))


def _quoted(path: Path, text: str, delimiter: str) -> Iterator[Record]:
    """Raises: DataError where a quote is missing or one too many, and where lines end in two ways."""
    lines, first, ends = list(io.StringIO(text, newline="")), 1, dict[bool, str]()
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while first <= len(lines):
        try:
            record = Record(first, [], next(reader))
        except csv.Error as error:
            record = Record(first, [], [], str(error))
        record.lines.extend(lines[first - 1 : reader.line_num])
        _refuse_unsure(path, record, delimiter)
        yield record
        first = reader.line_num + 1
        if first <= len(lines):
            ends.setdefault(record.lines[-1].endswith("\r"), record.where)
        if len(ends) == 2:
            raise DataError(
                f"{path}: {ends[True]} ends with a carriage return alone, {ends[False]} with a line feed, so where "
                "rows end is not sure; end all lines alike"
            )


def _refuse_unsure(path: Path, record: Record, delimiter: str) -> None:
    """Raises: DataError where a quote is missing or one too many, so that lines before or behind may belong here.

    The quotes of a row come in pairs. An odd one in the middle of a field that is not quoted can be none of a pair
    (a screen of 13" is one), at its end it may close a field that has lost its first quote, or the comma before it.
    """
    even = sum(line.count(QUOTE) for line in record.lines) % 2 == 0
    if even and record.error is not None and len(record.lines) == 1:
        return
    if record.error is None and not any(field.endswith(QUOTE) for field in record.fields):
        return
    if even and record.error is None and not _ends_odd(record, delimiter):
        return
    if record.error is not None and "end of data" in record.error:
        what = f"a quoted field that begins in line {record.first} is never closed"
    else:
        what = "a quote is missing or one too many" + (f" ({record.error})" if record.error else "")
    raise DataError(
        f"{path} {record.where}: {what}, so where rows end there is not sure; mend it (a quote in a quoted field is "
        "doubled), or say task.quoted=false for a file without quoting"
    )


def _ends_odd(record: Record, delimiter: str) -> bool:
    """Whether a field that is not quoted ends with a quote that has no pair in it."""
    mark = re.escape(delimiter)
    bare = re.sub(rf'(?:^|(?<={mark}))"(?:[^"]|"")*"(?={mark}|[\r\n]*\Z)', "", "".join(record.lines))
    return any(field.endswith(QUOTE) and field.count(QUOTE) % 2 for field in bare.rstrip("\r\n").split(delimiter))
