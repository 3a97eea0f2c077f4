"""Tiny models of every kind of layer that can be adapted, and a synthetic task to train them on."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experiments.config.schema import Labels
from experiments.tasks.task import Batch, Split, Task, TaskConfig
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.loop import Training
from experiments.training.trial import Outcome
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.ranks import RankWarning
from lora_variants.interface.rng import stream
from lora_variants.interface.variant import Variant

ALONE = ("full_all",)  # trains in a pack of one
ADAPTERS = tuple(name for name, entry in VARIANTS.items() if "rank" in entry.load().config_class.model_fields)
PACKED = tuple(name for name in VARIANTS if name not in ALONE)
WIDTH, LENGTH, CLASSES = 12, 5, 3


class Model(nn.Module):
    """Features of x (rows, length, 12), then a head; a subclass says what the features are."""

    def __init__(self, features: int, *, head_bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(features, CLASSES, bias=head_bias)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Perceptron(Model):
    """Two layers of odd shapes."""

    def __init__(self, layer: Callable[[int, int], nn.Module], *, head_bias: bool) -> None:
        super().__init__(7, head_bias=head_bias)
        self.first, self.second = layer(WIDTH, 11), layer(11, 7)

    def features(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Fused(Model):
    """Three projections in one layer, as GPT-2 has them."""

    def __init__(self, layer: Callable[[int, int], nn.Module], *, head_bias: bool = True) -> None:
        super().__init__(9, head_bias=head_bias)
        self.c_attn, self.c_proj = layer(WIDTH, 27), layer(9, 9)

    def features(self, x: Tensor) -> Tensor:
        query, key, value = self.c_attn(x).chunk(3, dim=-1)
        return self.c_proj(F.scaled_dot_product_attention(query, key, value))


class Attending(Model):
    """torch's attention; keys and values are parts of the input where their widths are other ones."""

    def __init__(self, *, kdim: int = 8, vdim: int = 8, need_weights: bool, **options: Any) -> None:
        super().__init__(8)
        self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=vdim, batch_first=True, **options)
        self.widths, self.need_weights = (kdim, vdim), need_weights
        bias = self.attention.in_proj_bias
        if bias is not None:
            nn.init.normal_(bias)

    def features(self, x: Tensor) -> Tensor:
        key, value = (x[..., :width] for width in self.widths)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x[..., -8:], key, value, attn_mask=causal, need_weights=self.need_weights)[0]


class Encoding(Model):
    """torch's encoder with a padding mask, which evaluates on a fused path of its own."""

    def __init__(self) -> None:
        super().__init__(WIDTH, head_bias=False)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, dim_feedforward=10, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def features(self, x: Tensor) -> Tensor:
        padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        padding[::2, -2:] = True
        return self.encoder(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0.0)


@dataclass(frozen=True)
class Kind:
    """A kind of layer: a model that has it, and the targets that adapt it."""

    build: Callable[[], Model]
    targets: tuple[str, ...] = ("*",)
    whole: bool = True  # its layers are computed by calling the model's own, so to the bit


KINDS = {
    "linear": Kind(lambda: Perceptron(nn.Linear, head_bias=True)),
    "linear_without_bias": Kind(lambda: Perceptron(lambda i, o: nn.Linear(i, o, bias=False), head_bias=False)),
    "linear_slice": Kind(lambda: Fused(nn.Linear), ("c_attn[0:16]",), whole=False),
    "conv1d": Kind(lambda: Fused(lambda i, o: Conv1D(o, i)), whole=False),  # our product is of the transposed view
    "conv1d_slices": Kind(
        lambda: Fused(lambda i, o: Conv1D(o, i), head_bias=False), ("c_attn[1/3]", "c_attn[3/3]"), whole=False
    ),
    "attention": Kind(lambda: Attending(need_weights=False), whole=False),
    "attention_of_other_widths": Kind(lambda: Attending(kdim=6, vdim=10, need_weights=True), whole=False),
    "attention_without_bias": Kind(
        lambda: Attending(bias=False, need_weights=True), ("attention.query", "attention.value"), whole=False
    ),
    "encoder": Kind(Encoding, whole=False),
}


class Regression(Task):
    """Random inputs of width 12 to random outputs, in the type of the model; a fresh batch at every step."""

    score_name: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    config_class: ClassVar[type[TaskConfig]] = TaskConfig
    head_modules = ("head",)

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(TaskConfig(name="regression"))
        self.dtype = dtype

    def data_sha256(self) -> dict[str, str]:
        return {}

    def architecture(self) -> nn.Module:
        raise NotImplementedError

    def base_model(self, report: Any = None) -> nn.Module:
        raise NotImplementedError

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            x = torch.randn(batch_size, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
            y = torch.randn(batch_size, LENGTH, CLASSES, generator=generator, dtype=torch.float64)
            yield {"x": x.to(self.dtype), "y": y.to(self.dtype)}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        yield next(self.training_batches(0, 4))

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]) - batch["y"]).square().sum(dim=(1, 2))

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.full((len(batch["x"]),), float(batch["y"][0].numel()), dtype=self.dtype, device=batch["x"].device)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)


def built(kind: str, *, seed: int = 0) -> Model:
    """The model of a kind in float64, the same at every call."""
    torch.manual_seed(seed)
    return KINDS[kind].build().double()


def knobs(name: str, **wanted: Any) -> Any:
    """The configuration of a variant from those of the wanted knobs that it has."""
    fields = VARIANTS[name].load().config_class.model_fields
    return VARIANTS[name].load().config_class(**{knob: value for knob, value in wanted.items() if knob in fields})


def attached(
    name: str,
    model: nn.Module,
    *,
    targets: Sequence[str] = ("*",),
    heads: Sequence[str] = ("head",),
    configs: Sequence[Any],
    seeds: Sequence[int] | None = None,
    steps: int = 10,
    rows: int = 4,
) -> Variant:
    """A variant on a model; a pack has as many trials as there are configurations."""
    seeds = tuple(seeds) if seeds else tuple(range(3, 3 + len(configs)))
    pack = Pack(seeds=seeds, total_steps=(steps,) * len(configs), rows=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # the models are tiny
        return attach(
            VARIANTS[name].load(), model, targets=targets, head_modules=heads, pack=pack, configs=tuple(configs)
        )


def variant_on(name: str, kind: str, *, ranks: Sequence[Any] = (2, 3), **wanted: Any) -> Variant:
    """A variant on the model of a kind: a trial a rank, or one trial where it takes a pack of one."""
    ranks = ranks[:1] if name in ALONE else ranks
    configs = [knobs(name, rank=rank, **wanted) for rank in ranks]
    return attached(name, built(kind), targets=KINDS[kind].targets, configs=configs)


def trained(
    variant: Variant, *, steps: int = 4, task: Task | None = None, rows: int = 4, labels: Labels = True, **options: Any
) -> list[Outcome]:
    """Train all trials alike on random data."""
    options = {"learning_rate": 1e-2, "weight_decay": 0.1} | options
    trials = [TrialHyperparameters(seed=seed, **options) for seed in variant.pack.seeds]
    return train(
        variant, task or Regression(), trials, SharedHyperparameters(steps=steps, batch_size=rows, labels=labels)
    )


@dataclass
class Watched:
    """A trial in the loop, without a record: it keeps what it reported last.

    It lets its pack go on when it fails, so that what becomes of a failed trial's slot can be seen: it ends with its
    last step, or when no trial of the pack runs any more.
    """

    training: Training
    slot: int
    row: dict[str, float] = field(default_factory=dict)
    at_rung: bool = False

    @property
    def ended(self) -> bool:
        pack = self.training.variant.pack
        over = pack.steps[self.slot] >= self.training.shared.steps
        return over or not self.training.trains or not any(pack.running)

    def report(self, row: dict[str, float], seconds: float) -> None:
        self.row = row

    def score(self, scores: dict[str, float]) -> None:
        raise AssertionError("there are no rungs")


OnStep = Callable[[int, dict[str, list[float]]], None]


def train(
    variant: Variant,
    task: Task,
    trials: Sequence[TrialHyperparameters],
    shared: SharedHyperparameters,
    *,
    on_step: OnStep = lambda step, metrics: None,
    checkpoints: Any = None,
) -> list[Outcome]:
    """Train all trials of a pack to their end, in the loop that runs are trained in; returns what became of each.

    `on_step(step, metrics)` hears one number a trial, NaN for one that failed. `checkpoints` are those of the first
    trial; without any it begins at its first step.
    """
    training = Training(variant, task, trials, shared)
    pack, watched = variant.pack, [Watched(training, slot) for slot in range(len(trials))]
    if checkpoints is not None and training.trains:
        pack.steps[0] = checkpoints.restore(training.holders)

    def after_step() -> None:
        if not any(pack.running):
            return
        rows, step = [trial.row for trial in watched], max(pack.steps)
        names = dict.fromkeys(name for row in rows for name in row)
        on_step(step, {name: [row.get(name, math.nan) for row in rows] for name in names})
        if checkpoints is not None:
            checkpoints.after_step(step, training.holders, seconds=0.0)
        for trial in watched:
            trial.row = {}

    training.train_until_one_ends(watched, after_step=after_step)
    return training.outcomes


def inputs(trials: int, *, rows: int = 4, seed: int = 7) -> Tensor:
    """Random rows, other ones for each trial."""
    return torch.randn(trials * rows, LENGTH, WIDTH, generator=stream(seed), dtype=torch.float64)


def rows_of(trial: int, x: Tensor, trials: int) -> Tensor:
    """A trial's part of trial-major rows."""
    return x.chunk(trials)[trial]
