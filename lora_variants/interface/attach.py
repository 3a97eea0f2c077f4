"""Attaching a variant to a model: the frozen model keeps its weights, adapted layers take their layers' places."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lora_variants.frozen_model.linear_map import (
    LinearMap,
    find_linear_maps,
    matches,
    names_of,
    slice_rows,
    split_slice,
)
from lora_variants.frozen_model.target_names import spelled_out
from lora_variants.interface.layer import AdaptedLayer, HeadLayer, TrialLayer
from lora_variants.interface.pack import Pack
from lora_variants.interface.sites import Site, site_module
from lora_variants.interface.variant import Variant


def attach(
    variant_class: type[Variant],
    model: nn.Module,
    *,
    targets: Sequence[str],
    head_modules: Sequence[str] = (),
    pack: Pack,
    configs: Sequence[Any],
) -> Variant:
    """Freeze the model and put a variant's layers where the targets say, one configuration a trial.

    `targets` are patterns of layer names ('layers.*.query'), or names that mean the same layers in every known
    architecture ('attention-qv', see `target_names`); '[1/3]' or '[0:64]' behind a name means rows of a fused
    projection. `head_modules` are trained whole by every variant alike.
    Raises: ValueError for a pattern that matches nothing, overlapping slices, a model whose rows are
    not independent, a rank that does not fit. Nothing is changed then.
    """
    if len(configs) != pack.trials:
        raise ValueError(f"{len(configs)} configurations for a pack of {pack.trials} trials")
    refuse_dependent_rows(model, pack)
    heads = select_heads(model, head_modules)
    maps = select_maps(model, targets, head_modules)
    variant = variant_class(model, pack, configs)
    ranks = variant.layer_ranks({name: lm for name, (_, lm) in maps.items()})

    by_site: dict[str, dict[str, AdaptedLayer | HeadLayer]] = {}
    for name, (path, lm) in maps.items():
        if any(ranks.get(name, ())) or any(getattr(config, "pad_rank_to", 0) for config in configs):
            variant.layers[name] = variant.adapt(name, lm, ranks[name])
            by_site.setdefault(path, {})[name] = variant.layers[name]
    for path, lm in heads.items():
        variant.heads[path] = HeadLayer(path, lm, pack)
        by_site[path] = {path: variant.heads[path]}
    for path, layers in by_site.items():
        variant.sites.append(_site(model, path, layers))
    variant.attributes_before = _freeze(model)
    variant.unmerge()
    variant.attached()
    return variant


def _site(model: nn.Module, path: str, layers: dict[str, AdaptedLayer | HeadLayer]) -> Site:
    original = model.get_submodule(path)
    places = [(parent, key) for parent in model.modules() for key, m in parent._modules.items() if m is original]
    if not places:
        raise ValueError("the model itself is the layer to adapt; wrap it in a module")
    return Site(places, original, site_module(original, layers), layers)


def select_maps(
    model: nn.Module, targets: Sequence[str], head_modules: Sequence[str] = ()
) -> dict[str, tuple[str, LinearMap]]:
    """The targeted linear maps in the model's order: name -> (path of the module to replace, map)."""
    there = outside_heads(model, head_modules)
    chosen: dict[str, tuple[str, LinearMap]] = {}
    unmatched = []
    for target in spelled_out(targets, there):
        path_pattern, rows_text = split_slice(target)
        names = [name for name in there if matches(path_pattern, name)]
        if not names:
            unmatched.append(target)
        for name in names:
            path, lm = there[name]
            if rows_text:
                if isinstance(model.get_submodule(path), nn.MultiheadAttention):
                    raise ValueError(f"target {target!r}: the projections of torch's attention have no slices here")
                rows = slice_rows(f"{name}{rows_text}", lm.d_out)
                lm = LinearMap(lm.owner, rows=rows, whole=False)
            chosen[f"{name}{rows_text}"] = (path, lm)
    if unmatched or not targets:
        what = names_of(map(repr, unmatched)) or "an empty list"
        raise ValueError(f"target {what} matches no linear layer; the model has: {names_of(there)}")
    _refuse_overlaps(chosen)
    order = list(there)
    return dict(sorted(chosen.items(), key=lambda item: (order.index(split_slice(item[0])[0]), item[1][1].rows)))


def outside_heads(model: nn.Module, head_modules: Sequence[str]) -> dict[str, tuple[str, LinearMap]]:
    """The linear maps that may be adapted: all but the heads', with the path of the module to replace."""
    return {
        name: found
        for name, found in find_linear_maps(model).items()
        if not any(name == head or name.startswith(f"{head}.") for head in head_modules)
    }


def _refuse_overlaps(chosen: Mapping[str, tuple[str, LinearMap]]) -> None:
    taken: dict[tuple[int, str], list[tuple[tuple[int, int], str]]] = {}
    for name, (_, lm) in chosen.items():
        others = taken.setdefault((id(lm.owner), lm.weight_name), [])
        for rows, other in others:
            if rows[0] < lm.rows[1] and lm.rows[0] < rows[1]:
                raise ValueError(f"targets {other!r} and {name!r} adapt the same rows; name each row once")
        others.append((lm.rows, name))


def select_heads(model: nn.Module, head_modules: Sequence[str]) -> dict[str, LinearMap]:
    """The linear layers of the head modules that a task names."""
    heads: dict[str, LinearMap] = {}
    for head in head_modules:
        try:
            module = model.get_submodule(head)
        except AttributeError:
            children = names_of(name for name, _ in model.named_children())
            raise ValueError(f"head module {head!r} is not in the model; its parts are: {children}") from None
        for path, part in module.named_modules():
            if isinstance(part, nn.Linear):
                heads[f"{head}.{path}".rstrip(".")] = LinearMap(part)
            elif any(True for _ in part.parameters(recurse=False)):
                raise ValueError(f"head module {head}.{path} is a {type(part).__name__}; only nn.Linear heads train")
    return heads


def refuse_dependent_rows(model: nn.Module, pack: Pack) -> None:
    """Raise where one trial's rows could change another's, or the frozen model would change itself."""
    if getattr(model, "is_adapted", False):
        raise ValueError("the model is already adapted; call detach() on the variant that is attached first")
    for path, module in model.named_modules():
        if isinstance(module, TrialLayer):
            raise ValueError(f"{path} is adapted already; call detach() on the variant that is attached first")
        if isinstance(module, _BatchNorm):
            raise ValueError(f"{path} is a BatchNorm: it mixes rows and changes itself while it trains; not supported")
        if pack.trials == 1:
            continue
        drops = [value for key, value in vars(module).items() if "dropout" in key and isinstance(value, float)]
        drops += [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        if any(drops):
            raise ValueError(
                f"{path} has dropout {max(drops)}: the base's dropout draws one stream for all trials; "
                f"set it to 0 or train a pack of one"
            )
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and not module.batch_first:
            raise ValueError(
                f"{path} is sequence-first: its rows are not trial-major; use batch_first=True or a pack of one"
            )


def _freeze(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """Freeze the model and switch off torch's fused encoder path: in evaluation it reads past the adapted layers.

    Returns what was there before: (holder, attribute, value).
    """
    before: list[tuple[Any, str, Any]] = [(p, "requires_grad", p.requires_grad) for p in model.parameters()]
    before.append((model, "is_adapted", False))
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            before.append((module, "activation_relu_or_gelu", module.activation_relu_or_gelu))
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            before.append((module, "use_nested_tensor", module.use_nested_tensor))
            module.use_nested_tensor = False
    return before
