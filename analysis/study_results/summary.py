"""The content of a study's `summary.json`: what was tuned, what was evaluated, and what follows."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from analysis.stats.intervals import MeanInterval, mean_interval
from analysis.stats.sequential import weights
from analysis.study_results.verdicts import Evaluated, Judged, rows_tested
from experiments.studies.protocol.estimand import holds_for, holds_over, unit, units_of
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.protocol import settings_of
from experiments.studies.protocol.trials import TUNED, ArmProgress, Replication
from experiments.studies.spec.frozen import frozen
from experiments.studies.spec.study import Study
from experiments.studies.status import STATES

CONFIDENCE = 0.95


def summary_of(
    study: Study, study_state: StudyState, evaluated: Sequence[Evaluated], judged: Mapping[str, Sequence[Judged]]
) -> dict[str, Any]:
    """Plain values; the same for the same results, whatever machine or pack they come from."""
    protocol = study.protocol
    states = Counter(study_state.state(key) for key in study_state.wanted)
    return {
        "study": study.name,
        "complete": study_state.complete,
        "frozen_sha256": sha256_of(settled := frozen(study)),
        "frozen": settled,
        "score": {"name": study.score_name, "higher_is_better": study.higher_is_better},
        "trials": {state: states[state] for state in STATES},
        "tuning": _tunings(study, study_state),
        "evaluation": {
            "split": "test",
            "seeds": protocol.evaluation.seeds,
            "interval": f"{CONFIDENCE:.0%} t-interval of the mean over {units_of(study)}",
            "settings": {
                setting: [_evaluation(each) for each in evaluated if each.setting == setting]
                for setting in dict.fromkeys(each.setting for each in evaluated)
            },
        },
        "comparisons": _families(study, judged),
        **({} if study.config.hypothesis is None else {"hypothesis": _hypothesis(study)}),
        "excluded": [
            {"setting": each.setting, "arm": each.arm.label, "reason": each.excluded}
            for each in evaluated
            if each.excluded
        ],
        "one_arm": {label: list(points) for label, points in study.collapsed.items()},
        "warnings": list(study.warnings),
    }


def _hypothesis(study: Study) -> dict[str, Any]:
    """What `analysis/hypothesis.py` tests of these runs: the section of the study's file, and its arms by label."""
    asked, roles = study.config.hypothesis, study.roles()
    assert asked is not None
    assert roles is not None  # load_study refuses a section that names none
    return asked.model_dump(mode="json") | {
        "score": asked.score or study.score_name,
        "arms": {
            "full": roles.full.label,
            "capacity": {arm.label: arm.keys["rank"] for arm in roles.capacity},
            "floor": None if roles.floor is None else roles.floor.label,
            "false_labels": [arm.label for arm in roles.nulls],
        },
    }


def _tunings(study: Study, study_state: StudyState) -> dict[str, Any]:
    tuning = study.protocol.tuning
    return {
        "split": "validation",
        "unit": unit(study),
        "shared": tuning.shared,
        "learning_rate_multipliers": sorted(tuning.points.learning_rate_multipliers),
        "knobs": tuning.points.knobs,
        "points": tuning.points.size,
        "seeds": tuning.own_seeds if tuning.shared or study.config.search else None,
        "arms": [_tuning(study_state, progress) for progress in study_state.arms],
    }


def _families(study: Study, judged: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    protocol = study.protocol
    return {
        "on": f"test scores of the evaluation, paired by {units_of(study)}",
        "verdicts": holds_for(study),
        "difference": "arm - reference",
        "looks": protocol.evaluation.looks,
        "weights": weights(protocol.evaluation.looks),
        "interval": f"t-interval of the difference, confidence 1 - {protocol.alpha:g} x its look's weight, each alone",
        "ordinary_interval": f"the same at confidence {1 - protocol.alpha:g}, which is exact where there is one look",
        "margin": protocol.margin,
        "alpha": protocol.alpha,
        "reference": protocol.reference,
        "families": {
            name: {
                "hold": holds_over(study, tuned=family[0].setting == TUNED, rows=rows_tested(family)),
                "tests": len(family),
                "comparisons": [_comparison(each) for each in family],
            }
            for name, family in judged.items()
        },
        "same_configuration": {
            setting: [[arm.label, reference.label] for arm, reference in study.same(tuned=setting == TUNED)]
            for setting in settings_of(protocol)
        },
    }


def sha256_of(settled: Mapping[str, Any]) -> str:
    """Of what may not change once an evaluation has been seen: to be cited."""
    return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()


def interval_of(scores: Mapping[int, float]) -> MeanInterval | None:
    """Mean and t-interval of scores by seed; None without any."""
    return mean_interval(np.array(list(scores.values())), CONFIDENCE) if scores else None


def selection_gain(each: Evaluated) -> MeanInterval | None:
    """The mean of test score at the seed's own choice - at the best point for all seeds; None where it is not known."""
    gains = {seed: score - each.best_point[seed] for seed, score in each.test.items() if seed in each.best_point}
    return interval_of(gains) if len(gains) == len(each.test) else None


def _tuning(study_state: StudyState, progress: ArmProgress) -> dict[str, Any]:
    arm, tuning = progress.arm, progress.tuning
    best = tuning.best_point
    return {
        "arm": arm.label,
        "config_hash": arm.config_hash,
        "keys": dict(arm.keys),
        "state": tuning.state,
        "centre": arm.centre,
        "chosen": [_choice(each) for each in tuning.replications],
        "best_point": None if best is None else {"learning_rate": best.rate(arm), **best.values},
        "reason": tuning.reason,
        "trials": len(tuning.trials),
        "failed": sum(study_state.state(trial.key) == "failed" for trial in tuning.trials),
        "learning_rates": sorted({trial.learning_rate for trial in tuning.trials if trial.learning_rate is not None}),
        "added_learning_rate_multipliers": sorted({p.multiplier for one in tuning.replications for p in one.added}),
    }


def _choice(each: Replication) -> dict[str, Any]:
    return {
        "seeds": list(each.seeds),
        "state": each.state,
        "learning_rate": each.chosen,
        "multiplier": each.multiplier,
        **each.values,
        "reason": each.reason,
    }


def _evaluation(each: Evaluated) -> dict[str, Any]:
    return {
        "arm": each.arm.label,
        "learning_rates": sorted(set(each.rates)),
        "n": len(each.test),
        "failed": len(each.failed),
        "pending": len(each.pending),
        "excluded": each.excluded,
        "test": _with_interval(each.test),
        "validation": _with_interval(each.validation),
        "test_scores": {str(seed): score for seed, score in each.test.items()},
        "test_scores_at_best_point": {str(seed): score for seed, score in each.best_point.items()},
    }


def _with_interval(scores: Mapping[int, float]) -> dict[str, Any] | None:
    found = interval_of(scores)
    return None if found is None else {"mean": found.mean, "half_width": found.half_width}


def _comparison(each: Judged) -> dict[str, Any]:
    found = each.found
    return {
        "arm": each.arm.label,
        "reference": each.reference.label,
        "verdict": each.verdict,
        "excluded": each.excluded,
        "n": found.n,
        "difference": found.difference,
        "interval": None if each.interval is None else list(each.interval),
        "ordinary_interval": None if each.ordinary_interval is None else list(each.ordinary_interval),
        "over_test_rows": None if each.over_rows is None else asdict(each.over_rows),
        "sd": found.sd,
        "p": found.p,
        "p_holm": found.p_holm,
        "p_sign_flip": found.p_sign_flip,
        "p_equivalence": found.p_equivalence,
        "p_equivalence_holm": found.p_equivalence_holm,
        "minimum_detectable_difference": found.minimum_detectable_difference,
        "seeds_to_settle": found.seeds_to_settle,
        "note": found.note,
    }
