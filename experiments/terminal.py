"""What a user sees in the terminal: a live line while something runs, tables when it ends."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from experiments.config.seed import describe_seed, read_seed
from experiments.config.shown import message, printable

SOURCE = "read from"  # of a split: its files


class _Console(Console):
    """A console whose reader may go away (`| head`): the work goes on in silence."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_errors(errors: Iterable[str]) -> None:
    """What is wrong with a request, each error on a line of its own."""
    print(*(f"error: {message(error)}" for error in errors), sep="\n", file=sys.stderr)


class Display:
    """Progress and results on a console; messages go through it so that they never tear the live line."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Console(highlight=False, markup=False)
        self.progress: Progress | None = None
        self.tasks: dict[str, TaskID] = {}

    @classmethod
    def silent(cls) -> "Display":
        """One that shows nothing: of a trial among many."""
        return cls(_Console(quiet=True))

    @contextmanager
    def live(self) -> Iterator[None]:
        """A live line for each piece of work that reports inside."""
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False), TimeRemainingColumn(elapsed_when_finished=True),
        )  # fmt: skip
        self.progress = Progress(*columns, console=self.console)
        try:
            yield
        finally:
            if self.tasks:
                self.progress.stop()
            self.progress, self.tasks = None, {}

    def report(self, what: str, done: int, total: int, note: str = "") -> None:
        """How far a piece of work is; a total of 0 makes it a message."""
        if total == 0:
            self.say(what)
        elif self.progress is not None:
            self.progress.start()
            if what not in self.tasks:
                self.tasks[what] = self.progress.add_task(what, total=total, note=note)
            self.progress.update(self.tasks[what], completed=done, note=note)

    def say(self, text: str, *, style: str | None = None) -> None:
        self.console.print(printable(text), style=style, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}", style="yellow")

    def result(self, result: Mapping[str, Any], folder: str) -> None:
        """The table at the end of a run."""
        seed = describe_seed(read_seed(result["seed"]))
        table = Table(title=f"{result['variant']} on {result['task']}, seed {seed}", show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, text in _lines(result):
            table.add_row(name, text)
        self.console.print(table)
        self.say(f"run directory: {folder}")

    def layers(self, rows: Sequence[Mapping[str, str]]) -> None:
        """The adapted layers of a plan: layer, shape, rank, scale, parameters and extra FLOPs of each."""
        table = Table(title="adapted layers")
        for name in ("layer", "shape", "rank", "scale", "parameters", "extra FLOPs"):
            table.add_column(
                name,
                justify="left" if name in ("layer", "shape") else "right",
                no_wrap=name != "layer",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*row.values())
        self.console.print(table)

    def data(self, notes: Iterable[str], warnings: Iterable[str]) -> None:
        """What was read of a user's own data, and what is doubtful in it."""
        for note in notes:
            self.say(note)
        for warning in warnings:
            self.warn(warning)

    def splits(self, described: Mapping[str, Mapping[str, str]]) -> None:
        """The data of a plan: of each split its rows, its labels and what is cut; nothing where nothing is known."""
        columns = list(dict.fromkeys(name for row in described.values() for name in row if name != SOURCE))
        if not columns:
            return
        table = Table(title="data")
        for name in ("split", *columns):
            table.add_column(
                name, justify="left" if name in ("split", "labels") else "right", overflow="fold",
                no_wrap=name != "labels" and not name.startswith("cut"),
            )  # fmt: skip
        for split, row in described.items():
            table.add_row(*(Text(text) for text in (split, *(row.get(name, "") for name in columns))))
        self.console.print(table)
        for split, row in described.items():  # files with long names, below the table and not in a narrow column of it
            if SOURCE in row:
                self.say(f"{split} is {SOURCE} {row[SOURCE]}")


def _lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    direction = "higher" if result["higher_is_better"] else "lower"
    yield f"{result['score_name']} (validation)", f"{result['score']:.4f}   ({direction} is better)"
    best = result["best"]
    if best["step"] != result["steps"]:
        yield "best during training", f"{best['score']:.4f} at step {best['step']}; the last is the score"
    if "test" in result:
        yield f"{result['score_name']} (test)", f"{result['test'][result['score_name']]:.4f}"
    for name, value in result["diagnostics"].items():
        yield name.replace("_", " "), f"{value:.6g}"
    yield "trainable parameters", f"{result['trainable_parameters']:,} ({result['trainable_share']:.2%} of the base)"
    if 0 < result["update_parameters"] < result["trainable_parameters"]:
        yield "parameters in final ΔW", f"{result['update_parameters']:,}"
    yield "steps", f"{result['steps']:,} at learning rate {result['learning_rate']:g}"
    if result["resumed_from"]:
        where = ", ".join(map(str, result["resumed_from"]))
        yield "resumed", f"from step {where}; {result['steps_executed']:,} steps executed in all"
    yield "seconds", f"{result['seconds']['training']:.1f} training, {result['seconds']['overhead']:.1f} overhead"
    if result["bytes_peak"] is not None:
        yield "peak memory", f"{result['bytes_peak'] / 2**20:,.0f} MiB"
    if result["scales"]:
        yield "ranks per layer", describe_ranks(result["ranks"])


def describe_ranks(ranks: Mapping[str, int]) -> str:
    """'16 in all 24 layers' or a line for each kind of layer with its ranks in order."""
    if len(set(ranks.values())) == 1:
        return f"{next(iter(ranks.values()))} in {'all ' * (len(ranks) > 1)}{len(ranks)} layer{'s' * (len(ranks) > 1)}"
    kinds: dict[str, list[str]] = {}
    for name, rank in ranks.items():
        kinds.setdefault(name.rpartition(".")[2], []).append(str(rank))
    total = f"total {sum(ranks.values())} over {len(ranks)} layers"
    return "\n".join([total, *(f"{kind}: {' '.join(found)}" for kind, found in kinds.items())])
