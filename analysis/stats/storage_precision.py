"""How much of a difference of two stored models is the rounding of the type they are stored in."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import scipy
from jaxtyping import Float

from analysis.stats.singular_values import energy_rank

# digits after the first of a number's binary mantissa, and the least exponent of numbers with all of them
FORMATS = {"bfloat16": (7, -126), "float16": (10, -14), "float32": (23, -126), "float64": (52, -1022)}
SHARES = {"r90": 0.90, "r95": 0.95, "r99": 0.99}


@dataclass(frozen=True)
class RoundingNoise:
    """What rounding W0 + ΔW to a type adds to ΔW.

    `energy_share` is the rounding's expected ‖·‖_F² in ‖ΔW‖_F², `edge` the largest singular value of noise of that
    size, and `blurred` names the ranks r90, r95, r99 that count noise.
    """

    energy_share: float
    edge: float
    blurred: tuple[str, ...]


def rounding_noise(
    sigma: Float[np.ndarray, " k"], weights: Float[np.ndarray, "d_out d_in"], dtype: str
) -> RoundingNoise:
    """The rounding in a ΔW with singular values `sigma`, where W0 + ΔW, of size `weights`, is stored in `dtype`.

    An entry of W is off by a uniform error of half its last place at most. A rank r_x counts noise where the noise has
    more than a share 1 - x of the energy, so that no signal reaches x without it, or where sigma_{r_x} is below the
    largest singular value of a Gaussian matrix of such entries, rms · (√d_out + √d_in).
    Raises ValueError for a type that is not among FORMATS.
    """
    if dtype not in FORMATS:
        raise ValueError(f"the rounding of {', '.join(FORMATS)} is known; the weights are stored in {dtype!r}")
    digits, least = FORMATS[dtype]
    _, exponents = np.frexp(np.asarray(weights))  # |W| in [1/2, 1) · 2^exponent; of 0 the exponent says nothing
    last_place = np.where(weights == 0, 0.0, np.ldexp(1.0, np.maximum(exponents - 1, least) - digits))
    rms = float(scipy.linalg.norm(last_place)) / sqrt(12 * last_place.size)
    edge = rms * (sqrt(weights.shape[0]) + sqrt(weights.shape[1]))
    whole = float(scipy.linalg.norm(sigma))
    share = (rms / whole) ** 2 * last_place.size if whole > 0 else 0.0
    ranks = {name: energy_rank(sigma, part) for name, part in SHARES.items()}
    blurred = [name for name, r in ranks.items() if r and (share > 1 - SHARES[name] or sigma[r - 1] <= edge)]
    return RoundingNoise(share, edge, tuple(blurred))
