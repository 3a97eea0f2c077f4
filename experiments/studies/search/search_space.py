"""What a search stands on: the layers of one model, the budget over them, and the allocations that they have."""

from collections.abc import Callable, Mapping
from functools import cached_property

from experiments.config.schema import RunConfig
from experiments.studies.search.allocations import Allocation, Drawn, Fixed, Grouped, Grouping, Prior, Priority
from experiments.studies.search.budget import Budget, Shapes
from experiments.studies.search.sensitivity import gradient_spectra
from experiments.studies.spec.search_config import RANK_LEARNERS, SearchConfig
from experiments.training.context import TrainingContext
from lora_variants.frozen_model.layer_names import places
from lora_variants.frozen_model.target_names import layers_of
from lora_variants.interface.attach import outside_heads

LEAST_SENSITIVITY = 1e-3  # of the largest: so that a residual can bring every layer in


class SearchSpace:
    """The layers that a configuration targets; `shapes` are (d_out, d_in) by layer, in the model's order.

    Raises: ValueError for a budget that is impossible over them.
    """

    def __init__(self, search: SearchConfig, context: TrainingContext, config: RunConfig, *, seed: int) -> None:
        self.search, self.context, self.config, self.seed = search, context, config, seed
        variant, _ = context.plan(config)
        self.shapes: Shapes = {name: (layer.base.d_out, layer.base.d_in) for name, layer in variant.layers.items()}
        given = search.budget
        unit, amount = ("total_rank", given.total_rank) if given.total_rank else ("parameters", given.parameters)
        assert amount is not None  # the budget's own rule
        self.budget = Budget.of(unit, amount, self.shapes, highest_rank=search.highest_rank)  # type: ignore[arg-type]
        self.groups = Grouping(search.blocks).of(self.shapes, places(list(self.shapes)))

    def allocation(self, name: str, adalora_ranks: Mapping[str, int] | None = None) -> Allocation:
        """The allocation of that name; `adalora_ranks` are those of the run that some are derived from.

        Raises: ValueError for one that this model does not have.
        """
        ranks = {name: float((adalora_ranks or {}).get(name, 0)) for name in self.shapes}
        learned: dict[str, Callable[[], Allocation]] = dict.fromkeys(
            RANK_LEARNERS, lambda: Fixed(self.budget, self.budget.divided(ranks))
        )
        makers: Mapping[str, Callable[[], Allocation]] = learned | {
            "grouped": lambda: Grouped(self.budget, self.groups),
            "priority": lambda: Priority(self.budget),
            "prior": lambda: Prior(self.budget, self.groups, self._sensitivities(ranks if adalora_ranks else None)),
            "random": lambda: Drawn(self.budget),
            "uniform": lambda: self._evenly(list(self.shapes)),
            "attention": lambda: self._evenly(self._role("attention")),
            "mlp": lambda: self._evenly(self._role("mlp")),
            "gradient": lambda: Fixed(self.budget, self.budget.chosen(self._energies())),
        }
        return makers[name]()

    def refuse(self, name: str) -> None:
        """Raises: ValueError for an allocation that this model does not have; nothing is computed for it."""
        if name in ("attention", "mlp"):
            self._evenly(self._role(name))

    @cached_property
    def spectra(self) -> dict[str, list[float]]:
        """The singular values of each layer's gradient at W0."""
        batches = self.search.gradient_batches
        return gradient_spectra(self.context, self.config, seed=self.seed, batches=batches)

    def _energies(self) -> dict[str, list[float]]:
        return {name: [value**2 for value in values] for name, values in self.spectra.items()}

    def _sensitivities(self, ranks: Mapping[str, float] | None) -> dict[str, float]:
        """Those ranks, or else the Frobenius norms of the gradients; in units of the largest, and above 0."""
        found = ranks or {name: sum(energies) ** 0.5 for name, energies in self._energies().items()}
        largest = max(found.values()) or 1.0
        return {name: max(value / largest, LEAST_SENSITIVITY) for name, value in found.items()}

    def _evenly(self, names: list[str]) -> Fixed:
        return Fixed(self.budget, self.budget.divided({name: float(name in names) for name in self.shapes}))

    def _role(self, target: str) -> list[str]:
        """The targeted layers that a name for layers stands for."""
        task = self.context.task
        model = task.architecture()
        meant = layers_of(target, list(outside_heads(model, task.head_names(model))))
        found = [name for name in self.shapes if name in meant]
        if not found:
            raise ValueError(f"allocation {target!r}: none of its layers is targeted; targets: {self.config.targets}")
        return found
