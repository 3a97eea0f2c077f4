"""The tables that end a study: what each arm scored at its own rate, and how it compares with its reference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.stats.intervals import MeanInterval
from analysis.study_results.summary import interval_of, selection_gain
from analysis.study_results.verdicts import Evaluated, Judged, rows_tested
from experiments.studies.protocol.estimand import holds_for, holds_over, looked_at, of_methods, unit, units_of
from experiments.studies.protocol.trials import TUNED
from experiments.studies.spec.study import Study
from experiments.studies.terminal import describe_rates

NOTHING = "—"
UNEQUAL = "arms stop at different looks: two means of unlike n are of other seeds; a difference is on those of both"


@dataclass(frozen=True)
class TextTable:
    """A table as text; `words` are the columns that are read from the left, all others are numbers.

    `notes` say below it what its numbers are.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Title, header and rows, with columns of equal width, and the notes."""
        grid = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        return [self.title, *("  ".join(self._cells(row, widths)).rstrip() for row in grid), *self.notes]

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


def verdict_table(study: Study, family: Sequence[Judged]) -> TextTable:
    """A family of comparisons: difference, verdict, and what limits it."""
    setting, late = family[0].setting, "" if family[0].family == 1 else " of arms that came later"
    better = "higher" if study.higher_is_better else "lower"
    confidence = f"{100 * (1 - study.protocol.alpha):.4g}"
    over_rows = rows_tested(family) is not None
    tests, looks = f"{len(family)} comparison{'s' * (len(family) != 1)}", looked_at(study)
    intervals = f"{confidence} % t-intervals, each by itself"
    if looks:
        intervals = (
            f"repeated {confidence} % intervals, which cover as often as they say wherever a comparison stops, beside "
            "ordinary t-intervals, each by itself"
        )
    return TextTable(
        title=f"verdicts {_of(study, setting)} on {study.score_name} of the test split, {_at(study, setting)} "
        f"({better} is better)",
        columns=(
            "arm",
            "reference",
            "difference",
            *(("n", "repeated interval", "ordinary interval") if looks else ("interval",)),
            *(("over rows too",) if over_rows else ()),
            "verdict",
            "MDE",
            f"{units_of(study)} to settle",
            "note",
        ),
        rows=tuple(_verdict_row(each, looks=bool(looks), rows=over_rows) for each in family),
        words=frozenset({"arm", "reference", "verdict", "note"}),
        notes=(
            f"margin ± {study.protocol.margin:g}; Holm over {tests}{late} at {study.protocol.alpha:g}"
            + (f", looked at {looks}; a word is final" if looks else "")
            + f"; {intervals}; MDE: minimum detectable difference",
            f"a verdict holds {holds_over(study, tuned=setting == TUNED, rows=rows_tested(family))}",
        ),
    )


def _arms(study: Study, evaluated: Sequence[Evaluated], parameters: Mapping[str, Any]) -> TextTable:
    setting = evaluated[0].setting
    replicated = setting == TUNED and any(each.best_point for each in evaluated)
    knobs = tuple(study.protocol.tuning.points.knobs)
    own = ("learning rate", "x centre", *knobs, "tuning runs") if setting == TUNED else ()
    gain = ("- best point",) if replicated else ()
    score, better = study.score_name, "higher" if study.higher_is_better else "lower"
    told = (
        "- best point: minus the test score at one point for all seeds, the best on validation that every seed trained"
    )
    beyond = [f"{each.arm.label} {count}" for each in evaluated if (count := _beyond_best(each))]
    outside = f"; seeds that chose beyond those points: {', '.join(beyond)}" if beyond else ""
    told += outside
    reasons = ("without verdict",) if any(each.excluded for each in evaluated) else ()
    return TextTable(
        title=f"{study.name}: {score} {_at(study, setting)}, mean ± half of the 95 % t-interval over "
        f"{units_of(study)} ({better} is better)",
        columns=("arm", *own, f"test {score}", "n", *gain, f"validation {score}", "parameters", *reasons),
        rows=tuple(
            _arm_row(each, parameters, knobs, replicated=replicated)[: None if reasons else -1] for each in evaluated
        ),
        words=frozenset({"arm", "without verdict"}),
        notes=(
            *((unit(study),) if setting == TUNED else ()),
            *((told,) if setting == TUNED and replicated else ()),
            *((UNEQUAL,) if len({len(each.progress.seeds) for each in evaluated}) > 1 else ()),
        ),
    )


def _beyond_best(each: Evaluated) -> int:
    """How many seeds chose one of the points by which their grid was extended, and others did not train it."""
    replications = each.progress.tuning.replications
    common = [point for point in replications[0].added if all(point in one.added for one in replications)]
    return sum(
        any(one.multiplier == point.multiplier and dict(one.values) == dict(point.values) for point in one.added)
        and not any(one.multiplier == point.multiplier and dict(one.values) == dict(point.values) for point in common)
        for one in replications
    )


def _arm_row(
    each: Evaluated, parameters: Mapping[str, Any], knobs: Sequence[str], *, replicated: bool
) -> tuple[str, ...]:
    tuning = each.progress.tuning
    multipliers = [one.multiplier for one in tuning.replications if one.multiplier is not None]
    chosen = [[one.values[knob] for one in tuning.replications if knob in one.values] for knob in knobs]
    cells = [describe_rates(values) or NOTHING for values in (tuning.chosen_rates, multipliers, *chosen)]
    runs = {(trial.learning_rate, str(dict(trial.knobs)), trial.seed) for trial in tuning.trials}
    own = (*cells, str(len(runs))) if each.setting == TUNED else ()
    gain = (_signed(selection_gain(each)),) if replicated else ()
    count = parameters.get(each.arm.label)
    return (
        each.arm.label,
        *own,
        _measured(interval_of(each.test)),
        str(len(each.test)),
        *gain,
        _measured(interval_of(each.validation)),
        NOTHING if count is None or pd.isna(count) else f"{int(count):,}",
        each.excluded or "",
    )


def _verdict_row(each: Judged, *, looks: bool, rows: bool) -> tuple[str, ...]:
    found = each.found
    digits = _digits(found.margin / 10)
    intervals = [
        NOTHING if found is None else "[{:+.{d}f}, {:+.{d}f}]".format(*found, d=digits)
        for found in (each.interval, each.ordinary_interval, each.over_rows.interval if each.over_rows else None)
    ]
    return (
        each.arm.label,
        each.reference.label,
        NOTHING if found.difference is None else f"{found.difference:+.{digits}f}",
        *((str(found.n), *intervals[:2]) if looks else intervals[:1]),
        *(intervals[2:] if rows else ()),
        each.verdict or NOTHING,
        NOTHING if found.minimum_detectable_difference is None else f"{found.minimum_detectable_difference:.{digits}f}",
        NOTHING if found.seeds_to_settle is None else f"{found.seeds_to_settle:,}",
        each.excluded or "; ".join(note for note in (found.note, _over_rows(each)) if note),
    )


def _over_rows(each: Judged) -> str:
    """Where the test split's rows would change the word."""
    if each.over_rows is None or each.over_rows.verdict == each.verdict:
        return ""
    return f"over test rows too: {each.over_rows.verdict}"


def _at(study: Study, setting: str) -> str:
    if setting != TUNED:
        return f"at the {setting.replace(' ', ' rate ')}"
    return "at the points that tuning chose" if of_methods(study) else "at the point that tuning chose"


def _of(study: Study, setting: str) -> str:
    return holds_for(study) if setting == TUNED else "of one rate for all, not of the methods"


def _signed(found: MeanInterval | None) -> str:
    text = _measured(found)
    return f"+{text}" if found is not None and found.mean > 0 else text


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
