"""The rounding that a difference of two stored models holds, against models that are rounded."""

from math import sqrt

import numpy as np
import pytest
import torch

from analysis.stats.singular_values import energy_rank, singular_values
from analysis.stats.storage_precision import rounding_noise

TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EVERY = ("r90", "r95", "r99")


def models(ratio: float, rank: int = 4, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """W0 and a ΔW of that rank, whose norm is the ratio times that of W0."""
    torch.manual_seed(0)
    W0 = torch.randn(size, size, dtype=torch.float64)
    delta = torch.randn(size, rank).double() @ torch.randn(rank, size).double()
    return W0, delta * (ratio * W0.norm() / delta.norm())


def stored(ratio: float, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The difference's singular values, the stored W0 + ΔW, and ΔW's own singular values; W0 is exact in the type."""
    W0, delta = models(ratio)
    W0 = W0.to(TYPES[dtype]).double()
    W = (W0 + delta).to(TYPES[dtype]).double()
    return singular_values((W - W0).numpy()), W.numpy(), singular_values(delta.numpy())


@pytest.mark.parametrize(
    ("dtype", "ratio", "blurred"),
    [
        ("bfloat16", 0.01, ("r99",)), ("bfloat16", 0.002, EVERY), ("bfloat16", 0.3, ()), ("float16", 0.01, ()),
        ("float16", 0.002, ("r99",)), ("float16", 0.0005, EVERY), ("float32", 0.01, ()), ("float32", 0.002, ()),
    ],
)  # fmt: skip
def test_the_ranks_that_count_rounding_are_named_from_what_was_stored_or_what_is_to_be(
    dtype: str, ratio: float, blurred: tuple[str, ...]
) -> None:
    found, W, exact = stored(ratio, dtype)
    assert rounding_noise(found, W, dtype).blurred == blurred
    assert rounding_noise(exact, W, dtype).blurred == blurred
    wrong = tuple(
        name
        for name, share in (("r90", 0.9), ("r95", 0.95), ("r99", 0.99))
        if energy_rank(found, share) != energy_rank(exact, share)
    )
    assert wrong == blurred


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_share_and_the_edge_are_those_of_the_rounding(dtype: str, scale: float) -> None:
    """1e-6 is below the least number that float16 holds with all its digits."""
    W0, delta = (scale * each for each in models(0.1))
    W = (W0 + delta).to(TYPES[dtype]).double()
    rounding = (W - W0 - delta).numpy()
    found = rounding_noise(singular_values(delta.numpy()), W.numpy(), dtype)
    assert found.energy_share == pytest.approx(np.sum(rounding**2) / float(delta.norm()) ** 2, rel=0.05)
    assert found.edge == pytest.approx(singular_values(rounding)[0], rel=0.05)


def test_a_rank_that_reaches_below_the_largest_value_of_the_rounding_is_named() -> None:
    """The rounding has .5 % of the energy, the directions of a flat tail 1.2 %: each is below its largest."""
    weights = np.full((256, 256), 1.3)
    sigma = np.sqrt([0.988, *[0.012 / 200] * 200]) * 256 * 2.0**-7 / sqrt(12 * 0.005)
    found = rounding_noise(sigma, weights, "bfloat16")
    assert found.energy_share == pytest.approx(0.005)
    assert found.blurred == ("r99",)


def test_what_did_not_change_and_a_model_of_zeros_have_no_rounding_to_tell() -> None:
    assert rounding_noise(np.zeros(3), np.ones((3, 4)), "bfloat16").blurred == ()
    found = rounding_noise(np.ones(3), np.zeros((3, 4)), "bfloat16")
    assert (found.energy_share, found.edge, found.blurred) == (0, 0, ())


def test_a_type_of_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"bfloat16, float16, .* is known; the weights are stored in 'int8'"):
        rounding_noise(np.ones(3), np.ones((3, 3)), "int8")
