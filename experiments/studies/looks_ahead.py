"""What the looks at a study cost: the fewest trials and the most, and from a stated spread those to expect."""

from collections.abc import Callable, Sequence

import numpy as np

from analysis.stats.expected_seeds import Settled, expected_seeds
from experiments.studies.protocol.estimand import looked_at
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import Study

FAR = 2.0  # margins between arms that differ, of those that are imagined
RARELY = 0.01  # of the comparisons: a look that settles fewer stops nothing


def describe_looks(study: Study, trials: Callable[[Arm, int], int], sd: float | None) -> list[str]:
    """Lines for the terminal; `trials`: trained ones of an arm up to a look; `sd`: of the difference of two arms."""
    looks = study.protocol.evaluation.looks
    if len(looks) == 1:
        return []
    sums = [f"{sum(trials(arm, look) for arm in study.arms):,}" for look in looks]
    lines = [
        f"looked at {looked_at(study)}; an arm goes on while a comparison of it has no word: {sums[0]} trained trials "
        f"at the fewest, {sums[-1]} at the most ({', '.join(sums)} by look)"
    ]
    if sd is None:
        return [*lines, "--sd S, the sd of the difference of two arms over seeds, tells how many to expect"]
    if not study.comparisons():
        return lines
    imagined = {"are alike": 0.0, f"differ from the reference by {FAR:g} margins": FAR * study.protocol.margin}
    found = {words: _expected(study, gap, sd) for words, gap in imagined.items()}
    per_seed = np.array([trials(arm, looks[0]) / looks[0] for arm in study.arms])
    told = [f"{round(float(per_seed @ seeds)):,} if all arms {words}" for words, (seeds, _) in found.items()]
    lines.append(f"to expect at an sd of {sd:g}: {', '.join(told)}")
    idle = [
        look for n, look in enumerate(looks) if all(_settles(each, looks, n) < RARELY for _, each in found.values())
    ]
    return lines + [f"the look after {look} seeds can stop nothing at that sd, and costs level" for look in idle]


def _expected(study: Study, gap: float, sd: float) -> tuple[np.ndarray, Settled]:
    place = {arm.config_hash: n for n, arm in enumerate(study.arms)}
    pairs = [(place[arm.config_hash], place[reference.config_hash]) for arm, reference in study.comparisons()]
    means = np.full(len(study.arms), gap)
    means[[reference for _, reference in pairs]] = 0.0
    protocol = study.protocol
    return expected_seeds(
        pairs, means, sd=sd, margin=protocol.margin, alpha=protocol.alpha, looks=protocol.evaluation.looks
    )


def _settles(found: Settled, looks: Sequence[int], number: int) -> float:
    """The share of comparisons that get their word at a look."""
    return float(((found.seeds == looks[number]) & (found.words != "undecided")).mean())
