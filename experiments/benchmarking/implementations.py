"""The implementations: what each puts in the places of a base's linear layers, and what its training step calls.

All have the same base model, the same batch, A, B and scale alpha / r = 2, and AdamW without weight decay.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarking.workload import Workload, in_place, put
from experiments.training.optimizer import AdamW
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant
from lora_variants.lora import LoRA, LoRAConfig

RATE = 1e-6  # so small that the numbers stay ordinary however many steps are timed
ALPHA_PER_RANK = 2


@dataclass(frozen=True)
class Implementation:
    """Modules for paths of the base, the loss while they are in place, and the optimizer's step with its zeroing.

    `factors` are the trained A and B of each path, with our trial axis and padding where they have them.
    """

    modules: Mapping[str, nn.Module]
    factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]]
    trainable_parameters: int
    loss: Callable[[], Tensor]
    update: Callable[[], None]

    def step(self) -> None:
        """One training step: forward, backward, optimizer."""
        self.loss().backward()
        self.update()


def build_ours(workload: Workload) -> Implementation:
    """Our LoRA as a pack of one, with the optimizer of the training loop."""
    variant, modules, factors = _attached(workload)
    trained = variant.trainable_parameters(0)
    return Implementation(modules, factors, trained, lambda: workload.loss(workload.base), _update_of_the_loop(variant))


def build_ours_with_torch(workload: Workload) -> Implementation:
    """Our LoRA with torch's fused AdamW, so that layer and optimizer can be told apart."""
    variant, modules, factors = _attached(workload)
    trained = variant.trainable_parameters(0)
    return Implementation(modules, factors, trained, lambda: workload.loss(workload.base), _torchs(factors, fused=True))


def build_peft_with_default(workload: Workload) -> Implementation:
    """PEFT's LoRA with AdamW as torch gives it to who asks for nothing, not fused: what most users run."""
    peft = build_peft(workload)
    return replace(peft, update=_torchs(peft.factors, fused=None))


def build_peft(workload: Workload) -> Implementation:
    """PEFT's LoRA; its wrapper around the same base is what is called, as its users do."""
    base, case = workload.base, workload.case
    own = {path: workload.linear(path) for path in workload.paths}
    wrapped = wrapped_by_peft(base, workload.paths, rank=case.rank, alpha=ALPHA_PER_RANK * case.rank)
    modules: dict[str, Any] = {path: base.get_submodule(path) for path in workload.paths}
    put(base, own)
    del base.peft_config  # PEFT's mark on the base, that the next one would take for an adapter
    factors = {path: (m.lora_A["default"].weight, m.lora_B["default"].weight) for path, m in modules.items()}
    _set(factors, workload)
    return Implementation(
        modules, factors, _trained(modules), lambda: workload.loss(wrapped), _torchs(factors, fused=True)
    )


def wrapped_by_peft(base: nn.Module, paths: Sequence[str], *, rank: int, alpha: float) -> Any:
    """The base with PEFT's LoRA in the places of these linear layers, without dropout, ready to train."""
    from peft import LoraConfig, get_peft_model

    whole: Any = alpha  # PEFT's annotation says int; it only divides it by r
    config = LoraConfig(r=rank, lora_alpha=whole, lora_dropout=0.0, target_modules=list(paths))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nothing a user could change
        return get_peft_model(base, config).train()


def build_loralib(workload: Workload) -> Implementation:
    """Microsoft's loralib over the base's own tensors; it has no layer for GPT-2's Conv1D, which no model here has."""
    import loralib

    case = workload.case
    modules = {}
    for path in workload.paths:
        linear = workload.linear(path)
        module = loralib.Linear(
            linear.in_features, linear.out_features, r=case.rank, lora_alpha=ALPHA_PER_RANK * case.rank,
            merge_weights=False, device=linear.weight.device,
        )  # fmt: skip
        module.weight, module.bias = linear.weight, linear.bias
        modules[path] = module
    factors = {path: (module.lora_A, module.lora_B) for path, module in modules.items()}
    _set(factors, workload)
    return Implementation(
        modules, factors, _trained(modules), lambda: workload.loss(workload.base), _torchs(factors, fused=True)
    )


def build_frozen(workload: Workload) -> Implementation:
    """No adapters, no optimizer: the forward, and the backward as far as the outputs of the first adapted layers."""
    modules = {path: FrozenLinear(workload.linear(path)) for path in workload.paths}
    return Implementation(modules, {}, 0, lambda: workload.loss(workload.base), lambda: None)


class FrozenLinear(nn.Module):
    """A frozen linear layer whose output asks for a gradient, as it would with an adapter."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if y.requires_grad else y.requires_grad_()


PEFT = "PEFT"
DEFAULT = "PEFT, AdamW not fused"
FROZEN = "frozen, no adapters"
BUILDERS: dict[str, Callable[[Workload], Implementation]] = {
    PEFT: build_peft,
    DEFAULT: build_peft_with_default,
    "loralib": build_loralib,
    "ours": build_ours,
    "ours, torch's AdamW": build_ours_with_torch,
    FROZEN: build_frozen,
}
LIBRARIES = {PEFT: "peft", DEFAULT: "peft", "loralib": "loralib"}


def missing_contenders() -> dict[str, str]:
    """Implementations whose library is not there, with what to do about it. Raises: ValueError where it is PEFT."""
    away = {name: library for name, library in LIBRARIES.items() if find_spec(library) is None}
    if PEFT in away:
        raise ValueError("everything is measured against PEFT, which is not installed: pip install peft")
    return {name: f"not installed (pip install {library})" for name, library in away.items()}


def largest_differences(workload: Workload, implementations: Mapping[str, Implementation]) -> dict[str, float]:
    """How far losses and gradients are from PEFT's: the largest relative difference, gradients in the norm of each.

    The weights are what they were; the gradients are gone.
    """
    found: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for name, implementation in implementations.items():
        if not implementation.factors:
            continue
        with in_place(workload.base, implementation.modules):
            loss = implementation.loss()
            loss.backward()
        found[name] = loss.detach(), gradients(implementation, workload.case.rank)
        for parameter in (p for pair in implementation.factors.values() for p in pair):
            parameter.grad = None
    expected_loss, expected = found[PEFT]
    return {
        "loss": max(float((loss - expected_loss).abs() / expected_loss) for loss, _ in found.values()),
        "gradient": max(
            float((gradient - theirs).norm() / theirs.norm())
            for _, of_implementation in found.values()
            for gradient, theirs in zip(of_implementation, expected, strict=True)
        ),
    }


def gradients(implementation: Implementation, rank: int) -> list[Tensor]:
    """Gradients of A (r, d_in) and B (d_out, r) of every path in order, copied."""
    found = []
    for A, B in implementation.factors.values():
        assert A.grad is not None
        assert B.grad is not None
        found += [_plain(A.grad)[:rank].clone(), _plain(B.grad)[:, :rank].clone()]
    return found


def _plain(tensor: Tensor) -> Tensor:
    """Without our trial axis."""
    return tensor[0] if tensor.ndim == 3 else tensor


def _attached(
    workload: Workload,
) -> tuple[Variant, dict[str, nn.Module], dict[str, tuple[nn.Parameter, nn.Parameter]]]:
    case, base = workload.case, workload.base
    config = LoRAConfig.model_validate({"rank": case.rank, "alpha": float(ALPHA_PER_RANK * case.rank)})
    pack = Pack(seeds=(0,), total_steps=(1,), rows=case.batch_size)
    variant = attach(LoRA, base, targets=workload.paths, pack=pack, configs=[config])
    modules = {path: base.get_submodule(path) for path in workload.paths}
    variant.detach()
    factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {
        path: (layer.A, layer.B)  # type: ignore[misc]
        for path, layer in variant.layers.items()
    }
    _set(factors, workload)
    return variant, modules, factors


def _set(factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]], workload: Workload) -> None:
    rank = workload.case.rank
    for path, (A, B) in factors.items():
        start_A, start_B = workload.start[path]
        _plain(A.detach())[:rank].copy_(start_A)
        _plain(B.detach())[:, :rank].copy_(start_B)


def _trained(modules: Mapping[str, nn.Module]) -> int:
    return sum(p.numel() for module in modules.values() for p in module.parameters() if p.requires_grad)


def _update_of_the_loop(variant: Variant) -> Callable[[], None]:
    """The optimizer as `experiments.training.loop.train` makes and drives it; clipping and norms apart."""
    rates = torch.tensor([RATE], dtype=torch.float64)
    optimizer = AdamW(variant.parameter_groups(rates, torch.zeros_like(rates)), trials=1)
    moving = torch.ones(1, dtype=torch.bool)

    def update() -> None:
        optimizer.step(torch.tensor([1.0], dtype=torch.float64), moving)
        optimizer.zero_gradients()

    return update


def _torchs(factors: Mapping[str, tuple[nn.Parameter, nn.Parameter]], *, fused: bool | None) -> Callable[[], None]:
    parameters = [parameter for pair in factors.values() for parameter in pair]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=fused)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update
