"""The tables that end a study: what each arm scored at its own rate, and how it compares with its reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.stats.intervals import MeanInterval
from analysis.study_results.summary import interval_of
from analysis.study_results.verdicts import Evaluated, Judged
from experiments.studies.protocol.trials import TUNED
from experiments.studies.spec.study import Study

NOTHING = "—"


@dataclass(frozen=True)
class TextTable:
    """A table as text; `words` are the columns that are read from the left, all others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str]

    def lines(self) -> list[str]:
        """Title, header and rows, with columns of equal width."""
        grid = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        return [self.title, *("  ".join(self._cells(row, widths)).rstrip() for row in grid)]

    def _cells(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        return [
            cell.ljust(width) if column in self.words else cell.rjust(width)
            for cell, width, column in zip(row, widths, self.columns, strict=True)
        ]


def arms_tables(study: Study, table: pd.DataFrame, evaluated: Sequence[Evaluated]) -> list[TextTable]:
    """One table for each setting: rate, test and validation score of every arm; tuning and parameters in the first."""
    settings = dict.fromkeys(each.setting for each in evaluated)
    parameters = {str(arm): rows.max() for arm, rows in table.groupby("arm")["trainable_parameters"]}
    return [_arms(study, [each for each in evaluated if each.setting == setting], parameters) for setting in settings]


def verdict_table(study: Study, setting: str, family: Sequence[Judged]) -> TextTable:
    """The family of a setting: difference, verdict, and what limits it."""
    better = "higher" if study.higher_is_better else "lower"
    confidence = f"{100 * (1 - study.protocol.alpha):.4g}"
    tests = f"{len(family)} comparison{'s' * (len(family) != 1)}"
    return TextTable(
        title=f"verdicts on {study.score_name} of the test split, {_at(setting)} ({better} is better; margin "
        f"± {study.protocol.margin:g}; Holm over {tests} at {study.protocol.alpha:g}; {confidence} % t-intervals, "
        "each by itself; MDE: minimum detectable difference)",
        columns=("arm", "reference", "difference", "interval", "verdict", "MDE", "seeds to settle", "note"),
        rows=tuple(map(_verdict_row, family)),
        words=frozenset({"arm", "reference", "verdict", "note"}),
    )


def _arms(study: Study, evaluated: Sequence[Evaluated], parameters: Mapping[str, Any]) -> TextTable:
    tuned = evaluated[0].setting == TUNED
    own = ("learning rate", "x centre", "tuning trials") if tuned else ()
    score = study.score_name
    return TextTable(
        title=f"{study.name}: {score} {_at(evaluated[0].setting)}, mean ± half of the 95 % t-interval over seeds "
        f"({'higher' if study.higher_is_better else 'lower'} is better)",
        columns=("arm", *own, f"test {score}", "n", f"validation {score}", "parameters", "without verdict"),
        rows=tuple(_arm_row(each, parameters, tuned=tuned) for each in evaluated),
        words=frozenset({"arm", "without verdict"}),
    )


def _arm_row(each: Evaluated, parameters: Mapping[str, Any], *, tuned: bool) -> tuple[str, ...]:
    tuning = each.progress.tuning
    trials = len(tuning.trials)
    own = (_number(tuning.chosen), _number(tuning.multiplier), str(trials)) if tuned else ()
    count = parameters.get(each.arm.label)
    return (
        each.arm.label,
        *own,
        _measured(interval_of(each.test)),
        str(len(each.test)),
        _measured(interval_of(each.validation)),
        NOTHING if count is None or pd.isna(count) else f"{int(count):,}",
        each.excluded or "",
    )


def _verdict_row(each: Judged) -> tuple[str, ...]:
    found = each.found
    digits = _digits(found.margin / 10)
    interval = NOTHING if each.interval is None else "[{:+.{d}f}, {:+.{d}f}]".format(*each.interval, d=digits)
    return (
        each.arm.label,
        each.reference.label,
        NOTHING if found.difference is None else f"{found.difference:+.{digits}f}",
        interval,
        each.verdict or NOTHING,
        NOTHING if found.minimum_detectable_difference is None else f"{found.minimum_detectable_difference:.{digits}f}",
        NOTHING if found.seeds_to_settle is None else f"{found.seeds_to_settle:,}",
        each.excluded or found.note,
    )


def _at(setting: str) -> str:
    return "at the rate that tuning chose" if setting == TUNED else f"at the {setting.replace(' ', ' rate ')}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _measured(found: MeanInterval | None) -> str:
    """'3.142 ± 0.011': the half-width to two digits, and the mean to as many places."""
    if found is None:
        return NOTHING
    if not found.half_width:
        return f"{found.mean:.4f}" + ("" if found.half_width is None else " ± 0")
    digits = _digits(found.half_width)
    return f"{found.mean:.{digits}f} ± {found.half_width:.{digits}f}"


def _digits(value: float) -> int:
    """Places after the point that show two digits of a value, eight at most."""
    return min(8, max(0, 1 - math.floor(math.log10(value))))
