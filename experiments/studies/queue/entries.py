"""What the queue knows of each trial, and which of several entries of one trial counts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from experiments.studies.queue.storage import QueueError

State = Literal["waiting", "running", "done", "pruned", "failed", "returned"]
ENDED = ("done", "pruned", "failed")
STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
}
PARAMETERS = ("learning_rate", "rank", "seed")
OWN_NAMES = {"key", "worker", "outcome"}
CLAIMANT = "claimant "  # before the name of a worker that is about to claim the trial


@dataclass(frozen=True)
class NewTrial:
    """A trial that is wanted. `params`: of learning_rate, rank, seed those that it has; `facts`: JSON values."""

    key: str
    params: Mapping[str, float | int]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """What the queue knows of one Optuna trial.

    `state`: "pruned" ended early, without a score; "failed" has a reason in facts["failure"]; "returned" was given
    back or was a twin of another entry, and says nothing about its key. `facts`: those given when it was added, which
    are `given`, and those given when it ended.
    """

    number: int
    key: str
    state: State
    worker: str | None
    score: float | None
    params: Mapping[str, float | int]
    facts: Mapping[str, Any]
    given: Mapping[str, Any]

    @property
    def holder(self) -> str:
        """Who won the trial before another claimant, and has not said its name yet, is not the same as any other."""
        return self.worker or f"whoever claimed trial {self.number}"


def entry_of(trial: FrozenTrial) -> Entry | None:
    """None if another program made it."""
    attributes = trial.user_attrs
    if "key" not in attributes:
        return None
    given = {
        name: value for name, value in attributes.items() if name not in OWN_NAMES and not name.startswith(CLAIMANT)
    }
    outcome = attributes.get("outcome", {}) if trial.state.is_finished() else {}
    return Entry(
        number=trial.number,
        key=attributes["key"],
        state=STATES.get(trial.state) or ("failed" if "failure" in outcome else "returned"),
        worker=attributes.get("worker") or only_claimant(trial),
        score=trial.value if trial.state == TrialState.COMPLETE else None,
        params=trial.params,
        facts={**given, **outcome} if outcome else given,
        given=given,
    )


def only_claimant(trial: FrozenTrial) -> str | None:
    """Who has won a running trial for which nobody else tried."""
    claimants = [name.removeprefix(CLAIMANT) for name in trial.user_attrs if name.startswith(CLAIMANT)]
    return claimants[0] if trial.state == TrialState.RUNNING and len(claimants) == 1 else None


def that_count(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Of each key the entry that ended well, else the live one, the first of each, else the last that failed."""
    counting: dict[str, Entry] = {}
    for entry in entries:
        if entry.state == "returned":
            continue
        other = counting.get(entry.key)
        if other is None or importance(entry) > importance(other):
            counting[entry.key] = entry
    return counting


def importance(entry: Entry) -> tuple[int, int]:
    if entry.state == "failed":
        return 0, entry.number
    return (2 if entry.state in ("done", "pruned") else 1), -entry.number


def missing(wanted: Iterable[NewTrial], counting: Mapping[str, Entry], *, retry_failed: bool) -> list[NewTrial]:
    """Those of `wanted`, each key once, that neither wait, run nor are done, nor have failed for good."""
    there = {key for key, entry in counting.items() if entry.state != "failed" or not retry_failed}
    return list({trial.key: trial for trial in wanted if trial.key not in there}.values())


def waiting_trials(new: Sequence[NewTrial], known: Iterable[Entry]) -> list[FrozenTrial]:
    """As Optuna adds them. A parameter's range is that of its values so far: dashboards draw their axes by it."""
    values: dict[str, list[float | int]] = {name: [] for name in PARAMETERS}
    for params in (*(entry.params for entry in known), *(trial.params for trial in new)):
        for name, value in params.items():
            values[name].append(value)
    ranges = {name: distribution(name, found) for name, found in values.items() if found}
    return [
        create_trial(
            state=TrialState.WAITING,
            params=dict(trial.params),
            distributions={name: ranges[name] for name in trial.params},
            user_attrs={"key": trial.key, **trial.facts},
        )
        for trial in new
    ]


def distribution(name: str, values: Sequence[float | int]) -> BaseDistribution:
    if name == "learning_rate":
        return FloatDistribution(min(values), max(values), log=True)
    return IntDistribution(int(min(values)), int(max(values)))


def refuse_unfit(trial: NewTrial) -> None:
    """Raises: QueueError for a parameter or fact that an entry cannot hold."""
    for name, value in trial.params.items():
        if name not in PARAMETERS:
            raise QueueError(f"trial {trial.key!r}: the parameters are {', '.join(PARAMETERS)}; make {name!r} a fact")
        if name == "learning_rate" and not (value > 0 and math.isfinite(value)):
            raise QueueError(f"trial {trial.key!r}: a learning_rate is above 0 and finite, {value} is not")
        if name != "learning_rate" and not isinstance(value, int):
            raise QueueError(f"trial {trial.key!r}: {name} is a whole number, {value!r} is not; make it a fact")
    if taken := OWN_NAMES & trial.facts.keys():
        raise QueueError(f"trial {trial.key!r}: the queue uses the name {min(taken)!r} itself; rename the fact")
