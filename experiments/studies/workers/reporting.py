"""What became of a trial, from its record into the queue."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.queue.trial_queue import Claim, TrialQueue
from experiments.training.context import TrainingContext
from experiments.training.early_stopping import Rungs
from experiments.training.trial import score_on_test


class Reporter:
    """Of one worker: scores, stops and failures of published records; the queue refuses what was taken over."""

    def __init__(self, queue: TrialQueue, context: TrainingContext, runs_dir: Path) -> None:
        self.queue, self.context, self.runs_dir = queue, context, runs_dir

    def rungs(self, trial: PlannedTrial) -> Rungs:
        """Where the trial may be stopped."""
        return Rungs(trial.thresholds, higher_is_better=self.context.task.higher_is_better)

    def record_of(self, claim: Claim, trial: PlannedTrial, record: RunDirectory) -> None:
        """The scores of a finished record; its trial is stopped all the same where it misses a bar on the way.

        Two trials may have one configuration, and other bars: who made the record first may not decide.
        """
        result = record.result()
        reached = record.scores(self.context.task.score_name) if trial.thresholds else {}
        reached = {step: score for step, score in reached.items() if step in trial.thresholds}
        if self.rungs(trial).stops_at(reached) is not None:
            self.stopped(claim, trial, record, reached, executed=0, seconds=0.0)
            return
        facts: dict[str, Any] = {"folder": record.path.name, "loss": result["validation"].get("loss")}
        facts |= {"reached": _by_name(reached)} if reached else {}
        if trial.stage == "allocation":
            facts["ranks"] = result["ranks"]
        if trial.stage == "evaluation":
            if "test" not in result:  # a run of its own made this record
                result["test"] = score_on_test(trial.config, self.context, record, self.runs_dir, name=record.path.name)
                record.finish(result)
            facts["test"] = result["test"][result["score_name"]]
        self.queue.finish(claim, result["score"], facts, _finite(reached))

    def stopped(
        self,
        claim: Claim,
        trial: PlannedTrial,
        record: RunDirectory,
        reached: Mapping[int, float],
        *,
        executed: int,
        seconds: float,
    ) -> None:
        """A trial that has ended at a rung, and what it cost: steps, those that a kill had repeated included."""
        step = self.rungs(trial).stops_at(reached)
        assert step is not None  # it has missed a bar
        until = _finite({rung: score for rung, score in reached.items() if rung <= step})
        cost = {"steps": step, "steps_executed": executed, "seconds": seconds}
        self.queue.stop(claim, {"folder": record.path.name, "reached": _by_name(until), **cost}, until)

    def failed(self, claim: Claim, record: RunDirectory, reason: str) -> None:
        """A trial without a score."""
        self.queue.fail(claim, reason, {"folder": record.path.name})


def _by_name(scores: Mapping[int, float]) -> dict[str, float]:
    """As JSON keeps it."""
    return {str(step): score for step, score in _finite(scores).items()}


def _finite(scores: Mapping[int, float]) -> dict[int, float]:
    return {step: score for step, score in scores.items() if math.isfinite(score)}
