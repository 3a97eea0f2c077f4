"""Where a trial may be stopped early: rungs, and the score that it must have reached at each to go on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rungs:
    """`bars`: step -> the worst score on validation with which a trial goes on; None: it goes on with any.

    The bars are settled before the trial begins, so that whether it stops depends on nothing but itself.
    """

    bars: Mapping[int, float | None] = field(default_factory=dict)
    higher_is_better: bool = False

    def stops_at(self, scores: Mapping[int, float]) -> int | None:
        """The first rung whose bar a trial with these scores misses; one that is not finite misses any bar."""
        for step, bar in sorted(self.bars.items()):
            if bar is not None and step in scores:
                reached = scores[step] >= bar if self.higher_is_better else scores[step] <= bar
                if not reached:
                    return step
        return None


def bar(scores: Sequence[float], *, keep: float, higher_is_better: bool) -> float | None:
    """The score of the last trial among the best part `keep` of these; None without a finite one."""
    finite = sorted((score for score in scores if math.isfinite(score)), reverse=higher_is_better)
    return finite[max(1, math.ceil(keep * len(finite))) - 1] if finite else None
