"""The linear maps of a model that can be adapted: nn.Linear, GPT-2's Conv1D, and row slices of fused projections."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ATTENTION_PARTS = ("query", "key", "value")
_SLICE = re.compile(r"^(?P<name>.*)\[(?P<first>\d+)(?P<kind>[:/])(?P<second>\d+)\]$")


class LinearMap(nn.Module):
    """The frozen map y = W0 x + b of one layer: the whole of it, or the rows `start:stop` of W0.

    `owner` is the module that holds the tensors, `weight_name` and `bias_name` their names in it.
    A map with `whole=True` is computed by calling its owner; any other from the tensors. `is_product` says
    that it is W0 x + b of these tensors and nothing else, so that it may be computed without its owner.
    """

    def __init__(
        self,
        owner: nn.Module,
        *,
        rows: tuple[int, int] | None = None,
        bias_rows: tuple[int, int] | None = None,
        weight_name: str = "weight",
        bias_name: str = "bias",
        whole: bool = True,
    ) -> None:
        super().__init__()
        self.owner = owner
        self._held = (owner,)  # the same, past nn.Module's slow look-up: every step asks each layer for its tensors
        self.weight_name, self.bias_name = weight_name, bias_name
        self.transposed = is_conv1d(owner)  # stored (d_in, d_out)
        if weight_name not in owner._parameters:
            raise ValueError(f"the {weight_name} of a {type(owner).__name__} is computed from others; merge it first")
        stored = getattr(owner, weight_name)
        out_total, self.d_in = (stored.shape[1], stored.shape[0]) if self.transposed else stored.shape
        self.rows = rows or (0, out_total)
        self.bias_rows = bias_rows or self.rows
        self.d_out = self.rows[1] - self.rows[0]
        self.all_rows = self.d_out == out_total
        bias = owner._parameters.get(bias_name)
        self.all_bias = bias is None or len(bias) == self.d_out
        self.whole = whole and self.all_rows
        own_forward = type(owner).forward is not nn.Linear.forward and not is_conv1d(owner)
        self.is_product = not self.whole or not (own_forward or "forward" in vars(owner))

    def base_weight(self) -> Float[Tensor, "d_out d_in"]:
        """W0 as a view of the model's own tensor; never write to it."""
        stored = self._held[0]._parameters[self.weight_name]
        assert stored is not None
        weight = stored.mT if self.transposed else stored
        return weight if self.all_rows else weight[slice(*self.rows)]

    def base_bias(self) -> Float[Tensor, " d_out"] | None:
        bias = self._held[0]._parameters.get(self.bias_name)
        return bias if bias is None or self.all_bias else bias[slice(*self.bias_rows)]

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        y: Tensor = self.owner(x) if self.whole else F.linear(x, self.base_weight(), self.base_bias())
        return y

    def of(self, owner: nn.Module) -> "LinearMap":
        """The same map, read from a copy of its owner."""
        return LinearMap(
            owner,
            rows=self.rows,
            bias_rows=self.bias_rows,
            weight_name=self.weight_name,
            bias_name=self.bias_name,
            whole=self.whole,
        )


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's Conv1D, known by its name and shape so that transformers need not be imported."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def find_linear_maps(model: nn.Module) -> dict[str, tuple[str, LinearMap]]:
    """Every linear map by name, each with the path of the module that would be replaced to adapt it.

    nn.MultiheadAttention bypasses its sub-modules and is replaced whole; its maps are called
    `<path>.query`, `.key`, `.value` and `.out_proj`.
    """
    maps: dict[str, tuple[str, LinearMap]] = {}
    inside_attention: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if path.startswith(inside_attention):
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside_attention += (f"{path}." if path else "",)
            prefix = f"{path}." if path else ""
            maps |= {f"{prefix}{part}": (path, lm) for part, lm in attention_maps(module).items()}
        elif isinstance(module, nn.Linear) or is_conv1d(module):
            maps[path] = (path, LinearMap(module))
    return maps


def attention_maps(attention: nn.MultiheadAttention) -> dict[str, LinearMap]:
    """W_q, W_k, W_v and W_o of torch's multi-head attention as four maps."""
    width = attention.embed_dim
    maps = {}
    for i, part in enumerate(ATTENTION_PARTS):
        rows = (i * width, (i + 1) * width)
        fused = attention.in_proj_weight is not None
        maps[part] = LinearMap(
            attention,
            rows=rows if fused else None,
            bias_rows=rows,
            weight_name="in_proj_weight" if fused else f"{part[0]}_proj_weight",
            bias_name="in_proj_bias",
            whole=False,
        )
    maps["out_proj"] = LinearMap(attention.out_proj)
    return maps


def split_slice(name: str) -> tuple[str, str]:
    """'h.0.c_attn[1/3]' -> ('h.0.c_attn', '[1/3]'); a name without a slice -> (name, '')."""
    found = _SLICE.match(name)
    return (found["name"], name[len(found["name"]) :]) if found else (name, "")


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a layer; a pattern without a slice names every slice of the layer too."""
    pattern_path, pattern_slice = split_slice(pattern)
    path, rows = split_slice(name)
    return fnmatchcase(path, pattern_path) and pattern_slice in ("", rows)


def slice_rows(name: str, d_out: int) -> tuple[int, int] | None:
    """The rows that the slice of a name means: '[64:128]' rows 64 to 127, '[1/3]' the first third; None without one."""
    found = _SLICE.match(name)
    if not found:
        return None
    first, second = int(found["first"]), int(found["second"])
    if found["kind"] == ":":
        start, stop = first, second
    else:
        if not 1 <= first <= second or d_out % second:
            raise ValueError(f"target {name!r}: {d_out} rows have no part {first} of {second} equal parts")
        start, stop = (first - 1) * d_out // second, first * d_out // second
    if not 0 <= start < stop <= d_out:
        raise ValueError(f"target {name!r}: rows {start}:{stop} are not within the layer's 0:{d_out}")
    return start, stop


def names_of(layers: Iterable[str], *, most: int = 40) -> str:
    """Layer names for an error message."""
    names = sorted(layers)
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
