"""What the evaluation of a study says: the scores of each arm in each setting, and the verdicts between arms.

Verdicts are on the scores of the test split, seed by seed. An arm gets none in a setting while a run of it there is
pending (optional stopping inflates false positives), when one failed (the seeds that finished are not a fair sample),
and in the tuned setting when it is not tuned. Its comparisons stay in the family: what was planned decides how strict
every test is.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from analysis.stats.comparisons import compare
from analysis.stats.paired_scores import Comparison, PairedScores
from experiments.studies.protocol.estimand import units_of
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.protocol import settings_of
from experiments.studies.protocol.search_stage import repeats_of
from experiments.studies.protocol.trials import BEST_POINT, TUNED, ArmProgress
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import SEEDS_FOR_VERDICTS, Study


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

    @property
    def verdict(self) -> str | None:
        return None if self.excluded else self.found.verdict

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the difference arm - reference, whichever is better."""
        if self.found.interval is None or self.found.difference == self.found.advantage:
            return self.found.interval
        low, high = self.found.interval
        return -high, -low


def evaluations(study: Study, study_state: StudyState, table: pd.DataFrame) -> list[Evaluated]:
    """Every arm in every setting: the tuned one first, then the fixed rates; `table` is the study's results."""
    rows: dict[str, dict[Hashable, Any]] = {row["key"]: row for row in table.to_dict("records")}
    return [
        _evaluated(study, progress, setting, rows)
        for setting in settings_of(study.protocol)
        for progress in study_state.arms
    ]


def families(study: Study, study_state: StudyState, evaluated: list[Evaluated]) -> dict[str, list[Judged]]:
    """By name, each family of comparisons: one for each setting, and one more for arms that came later."""
    settled, found = study_state.families, dict[str, list[Judged]]()
    for setting in settings_of(study.protocol):
        pairs: dict[int, list[tuple[Evaluated, Evaluated]]] = {}
        of_arm = {each.arm.config_hash: each for each in evaluated if each.setting == setting}
        for pair in study.comparisons(tuned=setting == TUNED):
            number = max(settled.get(arm.config_hash, 1) for arm in pair)
            pairs.setdefault(number, []).append((of_arm[pair[0].config_hash], of_arm[pair[1].config_hash]))
        for number, of_family in sorted(pairs.items()):
            name = setting if number == 1 else f"{setting}, family {number}"
            found[name] = [replace(each, family=number) for each in _judged(study, setting, of_family)]
    return found


def _judged(study: Study, setting: str, pairs: Sequence[tuple[Evaluated, Evaluated]]) -> list[Judged]:
    """A family as `analysis.stats.comparisons` judges it."""
    alpha = study.protocol.alpha
    reasons = [_excluded(arm, to) for arm, to in pairs]
    scores = [_paired(study, arm, to) for arm, to in pairs]
    planned = [_without_scores(each) if why else each for each, why in zip(scores, reasons, strict=True)]
    return [
        Judged(setting, arm.arm, to.arm, _described(judged, each, alpha) if why else judged, why)
        for (arm, to), each, judged, why in zip(pairs, scores, compare(planned, alpha=alpha), reasons, strict=True)
    ]


def _evaluated(
    study: Study, progress: ArmProgress, setting: str, rows: Mapping[str, Mapping[Hashable, Any]]
) -> Evaluated:
    trials = progress.evaluations(setting)
    of_seed = {trial.seed: rows[trial.key] for trial in trials}
    seeds, chosen = study.protocol.evaluation.seeds, progress.tuning.state != "open"
    without = "failed" if setting == TUNED and chosen else "waiting"  # of a seed at which every point failed
    state = {seed: of_seed[seed]["state"] if seed in of_seed else without for seed in seeds}
    done = [seed for seed in seeds if state[seed] == "done"]
    failed = tuple(seed for seed in seeds if state[seed] == "failed")
    pending = tuple(seed for seed in seeds if state[seed] in ("waiting", "running"))
    best = {trial.seed: rows[trial.key] for trial in progress.evaluations(BEST_POINT)} if setting == TUNED else {}
    units = _units(study)
    return Evaluated(
        progress=progress,
        setting=setting,
        rates=tuple(trial.learning_rate for trial in trials if trial.learning_rate is not None),
        test=_of_units({seed: float(of_seed[seed]["test_score"]) for seed in done}, units),
        validation=_of_units({seed: float(of_seed[seed]["score"]) for seed in done}, units),
        failed=failed,
        pending=pending,
        excluded=_reason(
            progress,
            setting,
            failed=len(failed),
            pending=len(pending),
            seeds=len(seeds),
            n=len(units),
            units=units_of(study),
        ),
        best_point={seed: float(row["test_score"]) for seed, row in best.items() if row["state"] == "done"},
    )


def _units(study: Study) -> list[tuple[int, ...]]:
    """The evaluation seeds, in groups of which each is one independent unit: those of a whole search together."""
    seeds, search = study.protocol.evaluation.seeds, study.config.search
    if search is None or search.repeats == 1:
        return [(seed,) for seed in seeds]
    return [repeat.serves for repeat in repeats_of(search, study.protocol)]


def _of_units(scores: Mapping[int, float], units: Sequence[tuple[int, ...]]) -> dict[int, float]:
    """The mean score of each unit that is complete, by its first seed."""
    whole = [unit for unit in units if all(seed in scores for seed in unit)]
    return {unit[0]: scores[unit[0]] if len(unit) == 1 else fmean(scores[seed] for seed in unit) for unit in whole}


def _reason(
    progress: ArmProgress, setting: str, *, failed: int, pending: int, seeds: int, n: int, units: str
) -> str | None:
    if setting == TUNED and progress.tuning.state != "tuned":
        return {"open": "its tuning is not over", "not tuned": "not tuned"}[progress.tuning.state]
    if failed:
        return f"{failed} of {seeds} evaluation runs failed"
    if pending:
        return f"{pending} of {seeds} evaluation runs pending"
    return f"a verdict needs {SEEDS_FOR_VERDICTS} {units}, there are {n}" if n < SEEDS_FOR_VERDICTS else None


def _excluded(arm: Evaluated, reference: Evaluated) -> str | None:
    if arm.excluded or reference.excluded is None:
        return arm.excluded
    return f"{reference.arm.label}: {reference.excluded}"


def _paired(study: Study, arm: Evaluated, reference: Evaluated) -> PairedScores:
    """The scores of both, where every run of both is done; none else."""
    whole = not (arm.failed or arm.pending or reference.failed or reference.pending)
    seeds = [unit[0] for unit in _units(study)] if whole else []
    return PairedScores(
        name=f"{arm.arm.label} against {reference.arm.label}",
        arm=np.array([arm.test[seed] for seed in seeds], dtype=np.float64),
        reference=np.array([reference.test[seed] for seed in seeds], dtype=np.float64),
        higher_is_better=study.higher_is_better,
        margin=study.protocol.margin,
    )


def _without_scores(scores: PairedScores) -> PairedScores:
    return replace(scores, arm=np.empty(0), reference=np.empty(0))


def _described(judged: Comparison, scores: PairedScores, alpha: float) -> Comparison:
    """A comparison without a verdict, with the difference that its scores show."""
    alone = compare([scores], alpha=alpha)[0]
    return replace(
        judged,
        n=alone.n,
        difference=alone.difference,
        advantage=alone.advantage,
        sd=alone.sd,
        interval=alone.interval,
        note="",
    )
