"""What of a study tests the low-rank hypothesis: settled in its file, before the test split is read."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from experiments.config.schema import Section

HIGHEST_RHO0 = 0.5
FEWEST_SEEDS = 2


class HypothesisConfig(Section):
    """Which arms the test is made of, and how much of the gain so small a rank must keep."""

    full: dict[str, Any] = Field(
        {"variant": "full"},
        min_length=1,
        description="keys of the arm of full fine-tuning, whose updates are truncated",
    )
    capacity: dict[str, Any] = Field(
        {"variant": "lora"}, min_length=1, description="keys of the adapters, one a rank, beside the truncations"
    )
    floor: Literal["base"] | dict[str, Any] = Field(
        "base",
        description="where the gain counts from: base (W0 itself), or keys of the arm that trains the head alone",
    )
    false_labels: dict[str, Any] | None = Field(
        None, min_length=1, description="keys of the arm that trained on false labels, for spectra and directions"
    )
    score: str | None = Field(
        None, min_length=1, description="the metric of the test split that gain is measured in; null: the task's score"
    )
    rho0: float = Field(0.1, gt=0, description="the rank in question, as a share of p = least min(d_out, d_in)")
    retention: float = Field(0.95, gt=0, lt=1, description="the share of full fine-tuning's gain that is to be kept")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="error rate of the tests, over all studies of the family")
    family: list[str] = Field([], description="names of the studies that are judged together; empty: this one alone")

    @field_validator("rho0")
    @classmethod
    def _where_a_control_can_fail(cls, rho0: float) -> float:
        if rho0 > HIGHEST_RHO0:
            raise ValueError(
                f"{rho0:g} is above {HIGHEST_RHO0:g}: at so large a share of p even a random projection keeps most of "
                "the gain, so nothing could speak against the hypothesis; take a smaller one"
            )
        return rho0

    def refuse_unfit(self, study: str, seeds: Sequence[int]) -> None:
        """Raises: ValueError for a family without the study itself, and for seeds that no test can be made of."""
        if self.family and study not in self.family:
            raise ValueError(f"hypothesis.family: {', '.join(self.family)} leaves out {study}, this study; add it")
        if len(seeds) < FEWEST_SEEDS:
            raise ValueError(
                f"hypothesis: {len(seeds)} of protocol.evaluation.seeds has no spread; a test needs two, a word five"
            )
