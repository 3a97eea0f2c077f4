"""What a user sees of a study in the terminal: one live table for all workers, or a plain line now and then."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from experiments.studies.status import ArmStatus, StudyStatus
from experiments.terminal import Display

PLAIN_EVERY_SECONDS = 10.0
SHOWN_FAILURES = 5
WIDEST_LABEL, WIDEST_TABLE = 28, 10_000  # columns; the second is room for a table to say how wide it must be


class StudyView:
    """One study on a display. Whoever reads a pipe gets lines without control codes."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self._live: Live | None = None
        self._said_at = -PLAIN_EVERY_SECONDS
        self._last: StudyStatus | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Inside, `show` keeps one picture up to date."""
        if not self.display.console.is_terminal:
            yield
            return
        with Live(console=self.display.console, auto_refresh=False, transient=True) as self._live:
            try:
                yield
            finally:
                self._live.update(Text(""), refresh=True)
                self._live = None

    def show(self, status: StudyStatus) -> None:
        before, self._last = self._last, status
        if self._live is not None:
            self._live.update(self._picture(status), refresh=True)
            return
        for arm in _settled_since(before, status):
            self.display.say(f"{arm.label}: {_outcome(arm, status.score_name)}")
        known = {trial for trial, _ in before.failures} if before else set()
        for trial, reason in status.failures:
            if trial not in known:
                self.display.say(f"failed: {trial}: {reason}")
        if time.monotonic() - self._said_at >= PLAIN_EVERY_SECONDS:
            self._said_at = time.monotonic()
            self.display.say(headline(status))

    def table(self, status: StudyStatus) -> None:
        """The whole status, once."""
        self.display.console.print(Group(headline(status), _arms(status, status.arms), *_failures(status)))

    def _picture(self, status: StudyStatus) -> RenderableType:
        """As much as the terminal is high: first the arms that are not complete."""
        room = max(3, self.display.console.height - 10)
        arms = [*(a for a in status.arms if not a.complete), *(a for a in status.arms if a.complete)]
        shown = set(arms[:room])
        more = [Text(f"... and {len(arms) - room} more arms")] if len(arms) > room else []
        arms = [arm for arm in status.arms if arm in shown]
        return Group(Text(headline(status)), _arms(status, arms), *more, *_failures(status))

    def plan(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> None:
        """A table of words: the first column to the left, the others to the right. Nothing of it is cut."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title)
        table.add_column(columns[0], overflow="fold", max_width=WIDEST_LABEL)
        for name in columns[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row))
        console = self.display.console
        table.width = Measurement.get(console, console.options.update(max_width=WIDEST_TABLE), table).maximum
        console.print(table, crop=False)


def headline(status: StudyStatus) -> str:
    """'study rank: 30 of 342 trials done, 8 running, 304 waiting, 0 failed; 350 trial-steps/s, 2 min left'."""
    counts = status.counts
    pruned = ["pruned"] if counts["pruned"] else []
    states = ", ".join(f"{counts[state]} {state}" for state in (*pruned, "running", "waiting", "failed"))
    text = f"study {status.name}: {counts['done']} of {status.planned} trials done, {states}"
    if status.steps_per_second and not status.complete:
        text += f"; {status.steps_per_second:,.0f} trial-steps/s"
        text += f", about {duration(status.seconds_left or 0.0)} left"
    return text


def describe_workers(status: StudyStatus) -> str:
    """Who trains a study that is not complete."""
    if not status.workers:
        return "no worker trains it now; the command without --status goes on"
    workers = "1 worker" if status.workers == 1 else f"{status.workers} workers"
    return f"{workers} had a heartbeat in the last 5 minutes"


def describe_rates(rates: Sequence[float]) -> str:
    """'0.005', or the range where seeds chose different ones: '0.005 to 0.01'; nothing where none is chosen."""
    ends = dict.fromkeys(f"{rate:g}" for rate in (min(rates), max(rates))) if rates else ()
    return " to ".join(ends)


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h', '2.1 days'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _arms(status: StudyStatus, arms: Sequence[ArmStatus]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=f"score: {status.score_name} on validation")
    table.add_column("arm", overflow="fold", min_width=10)
    for name in ("state", "tuning", "rate", "evaluation", "score", "failed"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for arm in arms:
        table.add_row(
            Text(arm.label),
            arm.state,
            "{} / {}".format(*arm.tuning),
            describe_rates(arm.rates),
            "{} / {}".format(*arm.evaluation),
            "" if arm.score is None else f"{arm.score:.4f}",
            str(arm.failed or ""),
        )
    return table


def _failures(status: StudyStatus) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"failed: {trial}: {why}") for trial, why in status.failures[:SHOWN_FAILURES]]
    more = len(status.failures) - SHOWN_FAILURES
    return [*lines, Text(f"... and {more} more failed")] if more > 0 else lines


def _settled_since(before: StudyStatus | None, now: StudyStatus) -> list[ArmStatus]:
    """Arms whose learning rate was chosen, or that were completed, since the status before."""
    if before is None:
        return []
    of_before = {arm.label: arm for arm in before.arms}
    return [
        arm
        for arm in now.arms
        if (old := of_before.get(arm.label)) is not None
        and (arm.complete, not arm.rates) != (old.complete, not old.rates)
        and (arm.complete or arm.rates)
    ]


def _outcome(arm: ArmStatus, score_name: str) -> str:
    if arm.complete:
        score = "" if arm.score is None else f", {score_name} on validation {arm.score:.4f}"
        return f"{arm.state}: {arm.evaluation[0]} trials of the evaluation have ended{score}"
    return f"{'tuned' if arm.tuned else 'not tuned'}: {arm.reason}"
