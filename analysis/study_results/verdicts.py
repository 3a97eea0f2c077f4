"""What the evaluation of a study says: the scores of each arm in each setting, and the verdicts between arms.

Verdicts are on the scores of the test split, seed by seed, by the looks that the protocol has taken. A comparison that
gets none stays in its family: what was planned decides how strict every test is.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.stats.comparisons import compare
from analysis.stats.paired_scores import Comparison
from experiments.studies.protocol.looks import ComparisonState, paired
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.protocol import settings_of
from experiments.studies.protocol.seed_scores import seed_scores, units_at_looks, units_of_seeds
from experiments.studies.protocol.trials import BEST_POINT, TUNED, ArmProgress, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import Study


@dataclass(frozen=True)
class Evaluated:
    """The runs of an arm in one setting of the evaluation."""

    progress: ArmProgress
    setting: str
    rates: tuple[float, ...]  # learning rate of each run; none while it is not chosen
    test: Mapping[int, float]  # seed (the first of a whole search's) -> score where it is done, in the protocol's order
    validation: Mapping[int, float]
    failed: tuple[int, ...]  # seeds
    pending: tuple[int, ...]
    excluded: str | None  # why the arm gets no verdict here
    best_point: Mapping[int, float] = field(default_factory=dict)  # seed -> test score at the best point for all seeds

    @property
    def arm(self) -> Arm:
        return self.progress.arm


@dataclass(frozen=True)
class OverRows:
    """The difference arm - reference over seeds and test rows: its intervals as of `Judged`, and its word."""

    rows: int
    interval: tuple[float, float]
    ordinary_interval: tuple[float, float]
    verdict: str


@dataclass(frozen=True)
class Judged:
    """A comparison of the family of a setting; `found.verdict` is no verdict where `excluded` says why there is none.

    An arm that is excluded for what its scores cannot say for themselves (not tuned, few seeds) still has a difference.
    """

    setting: str
    arm: Arm
    reference: Arm
    found: Comparison
    excluded: str | None
    family: int = 1  # a later number: of arms that came after the first evaluation
    seeds: tuple[int, ...] = ()  # that it is judged on; of a whole search the first
    over_rows: OverRows | None = None

    @property
    def verdict(self) -> str | None:
        return None if self.excluded else self.found.verdict

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the difference arm - reference, whichever is better."""
        return self._of_difference(self.found.interval)

    @property
    def ordinary_interval(self) -> tuple[float, float] | None:
        """The same as if it had been looked at once."""
        return self._of_difference(self.found.ordinary_interval)

    def _of_difference(self, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        if interval is None or self.found.difference == self.found.advantage:
            return interval
        low, high = interval
        return -high, -low


def rows_tested(family: Sequence[Judged]) -> int | None:
    """How many rows of the test split a family is judged on, where that is known."""
    return next((each.over_rows.rows for each in family if each.over_rows is not None), None)


def evaluations(study: Study, study_state: StudyState, table: pd.DataFrame) -> list[Evaluated]:
    """Every arm in every setting: the tuned one first, then the fixed rates; `table` is the study's results."""
    rows: dict[str, dict[Hashable, Any]] = {row["key"]: row for row in table.to_dict("records")}
    results = {key: _result(row) for key, row in rows.items() if row["state"] in ("done", "failed")}
    found = [
        _evaluated(study, progress, setting, rows, results)
        for setting in settings_of(study.protocol)
        for progress in study_state.arms
    ]
    judged = _all_judged(study_state.comparisons)
    return [replace(each, excluded=None) if (each.arm.config_hash, each.setting) in judged else each for each in found]


def _all_judged(comparisons: Sequence[ComparisonState]) -> set[tuple[str, str]]:
    """The arms, by config hash and setting, of which nothing that happened after a look keeps a verdict back."""
    without, known = set[tuple[str, str]](), set[tuple[str, str]]()
    for each in comparisons:
        (without if each.excluded else known).update(
            (arm.config_hash, each.setting) for arm in (each.arm, each.reference)
        )
    return known - without


def families(study: Study, study_state: StudyState, evaluated: list[Evaluated]) -> dict[str, list[Judged]]:
    """By name, each family of comparisons: one for each setting, and one more for arms that came later."""
    found: dict[str, list[ComparisonState]] = {}
    for each in study_state.comparisons:
        name = each.setting if each.family == 1 else f"{each.setting}, family {each.family}"
        found.setdefault(name, []).append(each)
    of_arm = {(each.arm.config_hash, each.setting): each for each in evaluated}
    return {name: _judged(study, family, of_arm) for name, family in found.items()}


def _judged(
    study: Study, family: Sequence[ComparisonState], of_arm: Mapping[tuple[str, str], Evaluated]
) -> list[Judged]:
    """A family as `analysis.stats.comparisons` judges it."""
    tests = {key: arm.test for key, arm in of_arm.items()}
    pairs = [paired(study, each, tests) for each in family]
    judged = compare(pairs, alpha=study.protocol.alpha, looks=units_at_looks(study))
    found = [_with_difference(study, each, one, tests) for each, one in zip(family, judged, strict=True)]
    return [
        Judged(each.setting, each.arm, each.reference, one, each.excluded, each.family, each.seeds)
        for each, one in zip(family, found, strict=True)
    ]


def _with_difference(
    study: Study, state: ComparisonState, judged: Comparison, tests: Mapping[tuple[str, str], Mapping[int, float]]
) -> Comparison:
    """Of a comparison without any look, too: that on the seeds of the first, where every run of both is done."""
    arm, reference = (tests[each.config_hash, state.setting] for each in (state.arm, state.reference))
    first = study.protocol.evaluation.at_look(study.protocol.evaluation.looks[0]).seeds
    seeds = tuple(unit[0] for unit in units_of_seeds(study, first))
    if not state.excluded or state.seeds or not all(seed in arm and seed in reference for seed in seeds):
        return judged
    pair = paired(study, replace(state, seeds=seeds), tests)
    alone = compare([pair], alpha=study.protocol.alpha, looks=units_at_looks(study))[0]
    return replace(
        judged,
        n=alone.n,
        difference=alone.difference,
        advantage=alone.advantage,
        sd=alone.sd,
        interval=alone.interval,
        ordinary_interval=alone.ordinary_interval,
        note="",
    )


def _result(row: Mapping[Hashable, Any]) -> TrialResult:
    if row["state"] == "failed":
        return TrialResult(failed=True)
    test = None if pd.isna(row["test_score"]) else float(row["test_score"])
    return TrialResult(failed=False, score=float(row["score"]), test=test)


def _evaluated(
    study: Study,
    progress: ArmProgress,
    setting: str,
    rows: Mapping[str, Mapping[Hashable, Any]],
    results: Mapping[str, TrialResult],
) -> Evaluated:
    found = seed_scores(study, progress, setting, results)
    trials = progress.evaluations(setting)
    best = {trial.seed: rows[trial.key] for trial in progress.evaluations(BEST_POINT)} if setting == TUNED else {}
    return Evaluated(
        progress=progress,
        setting=setting,
        rates=tuple(trial.learning_rate for trial in trials if trial.learning_rate is not None),
        test=found.test,
        validation=found.validation,
        failed=found.failed,
        pending=found.pending,
        excluded=found.excluded,
        best_point={seed: float(row["test_score"]) for seed, row in best.items() if row["state"] == "done"},
    )
