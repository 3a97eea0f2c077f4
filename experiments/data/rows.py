"""Rows of a table, and what in its file is none: every physical line of it is accounted for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from experiments.data.reading import DataError

SHOWN = 5
SEPARATORS = {",": "csv", "\t": "tsv", ";": None, "|": None}  # and the form of a file that has them


@dataclass(frozen=True)
class Malformed:
    """A row that says nothing usable: the line that it begins in, and how many it takes."""

    place: str
    line: int
    reason: str
    lines: int = 1
    unit: str = "line"

    def __str__(self) -> str:
        where = f"{self.unit} {self.line}" if self.lines == 1 else f"lines {self.line}-{self.line + self.lines - 1}"
        return f"{self.place} {where}: {self.reason}"


@dataclass(frozen=True)
class Row:
    """The values of one row under the names of their columns; columns without a header are '0', '1', ..."""

    place: str
    line: int
    values: dict[str, Any]
    lines: int = 1
    unit: str = "line"

    def malformed(self, reason: str) -> Malformed:
        return Malformed(self.place, self.line, reason, self.lines, self.unit)


@dataclass
class Table:
    """The rows of one source; `columns` is None where each row names its own.

    `lines`: of the file, 0 where it has none (parquet, the Hub); `header`, `empty`: lines that hold no row.
    """

    place: str
    columns: tuple[str, ...] | None
    rows: list[Row] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lines: int = 0
    header: int = 0
    empty: int = 0

    @property
    def unaccounted(self) -> int:
        """Lines of the file that are neither header nor row nor malformed nor empty: none."""
        held = sum(row.lines for row in self.rows) + sum(part.lines for part in self.malformed)
        return self.lines - self.header - held - self.empty if self.lines else 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, or those that any row names."""
        if self.columns is not None:
            return self.columns
        return tuple(dict.fromkeys(name for row in self.rows for name in row.values))

    def need(self, columns: Sequence[str]) -> None:
        """Raises: DataError where one of these columns is in no row."""
        if missing := [name for name in columns if name not in self.names]:
            raise DataError(
                f"{self.place} has no column {', '.join(missing)}; it has: {', '.join(self.names) or 'none'}"
            )


def twice(names: Sequence[str]) -> list[str]:
    """The names that are there more than once."""
    return sorted({name for name in names if names.count(name) > 1})


@dataclass(frozen=True)
class SourceRead:
    """What became of a source: its rows that are used and left out, and of a text file its lines by what they hold."""

    place: str
    rows: int
    left_out: int
    lines: dict[str, int]

    def __str__(self) -> str:
        return f"{Path(self.place).name} ({self._held()})"

    def _held(self) -> str:
        """'6 lines: 1 header, 4 in 3 rows, 1 empty', or how many there are where each is a row."""
        if not self.lines:
            return _counted(self.rows + self.left_out, "row")
        rows = _counted(self.rows, "row")
        rows = rows if self.lines["of rows"] == self.rows else f"{self.lines['of rows']:,} in {rows}"
        held = [
            rows if what == "of rows" else f"{count:,} {what}"
            for what, count in self.lines.items()
            if count and what != "all"
        ]
        all_lines = _counted(self.lines["all"], "line")
        return all_lines if self.lines["all"] == self.rows else f"{all_lines}: {', '.join(held)}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def source_read(table: Table, left_out: Sequence[Malformed]) -> SourceRead:
    """`left_out`: rows of the table that say nothing usable; its malformed lines are known to it."""
    used = len(table.rows) - len(left_out)
    malformed = sum(part.lines for part in (*table.malformed, *left_out))
    of_rows = sum(row.lines for row in table.rows) - sum(part.lines for part in left_out)
    parts = {"header": table.header, "of rows": of_rows, "malformed": malformed, "empty": table.empty}
    lines = {"all": table.lines} | parts if table.lines else {}
    return SourceRead(table.place, used, len(table.malformed) + len(left_out), lines)


def refuse_without_rows(split: str, rows: int, malformed: Sequence[Malformed]) -> None:
    """Raises: DataError where all that a split has is malformed, with the reasons, also where such rows are skipped."""
    if not rows and malformed:
        raise DataError(
            f"the {split} split has no usable row; {len(malformed):,} {_are(malformed)} malformed:\n{_shown(malformed)}"
        )


def refuse_malformed(malformed: Sequence[Malformed], rows: int) -> None:
    """Raises: DataError that counts the malformed rows and shows the first, of every file some."""
    if malformed:
        raise DataError(
            f"{len(malformed):,} of {rows:,} rows {_are(malformed)} malformed; mend them, or leave them out, counted, "
            f"with task.skip_malformed=true:\n{_shown(malformed)}"
        )


def _are(malformed: Sequence[Malformed]) -> str:
    return "is" if len(malformed) == 1 else "are"


def _shown(malformed: Sequence[Malformed]) -> str:
    """The first of every place, a line each."""
    by_place: dict[str, list[int]] = {}
    for i, row in enumerate(malformed):
        by_place.setdefault(row.place, []).append(i)
    in_turn = [i for turn in zip_longest(*by_place.values()) for i in turn if i is not None]
    shown = "\n".join(f"  {malformed[i]}" for i in sorted(in_turn[:SHOWN]))
    return shown + (f"\n  and {len(malformed) - SHOWN} more" if len(malformed) > SHOWN else "")
