"""Starting from updates that were learned before: each ΔW for its layer, in the form that the layer wants.

A form is changed without changing ΔW: factors to triplets by a thin QR of each factor and an SVD of what is
between them, a dense ΔW to factors of its numerical rank, anything to dense. Products are taken in float64.
"""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_variants.frozen_model.linear_map import LinearMap, find_linear_maps, names_of, slice_rows, split_slice
from lora_variants.interface.layer import AdaptedLayer, Factors, Triplets

Update: TypeAlias = Factors | Triplets | Tensor  # a dense ΔW is (d_out, d_in); that of a vector has its shape


def as_factors(update: Update) -> Factors:
    """The same ΔW as two factors; factors are what they were."""
    if isinstance(update, Factors):
        return update
    return (update if isinstance(update, Triplets) else as_triplets(update)).folded()


def as_triplets(update: Update) -> Triplets:
    """The same ΔW with orthonormal P and Q, of the rank its factors have; triplets are what they were."""
    if isinstance(update, Triplets):
        return update
    if isinstance(update, Factors):
        left, right = torch.linalg.qr(update.left.double()), torch.linalg.qr(update.right.double().mT)
        U, S, Vh = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
        return Triplets(left.Q @ U, S, Vh @ right.Q.mT, update.scale)
    U, S, Vh = torch.linalg.svd(update.double(), full_matrices=False)
    # below this a singular value is the rounding of float32 entries: NumPy's matrix_rank
    kept = int((S[:1] * max(update.shape) * torch.finfo(torch.float32).eps < S).sum())
    return Triplets(U[:, :kept], S[:kept], Vh[:kept], 1.0)


def as_dense(update: Update) -> Float[Tensor, "*shape"]:
    """ΔW itself."""
    if isinstance(update, Tensor):
        return update
    factors = as_factors(update)
    return (factors.scale * factors.left.double()) @ factors.right.double()


def rank_of(update: Update) -> int:
    """The rank that a layer needs to hold ΔW: that of its factors as they are."""
    factors = as_triplets(update).folded() if isinstance(update, Tensor) else as_factors(update)
    return len(factors.right)


def shape_of(update: Update) -> tuple[int, ...]:
    """The shape of ΔW."""
    if isinstance(update, Tensor):
        return tuple(update.shape)
    factors = as_factors(update)
    return factors.left.shape[0], factors.right.shape[1]


def by_layer(updates: Mapping[str, Update], layers: Mapping[str, AdaptedLayer]) -> dict[str, Update]:
    """Each ΔW under the name of its layer, in its layer's shape; one of a whole fused projection in slices.

    'x.weight' is a ΔW in the layout that the model stores the weight of x in. A ΔW of rank 0 is left out.
    Raises: ValueError for a ΔW without a layer, and for one of another shape.
    """
    found: dict[str, Update] = {}
    strangers = []
    for name, update in updates.items():
        path = name if name in layers else name.removesuffix(".weight")
        slices = {key: layer for key, layer in layers.items() if split_slice(key)[0] == path and key != path}
        if isinstance(update, Tensor) and path in layers and path != name and layers[path].base.transposed:
            update = update.mT
        if path in layers:
            found[path] = update
        elif slices:
            found |= _in_slices(path, update, slices)
        elif not _is_nothing(update):
            strangers.append(name)
    if strangers:
        raise ValueError(
            f"there are updates of {names_of(strangers)}, which this run does not adapt; "
            f"name them in targets, with a rank above 0 where the variant has ranks"
        )
    for name, update in found.items():
        _refuse_shape(f"the update of {name}", shape_of(update), (layers[name].base.d_out, layers[name].base.d_in))
    return {name: update for name, update in found.items() if isinstance(update, Tensor) or not _is_nothing(update)}


def _is_nothing(update: Update) -> bool:
    return not (update.any() if isinstance(update, Tensor) else rank_of(update))


def _in_slices(path: str, update: Update, layers: Mapping[str, AdaptedLayer]) -> dict[str, Update]:
    """The rows of ΔW that each slice adapts; rank directions that do not reach a slice are left out of it."""
    whole = update if isinstance(update, Tensor) else as_factors(update)
    first = next(iter(layers.values()))
    _refuse_shape(f"the update of {path}", shape_of(whole), (LinearMap(first.base.owner).d_out, first.base.d_in))
    by_rows = whole if isinstance(whole, Tensor) else whole.left
    others = by_rows.clone()
    found: dict[str, Update] = {}
    for name, layer in layers.items():
        rows = by_rows[slice(*layer.base.rows)]
        others[slice(*layer.base.rows)] = 0
        if isinstance(whole, Tensor):
            found[name] = rows
        else:
            reach = rows.any(dim=0)
            found[name] = Factors(rows[:, reach], whole.right[reach], whole.scale)
    if others.any():
        raise ValueError(
            f"the update of {path} changes rows other than those of {names_of(layers)}; name all its rows in targets"
        )
    return found


def refuse_heads(heads: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    """Raise ValueError for tensors that are no head of the task, and for a head of another shape."""
    strangers = [key for key in heads if key not in there]
    if strangers:
        raise ValueError(
            f"there are tensors other than the updates, {names_of(strangers)}, that are no head of this task; "
            f"its heads are: {names_of(there) or 'none'}; leave them out of the file, or choose another task"
        )
    for key, value in heads.items():
        _refuse_shape(f"the head {key}", tuple(value.shape), tuple(there[key].shape))


def _refuse_shape(what: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
    if theirs != ours:
        raise ValueError(
            f"{what} is {' x '.join(map(str, theirs))}, this model's is {' x '.join(map(str, ours))}; "
            f"it fits only the model that it was learned on"
        )


def add_updates(model: nn.Module, updates: Mapping[str, Update]) -> None:
    """Add every ΔW to the model's own weights: of a linear layer, of rows of one, or of a parameter by its name.

    Raises: ValueError for a name that is neither, and for another shape; nothing is changed then.
    """
    maps, parameters = find_linear_maps(model), dict(model.named_parameters())
    weights = {}
    for name, update in updates.items():
        path = split_slice(name)[0]
        if name not in parameters and path in maps:
            lm = maps[path][1]
            weight = lm.base_weight().detach()[slice(*(slice_rows(name, lm.d_out) or (0, lm.d_out)))]
        elif name in parameters or f"{name}.weight" in parameters:
            weight = parameters[name if name in parameters else f"{name}.weight"].detach()
        else:
            raise ValueError(f"there is an update of {name}; the model has no such layer and no such parameter")
        _refuse_shape(f"the update of {name}", shape_of(update), tuple(weight.shape))
        weights[name] = weight
    for name, update in updates.items():
        weights[name] += as_dense(update).to(weights[name])
