"""The file of a study: which configurations are compared, and by which protocol."""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from experiments.config.schema import Rate, Section
from experiments.studies.spec.evaluation_config import FIXED_SEEDS, EvaluationConfig
from experiments.studies.spec.hypothesis_config import HypothesisConfig
from experiments.studies.spec.search_config import SearchConfig
from experiments.studies.spec.tuning_config import GridConfig, TuningConfig, each_once

MOST_ARMS = 2_000
MOST_TRIALS = 100_000


class ProtocolConfig(Section):
    """How arms are tuned, evaluated and compared; settled before the first evaluation."""

    tuning: TuningConfig = TuningConfig()  # type: ignore[call-arg]
    evaluation: EvaluationConfig = EvaluationConfig()  # type: ignore[call-arg]
    fixed_learning_rates: list[Rate] = Field(
        [], description="rates at which every arm is evaluated too, untuned; each is compared in a family of its own"
    )
    reference: dict[str, Any] = Field(
        {"variant": "lora"},
        min_length=1,
        description="the arms that the others are compared with, by keys of arms or by {label: ...}; another arm is "
        "compared with those that agree with it on all other keys that both have, or with the one of that label",
    )
    margin: float = Field(gt=0, description="differences within ± this are equivalent; in units of the score")
    alpha: float = Field(0.05, gt=0, lt=1, description="family-wise error rate of the verdicts")

    def at_look(self, seeds: int) -> Self:
        """The same with the first so many evaluation seeds."""
        return self.model_copy(update={"evaluation": self.evaluation.at_look(seeds)})

    @field_validator("fixed_learning_rates")
    @classmethod
    def _distinct(cls, rates: list[float]) -> list[float]:
        return each_once(rates)


def _refuse_old_forms(tuning: TuningConfig) -> None:
    """Raise ValueError for keys that only a tuning has that all seeds share, with both where both are there."""
    found = []
    if tuning.seeds is not None:
        found.append(
            "protocol.tuning.seeds: every evaluation seed is tuned by its own runs, so tuning has no seeds; leave them "
            "out, or say `tuning: {shared: true, ...}` for one tuning for all (its verdicts are of points, not of "
            "methods)"
        )
    if tuning.learning_rate_multipliers is not None:
        found.append(
            "protocol.tuning.learning_rate_multipliers: the points are a grid now: write "
            "`tuning: {grid: {learning_rate_multipliers: [...]}}`"
        )
    if found:
        raise ValueError("; and ".join(found))


class StudyConfig(Section):
    """Everything that a study depends on, apart from the run configuration that its arms vary."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=200, description="folder below the runs folder, and W&B group")
    config: str = Field(min_length=1, description="the run configuration that the arms vary, relative to this file")
    set: dict[str, Any] = Field(
        {}, description="knobs of that configuration for all arms: key -> value, by path or unique last name"
    )
    arms: list[dict[str, Any]] = Field(
        min_length=1,
        description="maps from key (variant, rank, any knob) to a value or a list of values; lists multiply out, so "
        "a knob that is itself a list needs a list of lists; `label` names a single arm",
    )
    search: SearchConfig | None = Field(
        None, description="stage 1 as a search of ranks under a budget: every arm names an `allocation`"
    )
    protocol: ProtocolConfig
    hypothesis: HypothesisConfig | None = Field(
        None, description="which arms test the low-rank hypothesis, and by what; null: none do"
    )

    @property
    def seeds(self) -> frozenset[int]:
        """Those that trials train with, before the offset of their arm."""
        tuning = self.protocol.tuning
        apart = tuning.own_seeds if tuning.shared or self.search is not None else []
        return frozenset((*self.protocol.evaluation.seeds, *apart))

    @model_validator(mode="before")
    @classmethod
    def _one_look_by_default(cls, tree: Any) -> Any:
        """Where it may not look several times, and no seeds are given."""
        protocol = tree.get("protocol") if isinstance(tree, dict) else None
        if not isinstance(protocol, dict):
            return tree  # what is wrong is said of the fields
        tuning, given = protocol.get("tuning", {}), protocol.get("evaluation", {})
        if not isinstance(tuning, dict) or not isinstance(given, dict) or given.keys() & {"seeds", "looks"}:
            return tree
        once = tuning.get("shared") or tree.get("search") is not None or tree.get("hypothesis") is not None
        return tree | {"protocol": protocol | {"evaluation": given | {"seeds": FIXED_SEEDS}}} if once else tree

    @model_validator(mode="after")
    def _one_look(self) -> Self:
        if len(self.protocol.evaluation.looks) == 1:
            return self
        for there, why in (
            (self.search is not None, "a search is evaluated once"),
            (self.protocol.tuning.shared, "with one tuning for all seeds a false word is the likelier the more looks"),
            (self.hypothesis is not None, "the low-rank test wants the same seeds for all arms"),
        ):
            if there:
                raise ValueError(f"protocol.evaluation.looks: {why}; give protocol.evaluation.seeds, without looks")
        return self

    @model_validator(mode="after")
    def _one_way_to_tune(self) -> Self:
        tuning = self.protocol.tuning
        if self.search is None and not tuning.shared:
            _refuse_old_forms(tuning)
        if tuning.halving is not None and (tuning.shared or self.search is not None):
            raise ValueError(
                "protocol.tuning.halving: is inside each seed; a tuning that seeds share has none, leave it out"
            )
        if self.search is not None and (tuning.shared or tuning.grid != GridConfig()):  # type: ignore[call-arg]
            raise ValueError(
                "protocol.tuning: a study with a search has neither `grid` nor `shared`: its points are those of "
                "search.space"
            )
        return self

    @model_validator(mode="after")
    def _hypothesis_of_this_study(self) -> Self:
        if self.hypothesis is not None:
            self.hypothesis.refuse_unfit(self.name, self.protocol.evaluation.seeds)
        return self

    @model_validator(mode="after")
    def _fresh_seeds(self) -> Self:
        tuning = self.protocol.tuning
        if self.search is None and not tuning.shared:
            return self
        both = sorted({*tuning.own_seeds} & {*self.protocol.evaluation.seeds})
        if both:
            raise ValueError(
                f"evaluation needs fresh seeds: {', '.join(map(str, both[:10]))} of protocol.evaluation.seeds would be "
                "a point's own tuning seed; take others for protocol.tuning.seeds"
            )
        return self

    @model_validator(mode="after")
    def _seeds_for_repeats(self) -> Self:
        repeats = 1 if self.search is None else self.search.repeats
        for name, seeds in (("tuning", self.protocol.tuning.own_seeds), ("evaluation", self.protocol.evaluation.seeds)):
            if len(seeds) % repeats:
                raise ValueError(
                    f"search.repeats: {repeats} searches share protocol.{name}.seeds in equal blocks; it has "
                    f"{len(seeds)}"
                )
        return self

    @model_validator(mode="after")
    def _no_fixed_rates(self) -> Self:
        if self.search is not None and self.protocol.fixed_learning_rates:
            raise ValueError("protocol.fixed_learning_rates: an arm that is searched has no fixed rate; leave it out")
        return self
