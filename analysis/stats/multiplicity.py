"""Many tests at once: p values adjusted so that a whole family of true hypotheses is rejected rarely enough."""

import numpy as np
from jaxtyping import Float


def holm(p_values: Float[np.ndarray, "*families tests"]) -> Float[np.ndarray, "*families tests"]:
    """Holm's step-down adjusted p values of each family (the last axis), in the order they came in.

    The k-th smallest of m becomes max over j <= k of (m - j + 1) p_(j), at most 1. Rejecting where that is <= alpha
    rejects any true hypothesis in at most alpha of families, however the tests depend on each other
    (Holm, Scand. J. Statist. 1979).
    Raises ValueError for a p value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    wrong = p[~((p >= 0) & (p <= 1))]
    if wrong.size:
        raise ValueError(f"a p value lies in [0, 1]; one is {wrong[0]}")
    order = np.argsort(p, axis=-1, kind="stable")
    remaining = p.shape[-1] - np.arange(p.shape[-1])
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * remaining, axis=-1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(stepped, 1.0), axis=-1)
    return adjusted
