"""The tidy tables behind a study's figures: each holds all that its figure draws."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.figures.registry import typed
from analysis.study_results.findings import Finding
from analysis.study_results.search_tables import search_tables
from analysis.study_results.summary import interval_of
from analysis.study_results.verdicts import Evaluated, Judged, rows_tested
from experiments.studies.protocol.estimand import holds_for, holds_over, looked_at, units_of
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import TUNED, ArmProgress, Replication
from experiments.studies.spec.arm import Arm, describe
from experiments.studies.spec.study import Study


def figure_tables(
    study: Study,
    study_state: StudyState,
    table: pd.DataFrame,
    evaluated: Sequence[Evaluated],
    judged: Mapping[str, Sequence[Judged]],
    found: Sequence[Finding],
) -> dict[str, pd.DataFrame]:
    """Name of a figure (of `analysis.figures.registry.FIGURES`) -> its table; figures without a point are left out."""
    scores = _scores(study, evaluated)
    by_rank = _ranks_vary(study.arms)
    tables = {
        "score_by_rank" if by_rank else "score_by_arm": scores[scores["setting"] == TUNED],
        "comparisons": _comparisons(study, judged),
    } | search_tables(study, study_state, table, evaluated, found)
    if study.config.search is None:
        tables["learning_rates"] = _learning_rates(study, study_state, table)
    if study.protocol.fixed_learning_rates:
        tables["score_by_rank_and_rate" if by_rank else "score_by_arm_and_rate"] = scores
    shown = {name: drawn for name, drawn in tables.items() if len(drawn) and drawn["value"].notna().any()}
    return {name: typed(drawn).reset_index(drop=True) for name, drawn in shown.items()}


def lines_of(arms: Sequence[Arm]) -> dict[str, str]:
    """Config hash of an arm -> the line that it is a point of: arms that differ in rank alone share one.

    It is named by the variant and by the keys that tell it from other lines of the variant; one of a single arm has
    that arm's label.
    """
    own = {arm.config_hash: {k: v for k, v in arm.keys.items() if k not in ("variant", "rank")} for arm in arms}
    named: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        of_variant = [own[other.config_hash] for other in arms if other.keys["variant"] == arm.keys["variant"]]
        telling = {
            key: value for key, value in own[arm.config_hash].items() if any(o.get(key) != value for o in of_variant)
        }
        named[f"{arm.keys['variant']} {describe(telling)}".rstrip()].append(arm)
    return {arm.config_hash: name if len(group) > 1 else arm.label for name, group in named.items() for arm in group}


def rank_of(arm: Arm) -> int | None:
    """The rank of all its layers; None where there is none, or several."""
    rank = arm.keys.get("rank")
    return rank if isinstance(rank, int) and rank > 0 else None


def _ranks_vary(arms: Sequence[Arm]) -> bool:
    """Whether a line has two ranks or more."""
    lines, ranks = lines_of(arms), defaultdict(set)
    for arm in arms:
        ranks[lines[arm.config_hash]].add(rank_of(arm))
    return any(len(found - {None}) > 1 for found in ranks.values())


def _scores(study: Study, evaluated: Sequence[Evaluated]) -> pd.DataFrame:
    """kind 'seed' (a run, or the mean of a search's), 'mean' (with its t-interval, missing for one run) or 'failed'."""
    lines = lines_of(study.arms)
    rows = [
        {
            "setting": each.setting,
            "line": lines[each.arm.config_hash],
            "arm": each.arm.label,
            "rank": rank_of(each.arm),
            **row,
            "excluded": each.excluded,
            **_score(study),
            "margin": study.protocol.margin,
            "units": units_of(study),
        }
        for each in evaluated
        for row in _points(each)
    ]
    columns = ["setting", "line", "arm", "rank", "kind", "seed", "value", "low", "high", "n", "excluded"]
    return pd.DataFrame(rows, columns=[*columns, "score", "higher_is_better", "margin", "units"])


def _points(each: Evaluated) -> Iterator[dict[str, Any]]:
    for seed, score in each.test.items():
        yield {"kind": "seed", "seed": seed, "value": score}
    for seed in each.failed:
        yield {"kind": "failed", "seed": seed}
    found = interval_of(each.test)
    if found is not None:
        half = found.half_width
        ends = {} if half is None else {"low": found.mean - half, "high": found.mean + half}
        yield {"kind": "mean", "value": found.mean, "n": found.n, **ends}


def _learning_rates(study: Study, study_state: StudyState, table: pd.DataFrame) -> pd.DataFrame:
    """kind 'seed' or 'failed' (a run), or 'mean' (of a point at which every seed is done).

    `share`: of the replications that chose it.
    """
    lines = lines_of(study.arms)
    rows = [
        {
            "line": f"{lines[progress.arm.config_hash]} {point}".rstrip(),
            "arm": progress.arm.label,
            "rank": rank_of(progress.arm),
            **row,
            "tuning": progress.tuning.state,
            **_score(study),
        }
        for progress in study_state.arms
        for point, row in _rates(progress, table)
    ]
    columns = [
        "line",
        "arm",
        "rank",
        "kind",
        "learning_rate",
        "seed",
        "value",
        "n",
        "added",
        "chosen",
        "share",
        "tuning",
    ]
    return pd.DataFrame(rows, columns=[*columns, "score", "higher_is_better"])


def _rates(progress: ArmProgress, table: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """The other knobs of a point, and a row of it."""
    replications = progress.tuning.replications
    added = {trial.key for one in replications for trial in one.trials if trial.multiplier in _multipliers(one)}
    chosen = Counter((one.chosen, _describe_values(one)) for one in replications)
    trials = table[(table["config_hash"] == progress.arm.config_hash) & (table["stage"] == "tuning")]
    groups = [(float(rows["learning_rate"].iloc[0]), str(name[1]), rows) for name, rows in _grouped(trials)]
    seeds = max((len(rows) for _, _, rows in groups), default=0)
    for rate, point, of_point in groups:
        count = chosen[rate, point]
        about = {"learning_rate": rate, "added": of_point["key"].isin(added).any(), "chosen": count > 0}
        about["share"] = count / len(replications)
        for row in of_point.to_dict("records"):
            if row["state"] in ("done", "failed"):
                done = row["state"] == "done"
                value = {"value": row["score"]} if done else {}
                yield point, {"kind": "seed" if done else "failed", "seed": row["seed"], **about} | value
        done = of_point[of_point["state"] == "done"]
        if count and len(done):
            yield point, {"kind": "chosen", "value": done["score"].mean(), "n": len(done), **about}
        if (of_point["state"] == "done").all() and len(of_point) == seeds:  # not of the seeds alone that went there
            yield point, {"kind": "mean", "value": of_point["score"].mean(), "n": len(of_point), **about}


def _grouped(trials: pd.DataFrame) -> Iterator[tuple[Any, pd.DataFrame]]:
    """The trials of each point, by rate and by the description of its other knobs."""
    yield from trials.groupby(["learning_rate", trials["point"].fillna("")])


def _multipliers(one: Replication) -> set[float]:
    return {point.multiplier for point in one.added}


def _describe_values(one: Replication) -> str:
    """As the table describes the knobs of the chosen point."""
    return describe({name: value for name, value in one.knobs.items() if value is not None})


def _comparisons(study: Study, judged: Mapping[str, Sequence[Judged]]) -> pd.DataFrame:
    """`value` is the difference arm - reference, with its interval low to high."""
    rows = [
        {
            "setting": setting,
            "arm": each.arm.label,
            "reference": each.reference.label,
            "value": each.found.difference,
            "low": None if each.interval is None else each.interval[0],
            "high": None if each.interval is None else each.interval[1],
            "n": each.found.n,
            "verdict": each.verdict,
            "excluded": each.excluded,
            **_score(study),
            "margin": study.protocol.margin,
            "alpha": study.protocol.alpha,
            "looks": looked_at(study) or None,
            "tests": len(family),
            "holds": _holds(study, family) if each.setting == TUNED else "of one rate for all",
            "units": units_of(study),
        }
        for setting, family in judged.items()
        for each in family
    ]
    columns = ["setting", "arm", "reference", "value", "low", "high", "n", "verdict", "excluded"]
    return pd.DataFrame(
        rows, columns=[*columns, "score", "higher_is_better", "margin", "alpha", "looks", "tests", "holds", "units"]
    )


def _holds(study: Study, family: Sequence[Judged]) -> str:
    return f"{holds_for(study)}, {holds_over(study, rows=rows_tested(family))}"


def _score(study: Study) -> dict[str, Any]:
    return {"score": study.score_name, "higher_is_better": study.higher_is_better}
