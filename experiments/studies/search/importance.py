"""How much each knob of a search decides about the score: two of Optuna's evaluators, side by side, on random trials.

Trials that a sampler proposed lie where the sampler looked; only random ones say something of the whole space. With
few trials the shares are rough: they are computed on resamples of the trials too, and shown with their spread.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

import optuna
from optuna.distributions import FloatDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from experiments.studies.search.samplers import quietly

RESAMPLES = 10
FEWEST = 10  # trials, for any of it to be worth a look
BEST = 5  # trials at least that PED-ANOVA sets against all; a tenth of them where that is more


@dataclass(frozen=True)
class Importance:
    """The share of a knob: on all trials, and the 10th and 90th percentile over resamples of them."""

    knob: str
    evaluator: str
    value: float
    low: float
    high: float
    n: int


def importances(points: Sequence[Mapping[str, float]], scores: Sequence[float], *, seed: int = 0) -> list[Importance]:
    """Of every knob that varies, by PED-ANOVA and by fANOVA; empty where the trials are too few or all alike."""
    knobs = [knob for knob in points[0] if len({point[knob] for point in points}) > 1] if points else []
    if len(points) < FEWEST or not knobs or len(set(scores)) == 1:
        return []
    own = random.Random(seed)
    samples = [list(range(len(points)))]
    samples += [own.choices(samples[0], k=len(points)) for _ in range(RESAMPLES)]
    ends = {knob: (min(p[knob] for p in points), max(p[knob] for p in points)) for knob in knobs}
    found: list[Importance] = []
    with quietly():
        studies = [_study([points[i] for i in sample], [scores[i] for i in sample], ends) for sample in samples]
        evaluators: dict[str, BaseImportanceEvaluator] = {
            "PED-ANOVA": PedAnovaImportanceEvaluator(target_quantile=max(0.1, BEST / len(points))),
            "fANOVA": FanovaImportanceEvaluator(seed=seed),
        }
        for name, evaluator in evaluators.items():
            shares = [_shares(evaluator, study, knobs) for study in studies]
            for knob in knobs:
                spread = quantiles([share[knob] for share in shares[1:]], n=10)
                found.append(Importance(knob, name, shares[0][knob], spread[0], spread[-1], len(points)))
    return found


def _study(
    points: Sequence[Mapping[str, float]], scores: Sequence[float], ends: Mapping[str, tuple[float, float]]
) -> Study:
    study = optuna.create_study()
    ranges = {knob: FloatDistribution(low, high) for knob, (low, high) in ends.items()}
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=score,
            params={knob: point[knob] for knob in ranges},
            distributions=dict(ranges),
        )
        for point, score in zip(points, scores, strict=True)
    )
    return study


def _shares(evaluator: BaseImportanceEvaluator, study: Study, knobs: Sequence[str]) -> dict[str, float]:
    """Summing to one; all zero where the evaluator sees nothing."""
    found = evaluator.evaluate(study, params=list(knobs))
    total = sum(found.values())
    return {knob: found.get(knob, 0.0) / total if total else 0.0 for knob in knobs}
