"""What each search found: its chosen ranks, what it promised and what was confirmed, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.study_results.verdict_tables import NOTHING, TextTable
from analysis.study_results.verdicts import Evaluated
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.search_stage import trial_key
from experiments.studies.protocol.trials import TUNED, ArmProgress, PlannedTrial
from experiments.studies.queue.entries import ENDED
from experiments.studies.spec.study import Study


@dataclass(frozen=True)
class Finding:
    """One search of an arm; scores are those on validation, None while they are pending."""

    progress: ArmProgress
    label: str  # the arm's and, where it is searched several times, which of them
    chosen: PlannedTrial | None  # of the evaluation, on its first seed
    contenders: tuple[Mapping[str, int], ...]  # the ranks of those that entered the race
    searched: float | None  # best score of the search: the best of many, on one seed
    raced: float | None  # the chosen point's mean over the seeds of the race
    confirmed: float | None  # its mean over the fresh seeds
    optimism: float | None  # by how much the search's score was better than the confirmed one
    trials: int  # of stage 1 that have ended
    steps: int
    seconds: float

    @property
    def ranks(self) -> Mapping[str, int] | None:
        return None if self.chosen is None else self.chosen.knobs["rank"]


def findings(
    study: Study, study_state: StudyState, table: pd.DataFrame, evaluated: Sequence[Evaluated]
) -> list[Finding]:
    """Of every arm of a search, in the study's order; empty for a study without one."""
    if study.config.search is None:
        return []
    rows = {str(row["key"]): row for row in table.to_dict("records")}
    confirmed = {each.arm.config_hash: each for each in evaluated if each.setting == TUNED}
    return [
        _finding(study, study_state, rows, confirmed[progress.arm.config_hash], progress, number)
        for progress in study_state.arms
        for number in range(len(progress.tuning.replications))
    ]


def findings_table(study: Study, found: Sequence[Finding]) -> TextTable:
    """What a search promised beside what was confirmed: the difference is what the best of many trials owes to luck."""
    better = "higher" if study.higher_is_better else "lower"
    return TextTable(
        title=f"searches, {study.score_name} on validation ({better} is better): the best trial's score, the chosen "
        "point's mean in the race and on fresh seeds; optimism: by how much the first was better than the last",
        columns=("arm", "search", "race", "confirmed", "optimism", "trials", "trial-steps", "hours", "total rank"),
        rows=tuple(map(_row, found)),
        words=frozenset({"arm"}),
    )


def findings_tree(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Plain values, without what machines and packs change."""
    return [
        {
            "arm": each.label,
            "search_score": each.searched,
            "race_score": each.raced,
            "confirmed_score": each.confirmed,
            "optimism": each.optimism,
            "trials": each.trials,
            "knobs": None if each.chosen is None else dict(each.chosen.knobs),
            "learning_rate": None if each.chosen is None else each.chosen.learning_rate,
        }
        for each in found
    ]


def _finding(
    study: Study,
    study_state: StudyState,
    rows: Mapping[str, Mapping[Any, Any]],
    evaluated: Evaluated,
    progress: ArmProgress,
    which: int,
) -> Finding:
    tuning, scores = progress.tuning.replications[which], {k: entry.score for k, entry in study_state.entries.items()}
    stage_1 = [trial for trial in tuning.trials if study_state.state(trial.key) in ENDED]
    searched = [scores[trial.key] for trial in stage_1 if trial.stage == "search"]
    best = (max if study.higher_is_better else min)([each for each in searched if each is not None], default=None)
    races = [trial for trial in tuning.trials if trial.stage == "race"]
    first = races[0].seed if races else None
    own: list[str] = []
    if tuning.number is not None:
        number = tuning.number
        own = [trial_key(progress.arm, "race", number, seed) for seed in sorted({race.seed for race in races})]
    raced = [score for key in own if (score := scores.get(key)) is not None]
    values = [evaluated.validation[seed] for seed in tuning.seeds if seed in evaluated.validation]
    mean = fmean(values) if values and not evaluated.pending else None
    gain = None if best is None or mean is None else (best - mean if study.higher_is_better else mean - best)
    evaluation = [trial for trial in progress.wanted if trial.stage == "evaluation" and trial.seed in tuning.seeds]
    several = f", search {which + 1}" if not progress.tuning.shared else ""
    costs = [rows[trial.key] for trial in stage_1]
    return Finding(
        progress=progress,
        label=f"{progress.arm.label}{several}",
        chosen=evaluation[0] if evaluation else None,
        contenders=tuple(trial.knobs["rank"] for trial in races if trial.seed == first),
        searched=best,
        raced=fmean(raced) if raced else None,
        confirmed=mean,
        optimism=gain,
        trials=len(stage_1),
        steps=int(sum(cost["steps_executed"] for cost in costs if pd.notna(cost["steps_executed"]))),
        seconds=float(sum(cost["seconds"] for cost in costs if pd.notna(cost["seconds"]))),
    )


def _row(found: Finding) -> tuple[str, ...]:
    scores = (found.searched, found.raced, found.confirmed)
    return (
        found.label,
        *(NOTHING if score is None else f"{score:.4f}" for score in scores),
        NOTHING if found.optimism is None else f"{found.optimism:+.4f}",
        str(found.trials),
        f"{found.steps:,}",
        f"{found.seconds / 3600:.2f}",
        NOTHING if found.ranks is None else str(sum(found.ranks.values())),
    )
