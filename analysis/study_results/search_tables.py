"""The tidy tables behind the figures of a search: which rank each matrix got, what decides, and at what price."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import pandas as pd

from analysis.study_results.findings import Finding
from analysis.study_results.summary import interval_of
from analysis.study_results.verdicts import Evaluated
from experiments.studies.protocol.estimand import units_of
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import TUNED
from experiments.studies.search.allocations import Grouping
from experiments.studies.search.importance import RESAMPLES, importances
from experiments.studies.spec.search_config import has_random_ranks
from experiments.studies.spec.study import Study
from lora_variants.frozen_model.layer_names import places

SEARCHED_KNOBS = ("learning_rate", "alpha_per_rank", "learning_rate_ratio")


def search_tables(
    study: Study, study_state: StudyState, table: pd.DataFrame, evaluated: Sequence[Evaluated], found: Sequence[Finding]
) -> dict[str, pd.DataFrame]:
    """Name of a figure -> its table; nothing for a study without a search."""
    if study.config.search is None:
        return {}
    return {
        "rank_map": pd.DataFrame(_rank_map(study, found)),
        "rank_importance": pd.DataFrame(_importance(study, study_state)),
        "score_by_parameters": pd.DataFrame(_by_parameters(study, table, evaluated)),
    }


def _rank_map(study: Study, found: Sequence[Finding]) -> list[dict[str, Any]]:
    """A row for each matrix of each allocation; searches that differ in their seeds alone are one allocation."""
    alike: dict[str, list[Finding]] = {}
    for each in found:
        if each.ranks is not None:
            keys = {
                key: value for key, value in each.progress.arm.keys.items() if key not in ("search_seed", "seed_offset")
            }
            alike.setdefault(str(keys), []).append(each)
    return [row for group in alike.values() for row in _of_allocation(study, group)]


def _of_allocation(study: Study, group: Sequence[Finding]) -> list[dict[str, Any]]:
    """The median over searches, or the one search's choice with the range over the contenders of its race."""
    chosen = [each.ranks for each in group if each.ranks is not None]
    several = len(group) > 1
    spread: Sequence[Mapping[str, int]] = chosen if several else group[0].contenders or chosen
    over = f"{len(spread)} {'searches' if several else 'contenders'}"
    arm = group[0].progress.arm
    label = str(arm.search["allocation"]) if several else arm.label
    at = places(list(chosen[0]))
    return [
        {
            "arm": label,
            "layer": at[name].layer,
            "kind": at[name].kind,
            "value": median(ranks[name] for ranks in chosen),
            "low": min(ranks[name] for ranks in spread),
            "high": max(ranks[name] for ranks in spread),
            "n": len(spread),
            "over": over,
            **_score(study),
        }
        for name in chosen[0]
    ]


def _importance(study: Study, study_state: StudyState) -> list[dict[str, Any]]:
    """Of the ranks of groups of matrices and of the other knobs, on the trials of random searches."""
    points, scores = [], []
    for progress in study_state.arms:
        if has_random_ranks(progress.arm.search):
            for trial in progress.tuning.trials:
                score = study_state.entries[trial.key].score if trial.key in study_state.entries else None
                if trial.stage == "search" and score is not None:
                    points.append(_point(study, trial.learning_rate or 0.0, trial.knobs))
                    scores.append(-score if study.higher_is_better else score)
    return [
        {
            "knob": of.knob,
            "evaluator": of.evaluator,
            "value": of.value,
            "low": of.low,
            "high": of.high,
            "n": of.n,
            "resamples": RESAMPLES,
            **_score(study),
        }
        for of in importances(points, scores)
    ]


def _point(study: Study, learning_rate: float, knobs: Mapping[str, Any]) -> dict[str, float]:
    """The mean rank of each group of matrices, and the other knobs on the scale that they are searched on."""
    assert study.config.search is not None
    ranks: Mapping[str, int] = knobs["rank"]
    groups = Grouping(study.config.search.blocks).of(ranks, places(list(ranks)))
    point = {f"rank {group}": fmean(ranks[name] for name in names) for group, names in groups.items()}
    others = {"learning_rate": learning_rate, **{k: v for k, v in knobs.items() if k in SEARCHED_KNOBS}}
    return point | {name: math.log(value) for name, value in others.items()}


def _by_parameters(study: Study, table: pd.DataFrame, evaluated: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """Every finished run that is here, the uniform ones once more, the Pareto front, and what was confirmed."""
    assert study.config.search is not None
    budget = {"budget": study.config.search.budget.parameters}
    here = table[(table["state"] == "done") & table["update_parameters"].notna()]
    runs = [
        {"arm": row["arm"], "kind": "run", "parameters": int(row["update_parameters"]), "value": row["score"]}
        for row in here.to_dict("records")
    ]
    even = {arm.label for arm in study.arms if arm.search["allocation"] == "uniform"}
    uniform = [{**row, "kind": "uniform"} for row in runs if row["arm"] in even]
    rows = [*runs, *uniform, *_pareto_front(runs, higher_is_better=study.higher_is_better)]
    for each in (each for each in evaluated if each.setting == TUNED):
        own = here[(here["config_hash"] == each.arm.config_hash) & (here["stage"] == "evaluation")]
        mean = interval_of(each.validation)
        if mean is None or own.empty:
            continue
        half = mean.half_width
        ends = {} if half is None else {"low": mean.mean - half, "high": mean.mean + half}
        size = {"parameters": int(own["update_parameters"].iloc[0])}
        rows.append({"arm": each.arm.label, "kind": "chosen", **size, "value": mean.mean, "n": mean.n, **ends})
    columns = {"low": None, "high": None, "n": None}
    return [{**columns, **row, **budget, **_score(study), "units": units_of(study)} for row in rows]


def _pareto_front(runs: Sequence[dict[str, Any]], *, higher_is_better: bool) -> list[dict[str, Any]]:
    """The runs that none beats with as few parameters, by parameters."""
    sign, pareto_front = (-1 if higher_is_better else 1), list[dict[str, Any]]()
    for row in sorted(runs, key=lambda row: (row["parameters"], sign * row["value"])):
        if not pareto_front or sign * row["value"] < sign * pareto_front[-1]["value"]:
            pareto_front.append({**row, "kind": "pareto_front"})
    return pareto_front


def _score(study: Study) -> dict[str, Any]:
    return {"score": study.score_name, "higher_is_better": study.higher_is_better}
