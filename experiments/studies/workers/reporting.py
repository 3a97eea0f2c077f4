"""What became of a trial, from its run directory into the queue."""

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
    """Of one worker: scores, prunings and failures of published runs; the queue refuses those of re-claimed trials."""

    def __init__(self, queue: TrialQueue, context: TrainingContext, runs_dir: Path) -> None:
        self.queue, self.context, self.runs_dir = queue, context, runs_dir

    def rungs(self, trial: PlannedTrial) -> Rungs:
        """Where the trial may be pruned."""
        return Rungs(trial.thresholds, higher_is_better=self.context.task.higher_is_better)

    def finished(self, claim: Claim, trial: PlannedTrial, run_dir: RunDirectory) -> None:
        """The scores of a finished run; its trial is pruned all the same where it misses a threshold at a rung.

        Two trials may have one configuration and other thresholds: which of them trained first may not decide.
        """
        result, task = run_dir.result(), self.context.task
        reached = run_dir.scores(task.score_name) if trial.thresholds else {}
        reached = {step: task.score_or_nan(score) for step, score in reached.items() if step in trial.thresholds}
        if self.rungs(trial).prunes_at(reached) is not None:
            self.pruned(claim, trial, run_dir, reached, executed=0, seconds=0.0)
            return
        failure = task.divergence(result["validation"], "validation")  # not every version has refused such a result
        facts: dict[str, Any] = {"folder": run_dir.path.name, "loss": result["validation"].get("loss")}
        facts |= {"reached": _by_name(reached)} if reached else {}
        if trial.stage == "allocation":
            facts["ranks"] = result["ranks"]
        purpose = purpose_of(trial)
        if purpose is not None and failure is None:
            test, name = result.get("test"), run_dir.path.name
            if test is None:  # tuning or run.py trained it, without a test score
                test = score_on_test(trial.config, self.context, run_dir, self.runs_dir, name=name, purpose=purpose)
            failure, facts["test"] = task.divergence(test, "test"), test[result["score_name"]]
            if failure is None and "test" not in result:
                run_dir.add_test(test, test.predictions)
        if failure is None:
            self.queue.finish(claim, result["score"], facts, _finite(reached))
        else:
            self.failed(claim, run_dir, failure)

    def pruned(
        self,
        claim: Claim,
        trial: PlannedTrial,
        run_dir: RunDirectory,
        reached: Mapping[int, float],
        *,
        executed: int,
        seconds: float,
    ) -> None:
        """A trial that was pruned at a rung, and its cost in steps, those repeated after a kill included."""
        step = self.rungs(trial).prunes_at(reached)
        assert step is not None  # it has missed a threshold
        until = _finite({rung: score for rung, score in reached.items() if rung <= step})
        cost = {"steps": step, "steps_executed": executed, "seconds": seconds}
        self.queue.prune(claim, {"folder": run_dir.path.name, "reached": _by_name(until), **cost}, until)

    def failed(self, claim: Claim, run_dir: RunDirectory, reason: str) -> None:
        """A trial without a score."""
        self.queue.fail(claim, reason, {"folder": run_dir.path.name})


def purpose_of(trial: PlannedTrial) -> str | None:
    """What a trial reads the test split for; None: it does not."""
    return " and ".join(trial.settings) if trial.stage == "evaluation" else None


def _by_name(scores: Mapping[int, float]) -> dict[str, float]:
    """As JSON keeps it."""
    return {str(step): score for step, score in _finite(scores).items()}


def _finite(scores: Mapping[int, float]) -> dict[int, float]:
    return {step: score for step, score in scores.items() if math.isfinite(score)}
