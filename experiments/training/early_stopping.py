"""Where a trial may be pruned: rungs, and the score that it must have reached at each to go on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rungs:
    """`thresholds`: step -> the worst score on validation with which a trial goes on; None: it goes on with any.

    The thresholds are settled before the trial begins, so whether it is pruned depends on nothing but itself.
    """

    thresholds: Mapping[int, float | None] = field(default_factory=dict)
    higher_is_better: bool = False

    def prunes_at(self, scores: Mapping[int, float]) -> int | None:
        """The first rung whose threshold a trial with these scores misses; a score that is not finite misses any."""
        for step, threshold in sorted(self.thresholds.items()):
            if threshold is not None and step in scores:
                reached = scores[step] >= threshold if self.higher_is_better else scores[step] <= threshold
                if not reached:
                    return step
        return None


def threshold(scores: Sequence[float], *, keep: float, higher_is_better: bool) -> float | None:
    """The score of the last trial among the best part `keep` of these; None without a finite one."""
    finite = sorted((score for score in scores if math.isfinite(score)), reverse=higher_is_better)
    return finite[max(1, math.ceil(keep * len(finite))) - 1] if finite else None
