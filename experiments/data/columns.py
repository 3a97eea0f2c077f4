"""The columns that a task reads of a user's files: which files lack them, what these have instead, and the way out."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from experiments.data.reading import DataError, one_part
from experiments.data.rows import SEPARATORS, Table

SHOWN = 8  # of the columns that are there
LONGEST = 40  # characters of a name; in a file without a header the first row stands for names
NO_HEADER = "; if its first line is a row, say task.header=false and give columns by number, e.g. task.text=[0]"


def with_columns(
    tables: Mapping[str, Sequence[Table]], wanted: Mapping[str, str], *, no_header: str = ""
) -> dict[str, Sequence[Table]]:
    """The splits whose files have all columns that are `wanted`, of each the knob that names it.

    `no_header`: the way out where the first line may be no header.
    Raises: DataError for the other files, those that lack the same in one error, as one part of `errors_together`.
    """
    lacking: dict[tuple[str, str], list[str]] = {}
    complete = {}
    for split, parts in tables.items():
        told = {table.place: words for table in parts if (words := _lacks(table, wanted, no_header))}
        for place, words in told.items():
            lacking.setdefault(words, []).append(place)
        if not told:
            complete[split] = parts
    with one_part():
        if lacking:
            raise DataError(*(_told(places, *words) for words, places in lacking.items()))
    return complete


def _told(places: Sequence[str], missing: str, there: str) -> str:
    """'/data/train.csv, dev.csv have no column ...; they have: ...'."""
    named, several = ", ".join([places[0], *(Path(place).name for place in places[1:])]), len(places) > 1
    return f"{named} {'have' if several else 'has'} {missing}; {'they have' if several else 'it has'}: {there}"


def _lacks(table: Table, wanted: Mapping[str, str], no_header: str) -> tuple[str, str] | None:
    """'no column ...', and what there is with the way out; None where the table has all columns, or nothing at all."""
    there = table.names
    missing = [name for name in wanted if name not in there]
    if not missing or not (table.rows or table.columns):
        return None
    separator = _other_separator(there)
    near = {name: "" if separator else _nearest(name, there) for name in missing}
    named = ", ".join(f"{name!r} ({wanted[name]}{near[name]})" for name in missing)
    has = ", ".join(map(_shown, there[:SHOWN])) + (f" and {len(there) - SHOWN} more" if len(there) > SHOWN else "")
    way_out = separator or (no_header if table.header and len(missing) == len(wanted) else "")
    return f"no column{'s' * (len(missing) > 1)} {named}", f"{has or 'none'}{way_out}"


def _shown(name: str) -> str:
    name = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    return name if name == name.strip() else repr(name)


def _nearest(name: str, there: Sequence[str]) -> str:
    folded = {other.strip().casefold(): other for other in there if len(other) <= LONGEST}
    close = get_close_matches(name.strip().casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _other_separator(columns: Sequence[str]) -> str:
    """The way out where one column's name holds what looks like a separator of others."""
    found = [mark for mark in SEPARATORS if len(columns) == 1 and mark in columns[0]]
    if not found:
        return ""
    form = SEPARATORS[found[0]]
    way_out = f"Then say task.format={form}" if form else "Save it with commas, or with tabs and task.format=tsv"
    return f"; are its fields separated by {found[0]!r}? {way_out}"
