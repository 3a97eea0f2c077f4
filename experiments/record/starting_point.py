"""What a run starts from: an adapter on disk, known by its content."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.config.schema import RunConfig, StartConfig
from experiments.models.weights import fingerprint
from experiments.record.adapter_formats import Adapter, RunStoreError
from experiments.record.adapter_reading import read_adapter
from experiments.record.learned_on import compare_with_base
from lora_variants.interface.variant import Variant
from lora_variants.interface.warm_start import Update


@dataclass(frozen=True)
class StartingPoint:
    """An adapter and the sha256 of what it means: names, factors, scales and heads; not of where it lies."""

    path: str
    adapter: Adapter
    sha256: str

    def put_into(self, variant: Variant, trial: int = 0) -> None:
        """Set a trial's ΔW and heads to the adapter's.

        Raises: RunStoreError for what does not fit.
        """
        try:
            variant.start_from(trial, self.adapter.updates, self.adapter.others)
        except ValueError as error:
            raise RunStoreError(f"start.path {self.path}: {error}") from None

    def compare_with_base(self, config: RunConfig) -> list[str]:
        """Warnings of what is doubtful on the base model of a run. Raises: RunStoreError for heads that cannot fit."""
        return compare_with_base(config, has_head=bool(self.adapter.others))

    def describe(self) -> str:
        updates, others = len(self.adapter.updates), len(self.adapter.others)
        heads = f" and {others} tensor{'s' * (others != 1)} of heads" if others else ""
        what = f"{updates} update{'s' * (updates != 1)}{heads}"
        return f"starts from {what} of {self.path} (sha256 {self.sha256[:12]})"


def read_start(config: StartConfig | None) -> StartingPoint | None:
    """The adapter that a configuration names; None where it names none.

    Raises: RunStoreError for what cannot be read, has no known scale, or holds nothing finite.
    """
    if config is None:
        return None
    adapter = read_adapter(Path(config.path))
    if not adapter.scale_known:
        if config.alpha is None:
            raise RunStoreError(
                f"start.path {config.path}: a loralib checkpoint does not hold its scale alpha / r; "
                f"give the alpha that it was trained with: --set start.alpha=..."
            )
        adapter = adapter.with_alpha(config.alpha)
    elif config.alpha is not None:
        raise RunStoreError(f"start.alpha {config.alpha:g}: {config.path} holds its own scale; leave start.alpha out")
    if not adapter.updates and not adapter.others:
        raise RunStoreError(f"start.path {config.path}: there is neither an update nor a head in it; leave start out")
    tensors = {name: part for key, update in adapter.updates.items() for name, part in _parts(key, update).items()}
    tensors |= {f"head|{key}": tensor for key, tensor in adapter.others.items()}
    broken = [name.partition("|")[2] for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise RunStoreError(f"start.path {config.path}: {broken[0]} is not finite: its training diverged; take another")
    return StartingPoint(config.path, adapter, fingerprint(tensors))


def _parts(name: str, update: Update) -> dict[str, Tensor]:
    if isinstance(update, Tensor):
        return {f"update|{name}": update}
    return {f"{key}|{name}": torch.as_tensor(part, dtype=torch.float64) for key, part in update._asdict().items()}
