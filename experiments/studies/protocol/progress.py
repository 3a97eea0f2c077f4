"""The state of a study: what its protocol wants, beside what its queue has."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from experiments.studies.protocol.looks import ComparisonState, StudyProgress
from experiments.studies.protocol.search_stage import Proposal
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial, TrialResult
from experiments.studies.queue.entries import ENDED, Entry, NewTrial
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.study import Study

FAMILY = "family-"  # and a number: the fact that holds the arms of a family, once it is settled


@dataclass(frozen=True)
class StudyState:
    """One snapshot: the progress of every arm, the trials wanted so far by key, and the queue's entry of each."""

    arms: tuple[ArmProgress, ...]
    wanted: Mapping[str, PlannedTrial]
    entries: Mapping[str, Entry]
    comparisons: tuple[ComparisonState, ...]  # of all comparisons

    @property
    def complete(self) -> bool:
        """Whether every trial that the study wants has ended."""
        return all(arm.complete for arm in self.arms)

    def state(self, key: str) -> str:
        """'waiting', 'running', 'done', 'pruned' or 'failed'; a run that stops at a rung as planned is done there."""
        state = self.entries[key].state if key in self.entries else "waiting"
        return "done" if state == "pruned" and self.wanted[key].stage == "rung" else state


def snapshot(study: Study, queue: TrialQueue) -> StudyState:
    """What is wanted now, by what has ended so far."""
    return state_of(study, queue.latest(), families_of(queue.facts()))


def state_of(
    study: Study, entries: Mapping[str, Entry], families: Mapping[str, int] = MappingProxyType({})
) -> StudyState:
    """The state of a study with these entries of its queue."""
    results = {key: _result(entry) for key, entry in entries.items() if entry.state in ENDED}
    proposals = {
        key: Proposal(float(entry.params["learning_rate"]), entry.given["knobs"], _thresholds(entry))
        for key, entry in entries.items()
        if "knobs" in entry.given
    }
    found = StudyProgress(study, results, proposals, families)
    wanted = {trial.key: trial for arm in found.arms for trial in arm.wanted}
    return StudyState(found.arms, wanted, entries, found.comparisons)


def families_of(facts: Mapping[str, Any]) -> dict[str, int]:
    """The number of each arm's family of comparisons, by config hash; those of a first, open family have none."""
    recorded = {int(name.removeprefix(FAMILY)): arms for name, arms in facts.items() if name.startswith(FAMILY)}
    return {config_hash: number for number, arms in sorted(recorded.items()) for config_hash in arms}


def enqueue(queue: TrialQueue, study_state: StudyState, *, at_most: int, retry_failed: bool = False) -> int:
    """Have up to so many of the wanted trials that the queue lacks wait in it; how many were added."""
    lacking = [_new(trial) for key, trial in study_state.wanted.items() if key not in study_state.entries]
    if retry_failed:
        failed = [study_state.entries[key] for key in study_state.wanted if study_state.state(key) == "failed"]
        lacking += [NewTrial(entry.key, entry.params, entry.given) for entry in failed]
    return queue.add(lacking[:at_most], retry_failed=retry_failed)


def _thresholds(entry: Entry) -> dict[int, float | None]:
    return {int(step): threshold for step, threshold in entry.given.get("thresholds", {}).items()}


def _result(entry: Entry) -> TrialResult:
    if entry.state == "failed":
        return TrialResult(failed=True, reason=str(entry.facts.get("failure")))
    reached = {int(step): float(score) for step, score in entry.facts.get("reached", {}).items()}
    facts = entry.facts
    return TrialResult(failed=False, score=entry.score, loss=facts.get("loss"), test=facts.get("test"), reached=reached)


def _new(trial: PlannedTrial) -> NewTrial:
    """What the queue and its dashboards are told of a trial."""
    assert trial.learning_rate is not None  # wanted trials have one
    rank = trial.arm.keys.get("rank")
    ranks = {"rank": rank} if isinstance(rank, int) else {}
    facts = {"arm": trial.arm.label, "stage": trial.stage, "variant": trial.arm.config.variant.name}
    return NewTrial(trial.key, {"learning_rate": trial.learning_rate, "seed": trial.seed, **ranks}, facts)
