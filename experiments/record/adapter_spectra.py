"""The singular values of the updates ΔW that a run or an adapter left on disk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analysis.stats.singular_values import singular_values, singular_values_of_factors
from experiments.record.adapter_formats import Adapter
from experiments.record.adapter_reading import read_adapter
from lora_variants.frozen_model.layer_names import by_layer
from lora_variants.interface.warm_start import Update, as_factors


def read_matrices(path: Path) -> Adapter:
    """The adapter at `path` with the ΔW of matrices alone, by their names in the base model, in order of layers.

    `path` is a run's folder, a PEFT adapter's folder (LoRA or AdaLoRA), or a loralib checkpoint. A finished
    run that adapted nothing (a head alone) has no updates. Where a run left `delta.safetensors`, that is
    ΔW; biases, norms and stacks in it have no spectrum and are left out. Raises RunStoreError, whose text is
    for the user.
    """
    adapter = read_adapter(path)
    matrices = {
        name.removesuffix(".weight"): update
        for name, update in adapter.updates.items()
        if not isinstance(update, Tensor) or update.ndim == 2
    }
    return replace(adapter, updates={name: matrices[name] for name in sorted(matrices, key=by_layer)})


def spectrum_of(update: Update) -> Float[np.ndarray, " k"]:
    """The singular values of one ΔW in float64, descending: from its factors where it has any.

    Raises ValueError for entries that are not finite.
    """
    if isinstance(update, Tensor):
        return singular_values(update.numpy())
    factors = as_factors(update)
    return singular_values_of_factors(factors.left.numpy(), factors.right.double().numpy() * factors.scale)


def read_spectra(path: Path) -> dict[str, list[float]]:
    """The singular values of every ΔW at `path`, by matrix. Raises as `read_matrices` and `spectrum_of` do."""
    return {name: spectrum_of(update).tolist() for name, update in read_matrices(path).updates.items()}
