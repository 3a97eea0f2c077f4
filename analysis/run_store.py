"""What a run or an adapter left on disk, as updates ΔW by matrix name."""

from pathlib import Path

from torch import Tensor

from analysis.matrix_names import by_layer
from analysis.updates import Dense, Factors, Update
from experiments.record.adapter_reading import read_adapter
from lora_variants.start import Update as StoredUpdate
from lora_variants.start import as_factors


def read_updates(path: Path) -> dict[str, Update]:
    """ΔW of every adapted matrix, by its name in the base model, in the order of the names' layers.

    `path` is a run's folder, a PEFT adapter's folder (LoRA or AdaLoRA), or a loralib checkpoint. A finished
    run that adapted nothing (a head alone) gives an empty dict. Where a run left `delta.safetensors`, that is
    ΔW; biases, norms and stacks in it have no spectrum and are left out. Saved heads are not updates of W0 and
    are left out. Raises RunStoreError, whose text is for the user.
    """
    adapter = read_adapter(path)
    updates = {
        name.removesuffix(".weight"): _in_numpy(update, adapter.scale_known)
        for name, update in adapter.updates.items()
        if not isinstance(update, Tensor) or update.ndim == 2
    }
    return {name: updates[name] for name in sorted(updates, key=by_layer)}


def _in_numpy(update: StoredUpdate, scale_known: bool) -> Update:
    if isinstance(update, Tensor):
        return Dense(update.numpy())
    factors = as_factors(update)
    return Factors(factors.left.numpy(), factors.right.double().numpy() * factors.scale, scale_known)
