"""How much of a score's axis a figure shows, so that one run that went wrong does not flatten all others."""

import numpy as np
from jaxtyping import Float

FENCE = 3.0  # quartile ranges beyond which a mean is no longer what the axis is made for
ROOM = 0.06  # of the frame, on either side
FAR = 10.0  # times the next smaller size, which would be a dot beside it


def score_frame(
    scores: Float[np.ndarray, " scores"],
    means: Float[np.ndarray, " means"],
    needed: Float[np.ndarray, " needed"],
    *,
    higher_is_better: bool,
) -> tuple[float, float]:
    """Limits that show all `scores` on the good side, all `needed` ones, and on the bad side those near most means."""
    sign = 1.0 if higher_is_better else -1.0
    lower, upper = np.quantile(sign * means, [0.25, 0.75])
    best = np.max(sign * np.concatenate([scores, needed]))
    worst = min(np.min(sign * needed), max(np.min(sign * scores), lower - FENCE * (upper - lower)))
    room = ROOM * (best - worst) or 0.05 * abs(best) or 1.0
    low, high = sorted((sign * (worst - room), sign * (best + room)))
    return float(low), float(high)


def largest_size(sizes: Float[np.ndarray, " sizes"], at_least: float) -> float:
    """The size up to which differences are drawn to scale: half of them, and on to the first that is `FAR` away."""
    bound = max(at_least, float(np.median(sizes))) if len(sizes) else at_least
    for size in np.sort(sizes):
        if size > FAR * bound:
            break
        bound = max(bound, float(size))
    return bound
