"""An update ΔW of one matrix, as its spectrum is taken."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from analysis.singular_values import singular_values, singular_values_of_factors


@dataclass(frozen=True)
class Factors:
    """ΔW = left @ right, scale included; `scale_known` is false where the file holds none and 1 was taken."""

    left: Float[np.ndarray, "d_out r"]
    right: Float[np.ndarray, "r d_in"]
    scale_known: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])

    def singular_values(self) -> Float[np.ndarray, " k"]:
        return singular_values_of_factors(self.left, self.right)


@dataclass(frozen=True)
class Dense:
    """ΔW itself: an update that has no factors (full fine-tuning, DoRA)."""

    delta: Float[np.ndarray, "d_out d_in"]
    scale_known: ClassVar[bool] = True
    rank: ClassVar[None] = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape[0], self.delta.shape[1]

    def singular_values(self) -> Float[np.ndarray, " k"]:
        return singular_values(self.delta)


Update = Factors | Dense
