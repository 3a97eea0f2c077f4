"""What a user of the benchmark sees: a bar for each case, and the table at the end."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from analysis.benchmark_figure import save_benchmark_figure
from experiments.benchmarking.contenders import BUILDERS, PEFT
from experiments.benchmarking.measurement import Report
from experiments.benchmarking.results import Result
from experiments.display import Display

UNITS = {"seconds": 1e3, "bytes": 2**-20}  # to milliseconds, to MiB


@contextmanager
def bars(display: Display) -> Iterator[Report]:
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
        table = Table(title=result.case.label, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True, min_width=max(map(len, BUILDERS)))
        for header in ("ms", "time / PEFT's", *(["MiB", "memory / PEFT's"] if result.bytes else [])):
            table.add_column(header, justify="right", no_wrap=True, min_width=7)
        summary = {(row["contender"], row["quantity"]): row for row in result.summary()}
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
    if row["contender"] == PEFT and row["quantity"] == "seconds":
        quartiles = " " * len(quartiles)  # 1 in every round
    return f"{row['median'] * UNITS[row['quantity']]:,.1f}", f"{row['ratio']:.2f} {quartiles}"


def draw_results(results: Sequence[Result], folder: Path) -> list[Path]:
    """The figure of all ratios, PEFT's own apart; returns the files."""
    rows = [
        {"case": result.case.label, "contender": name, "quantity": what, "ratio": ratio}
        for quantity, what in (("seconds", "time"), ("bytes", "memory"))
        for result in results
        for name, ratios in result.ratios(quantity).items()
        if name != PEFT
        for ratio in ratios
    ]
    return save_benchmark_figure(pd.DataFrame(rows), folder, "benchmark")
