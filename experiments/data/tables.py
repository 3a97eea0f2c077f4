"""Tables as rows of named columns: csv, tsv, jsonl, parquet, the 'LABEL:fine question' lines of TREC, plain lines."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.reading import DataError, decoded, kind_of, line_breaks, read_bytes
from experiments.data.rows import Malformed, Row, Table, twice
from experiments.data.separated import read_separated

KINDS = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "json": "jsonl", "parquet": "parquet", "label": "trec"}
SPREADSHEETS = ("xlsx", "xlsm", "xlsb", "xls", "ods", "numbers")
LINE = ""  # the one column of a text file


@dataclass(frozen=True)
class Form:
    """How a table is written; None: what the file's name says."""

    form: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    quoted: bool | None = None  # None: in csv, not in tsv
    of_txt: str = "tsv"  # what a name in .txt says


def read_table(path: Path, form: Form) -> Table:
    """Every row of a file, and every line that is none.

    Raises: DataError where the file as a whole cannot be used.
    """
    kinds = KINDS | {"txt": form.of_txt}
    name = form.form or kinds.get(kind_of(path))
    if name is None and kind_of(path) in SPREADSHEETS:
        raise DataError(f"{path} is a spreadsheet, which is not read: save it as csv")
    if name is None:
        known = ", ".join(sorted(kinds))
        raise DataError(f"{path}: its name does not say what it is (known: {known}); say task.format=csv or another")
    if name == "parquet":
        return _parquet(path)
    table = _of_text(path, decoded(path, form.encoding), name, form)
    assert not table.unaccounted, f"{path}: {table.unaccounted} of {table.lines} lines are not accounted for"
    return table


def _of_text(path: Path, text: str, name: str, form: Form) -> Table:
    if name in ("csv", "tsv"):
        quoted = name == "csv" if form.quoted is None else form.quoted
        text = text if quoted else line_breaks(text)  # a quoted field keeps those that it has
        return read_separated(path, text, "," if name == "csv" else "\t", header=form.header, quoted=quoted)
    text = line_breaks(text)
    if name == "text":
        lines = text.removesuffix("\n").split("\n")
        rows = [Row(str(path), i, {LINE: line}) for i, line in enumerate(lines, 1)]
        return Table(str(path), (LINE,), rows, lines=len(lines))
    if name == "jsonl" and (whole := _one_value(text)) is not None:
        return _array(path, whole)
    return _lines(path, text, _json_object if name == "jsonl" else _trec_question)


def _lines(path: Path, text: str, parse: Callable[[str], dict[str, Any] | str]) -> Table:
    table = Table(str(path), None)
    for line, content in enumerate(text.removesuffix("\n").split("\n"), 1):
        table.lines += 1
        found = parse(content) if content.strip() else None
        if found is None:
            table.empty += 1
        elif isinstance(found, str):
            table.malformed.append(Malformed(table.place, line, found))
        else:
            table.rows.append(Row(table.place, line, found))
    return table


def _one_value(text: str) -> list[Any] | dict[str, Any] | None:
    """An array, or an object over several lines: the one JSON value that is the whole text; else None."""
    if not text.lstrip().startswith(("[", "{")) or ("\n" not in text.strip() and text.lstrip()[0] == "{"):
        return None
    try:
        found: list[Any] | dict[str, Any] = json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        return None
    return found


def _array(path: Path, whole: list[Any] | dict[str, Any]) -> Table:
    """The objects of an array as rows, by number. Raises: DataError for an object, whose rows nobody knows."""
    if isinstance(whole, dict):
        keys = ", ".join(list(whole)[:5])
        raise DataError(f"{path} is one JSON object ({keys}); write its rows as an array of objects, or one a line")
    table = Table(str(path), None)
    for i, value in enumerate(whole, 1):
        found = _object(value)
        if isinstance(found, str):
            table.malformed.append(Malformed(table.place, i, found, unit="item"))
        else:
            table.rows.append(Row(table.place, i, found, unit="item"))
    return table


def _json_object(content: str) -> dict[str, Any] | str:
    try:
        return _object(json.loads(content, object_pairs_hook=_Object))
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except ValueError as error:  # that Python reads no number of so many digits
        return str(error).partition(";")[0]
    except RecursionError:
        return "nested too deep"


class _Object(dict[str, Any]):
    """An object of JSON, and the keys that it has more than once, of which a dict keeps the last."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice = twice([key for key, _ in pairs]) if len(self) < len(pairs) else []


def _object(value: object) -> dict[str, Any] | str:
    if isinstance(value, _Object) and value.twice:
        return f"has {', '.join(value.twice)} more than once"
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "has half of a character, a lone surrogate"
    return value if isinstance(value, dict) else f"a {type(value).__name__}, not an object of columns"


def _trec_question(content: str) -> dict[str, Any] | str:
    label, _, question = content.partition(" ")
    coarse, colon, _ = label.partition(":")
    if not colon or not question.strip():
        return f"not 'LABEL:fine question': {content[:40]!r}"
    return {"text": question.strip(), "fine_label": label, "coarse_label": coarse}


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import read_table as read_parquet

    content = read_bytes(path)
    try:
        found = read_parquet(BufferReader(content))
        values = found.to_pylist()
    except (ArrowException, OSError, ValueError) as error:  # a text that is no UTF-8 shows as it is taken out
        raise DataError(f"{path} is no whole parquet file ({(str(error).splitlines() or [''])[0]})") from None
    rows = [Row(str(path), i, row, unit="row") for i, row in enumerate(values, 1)]
    return Table(str(path), tuple(found.column_names), rows)
