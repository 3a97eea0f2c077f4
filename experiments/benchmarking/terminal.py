"""What a user of the benchmark sees: a bar for each case, and the tables at the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments.benchmarking.implementations import BUILDERS, PEFT
from experiments.benchmarking.measurement import Report
from experiments.benchmarking.pack_timing import PackResult
from experiments.benchmarking.results import Result
from experiments.benchmarking.whole_study import OURS, StudyResult
from experiments.terminal import Display

UNITS = {"seconds": 1e3, "bytes": 2**-20}  # to milliseconds, to MiB


@contextmanager
def progress_bars(display: Display) -> Iterator[Report]:
    """A bar for each case that reports inside, drawn at reports only: a thread that draws would be timed too."""
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=display.console, auto_refresh=False) as progress:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, refresh=True)

        yield report


def show_results(display: Display, results: Sequence[Result]) -> None:
    """A table a case, for a terminal of 80 columns and more."""
    display.say("One training step: forward, backward, optimizer. Ratio to PEFT: the median [quartiles].")
    for result in results:
        table = _table(result.case.label)
        table.add_column("", no_wrap=True, min_width=max(map(len, BUILDERS)))
        for header in ("ms", "time / PEFT's", *(["MiB", "memory / PEFT's"] if result.bytes else [])):
            table.add_column(header, justify="right", no_wrap=True, min_width=7)
        summary = {(row["implementation"], row["quantity"]): row for row in result.summary()}
        for name in BUILDERS:
            if name in result.missing:
                table.add_row(name, "", result.missing[name])
                continue
            rows = [summary[name, quantity] for quantity, numbers in result.quantities().items() if numbers]
            table.add_row(name, *(cell for row in rows for cell in _cells(row)))
        display.say("")
        display.console.print(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, str]:
    quartiles = f"[{row['ratio_lower_quartile']:.2f}, {row['ratio_upper_quartile']:.2f}]"
    if row["implementation"] == PEFT and row["quantity"] == "seconds":
        quartiles = " " * len(quartiles)  # 1 in every round
    return f"{row['median'] * UNITS[row['quantity']]:,.1f}", f"{row['ratio']:.2f} {quartiles}"


def ratio_table(results: Sequence[Result]) -> pd.DataFrame:
    """Every measured ratio to PEFT, a row each, PEFT's own apart: what the figure of steps draws."""
    rows = [
        {"case": result.case.label, "implementation": name, "quantity": what, "ratio": ratio}
        for quantity, what in (("seconds", "time"), ("bytes", "memory"))
        for result in results
        for name, ratios in result.ratios(quantity).items()
        if name != PEFT
        for ratio in ratios
    ]
    return pd.DataFrame(rows)


def show_packs(display: Display, results: Sequence[PackResult]) -> None:
    """A table a case: what a trial-step costs in packs of several sizes."""
    display.say("One step of one trial in a pack, as the training loop makes it, with norms, clipping and its report.")
    display.say("Ratios to PEFT's step [quartiles]; to its step with AdamW not fused; to its step with clipping.")
    for result in results:
        medians = (f"{name} {np.median(result.their_step(name)) * UNITS['seconds']:,.2f} ms" for name in result.theirs)
        table = _table(f"{result.case.label}\n{'; '.join(medians)}")
        headers = ("trials", "ms", "a second", "/ PEFT's", "not fused", "clipping", "pack of one")
        for header in (*headers, *(["MiB"] if result.bytes else [])):
            table.add_column(header, justify="right", no_wrap=True)
        for row in result.summary():
            quartiles = f"{row['ratio']:.2f} [{row['ratio_lower_quartile']:.2f}, {row['ratio_upper_quartile']:.2f}]"
            cells = [f"{row['seconds'] * UNITS['seconds']:,.2f}", f"{row['trial_steps_per_second']:,.0f}", quartiles]
            others = ("ratio_to_not_fused", "ratio_to_clipping", "ratio_to_pack_of_one")
            cells += [f"{row[name]:.2f}" if name in row else "" for name in others]
            cells += [_mebibytes(result, str(row["trials"]))] if result.bytes else []
            table.add_row(str(row["trials"]), *cells)
        for trials, why in result.missing.items():
            table.add_row(str(trials), "", "", why)
        if result.bytes:
            table.add_row(PEFT, "", "", "", "", "", _mebibytes(result, PEFT))
        display.say("")
        display.console.print(table)


def _mebibytes(result: PackResult, name: str) -> str:
    return f"{np.median(result.bytes[name]) * UNITS['bytes']:,.0f}"


def show_studies(display: Display, results: Sequence[StudyResult]) -> None:
    """A table a study: the time of ours and of PEFT, start-up included."""
    display.say("")
    display.say("A whole study, start-up included; ours with two workers. The last score comes before ours concludes.")
    for result in results:
        table = _table(f"{result.case.label}; scores differ by {result.difference:.1e} in the median")
        table.add_column("")
        for header in ("seconds", "to the last score", "processor", "ours /", "to last score", "processor"):
            table.add_column(header, justify="right", no_wrap=True)
        for name, run in result.runs.items():
            cells = [f"{value:,.1f}" for value in (run.seconds, run.seconds_to_last_score, run.processor_seconds)]
            quantities = ("seconds", "seconds_to_last_score", "processor_seconds") if name != OURS else ()
            table.add_row(name, *cells, *(f"{result.ratio(quantity, name):.2f}" for quantity in quantities))
        display.say("")
        display.console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))


def pack_ratio_table(results: Sequence[PackResult]) -> pd.DataFrame:
    """Every measured ratio to PEFT by the size of the pack, a row each: what the figure of packs draws."""
    rows = [
        {"model": model, "case": case, "trials": trials, "ratio": ratio}
        for result in results
        for model, _, case in (result.case.label.partition(", "),)
        for trials in result.ours
        for ratio in result.ratios(trials)
    ]
    return pd.DataFrame(rows)
