"""What a paired t-test with n seeds can see, and how many seeds it needs to see it.

`sd` is always that of the paired differences. Known exactly, so are the results; estimated from a handful of seeds,
they are for planning: from 8 seeds, the 95 % interval of an sd reaches from 0.66 to 2.04 times its estimate.
"""

from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

MOST_SEEDS = 1_000_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = 200


def power(difference: float, sd: float, n: int, alpha: float) -> float:
    """The probability that a two-sided paired t-test at level alpha rejects, if the mean difference is `difference`.

    P(|T| >= t) for T noncentral t with n - 1 degrees of freedom and noncentrality √n · difference / sd (Johnson &
    Welch, Biometrika 1940). The sd is positive; n is at least 2.
    """
    _check(sd, n, alpha)
    critical, noncentrality = stats.t.isf(alpha / 2, n - 1), np.sqrt(n) * difference / sd
    # the lower tail as the upper one of the mirror image: scipy's nct.cdf is nan there
    tails = [stats.nct.sf(critical, n - 1, centre) for centre in (noncentrality, -noncentrality)]
    return float(min(1.0, sum(tails)))


def minimum_detectable_difference(sd: float, n: int, *, alpha: float, at_power: float = 0.8) -> float:
    """The positive difference that a two-sided paired t-test at level alpha finds with probability `at_power`."""
    _check(sd, n, alpha)
    _check_wanted(at_power, alpha)
    largest = 1.0
    while power(largest, 1.0, n, alpha) < at_power:
        largest *= 2
    return sd * optimize.brentq(lambda difference: power(difference, 1.0, n, alpha) - at_power, 0.0, largest)


def seeds_needed(difference: float, sd: float, *, alpha: float, at_power: float = 0.8) -> int | None:
    """The fewest seeds with which a two-sided paired t-test at level alpha finds `difference` with `at_power`.

    None if a million do not suffice, as for a difference of 0.
    """
    _check(sd, 2, alpha)
    _check_wanted(at_power, alpha)
    return _fewest(lambda n: power(difference, sd, n, alpha) >= at_power)


def equivalence_power(margin: float, sd: float, n: int, alpha: float, difference: float = 0.0) -> float:
    """The probability that two one-sided paired t-tests at level alpha show equivalence inside ± margin.

    The true mean difference is `difference`; at the margin this is the error rate, at most alpha. Given the observed
    sd s, the mean must lie within ± (margin - t s / √n); the probability of that is integrated over the law of s
    (Phillips, J. Pharmacokinet. Biopharm. 1990).
    """
    _check(sd, n, alpha)
    if not margin > 0:
        raise ValueError(f"a margin of equivalence is positive; it is {margin}")
    freedom = n - 1
    critical = stats.t.isf(alpha, freedom) / np.sqrt(freedom)
    scale = np.sqrt(n) / sd
    lowest = stats.chi.ppf(1e-15, freedom)
    highest = min(stats.chi.isf(1e-15, freedom), margin * scale / critical)
    if highest <= lowest:
        return 0.0
    edges = np.linspace(lowest, highest, _PANELS + 1)
    half = np.diff(edges)[:, None] / 2
    chi = edges[:-1, None] + half * (1 + _NODES)  # (panels, nodes): s √(n - 1) / sd
    upper = (margin - difference) * scale - critical * chi
    lower = -(margin + difference) * scale + critical * chi
    inside = stats.norm.cdf(upper) - stats.norm.cdf(lower)
    return float(np.clip(np.sum(half * _WEIGHTS * stats.chi.pdf(chi, freedom) * inside), 0.0, 1.0))


def seeds_for_equivalence(
    margin: float, sd: float, *, alpha: float, at_power: float = 0.8, difference: float = 0.0
) -> int | None:
    """The fewest seeds that show equivalence inside ± margin with `at_power`, if the mean difference is `difference`.

    None if a million do not suffice, as for a difference that is not inside the margin.
    """
    _check(sd, 2, alpha)
    _check_wanted(at_power, alpha)
    return _fewest(lambda n: equivalence_power(margin, sd, n, alpha, difference) >= at_power)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest n in [2, MOST_SEEDS] for which `enough` holds; it holds for all above one for which it does."""
    if enough(2):
        return 2
    too_few, n = 2, 4
    while not enough(n):
        if n == MOST_SEEDS:
            return None
        too_few, n = n, min(2 * n, MOST_SEEDS)
    while n - too_few > 1:
        middle = (too_few + n) // 2
        too_few, n = (too_few, middle) if enough(middle) else (middle, n)
    return n


def _check(sd: float, n: int, alpha: float) -> None:
    if not 0 < sd < np.inf:
        raise ValueError(f"power needs a positive sd of the paired differences; it is {sd}")
    if n < 2:
        raise ValueError(f"a t-test needs at least two paired seeds; there are {n}")
    if not 0 < alpha < 1:
        raise ValueError(f"a level alpha lies between 0 and 1, both excluded; it is {alpha}")


def _check_wanted(at_power: float, alpha: float) -> None:
    if not alpha < at_power < 1:
        raise ValueError(f"the power asked for lies between the level {alpha} and 1; it is {at_power}")
