"""Shares of variance: the classical estimates on a worked example, and an interval that covers what it says."""

import numpy as np
import pytest

from analysis.stats.random_effects import between_groups


def test_the_estimates_are_those_of_the_analysis_of_variance_by_hand() -> None:
    scores = np.array([[1.0, 3.0], [5.0, 7.0], [6.0, 8.0]])  # means 2, 6, 7: 2 * 7 between, 2 within
    found = between_groups(scores)
    assert found.within == pytest.approx(2)
    assert found.between == pytest.approx((14 - 2) / 2)
    assert found.share == pytest.approx(6 / 8)
    # F = 7 on 2 and 3 degrees of freedom, whose 2.5 % and 97.5 % points are 0.025533 and 16.0441
    assert found.low == 0
    assert found.high == pytest.approx((7 / 0.0255325 - 1) / 2 / ((7 / 0.0255325 - 1) / 2 + 1), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.95])
def test_the_interval_covers_the_true_share_as_often_as_it_says(share: float) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        groups = share**0.5 * generator.standard_normal((4, 1))
        found = between_groups(groups + (1 - share) ** 0.5 * generator.standard_normal((4, 4)))
        covered += found.low <= share <= found.high
    assert covered / 2000 == pytest.approx(0.975 if share == 0 else 0.95, abs=0.02)  # no end below 0 can miss it


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (np.zeros((1, 3)), "two groups and two repeats; there are 1 and 3"),
        (np.zeros((3, 1)), "two groups and two repeats; there are 3 and 1"),
        (np.zeros((3, 3)), "all equal"),
    ],
)
def test_what_says_nothing_of_variance_is_refused(scores: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        between_groups(scores)
