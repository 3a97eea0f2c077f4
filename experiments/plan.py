"""What a run would do, without doing it: the resolved configuration and what each adapted layer costs."""

import warnings
from typing import Any

from experiments.config.schema import RunConfig
from experiments.config.yaml_files import yaml_text
from experiments.record.starting_point import read_start
from experiments.terminal import Display
from experiments.training.context import attached, load_task
from lora_variants.frozen_model.target_names import patterns_of
from lora_variants.interface.attach import outside_heads
from lora_variants.interface.ranks import RankWarning


def show_plan(config: RunConfig, display: Display) -> None:
    """Print the plan; nothing is trained, downloaded or written."""
    task, start = load_task(config), read_start(config.start)
    model = task.architecture()
    base_parameters = sum(p.numel() for p in model.parameters())
    named = patterns_of(config.targets, outside_heads(model, task.head_names(model)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RankWarning)
        variant = attached(config, task, model, start)
    display.say(yaml_text(config.tree()))
    if start is not None:
        display.say(start.describe())
    for target, patterns in named.items():
        display.say(f"{target} stands for {', '.join(patterns)}")
    rows = [_row(name, layer, variant.scales().get(name)) for name, layer in variant.layers.items()]
    if rows:
        display.layers(rows)
    trainable = variant.trainable_parameters(0)
    display.say(
        f"trainable parameters: {trainable:,} ({trainable / base_parameters:.2%} of the base's {base_parameters:,})"
    )
    display.say(f"training state: {trainable * 4 * 4 / 2**20:.2f} MiB (weights, gradients and two moments in float32)")
    if not trainable:
        display.say("nothing trains: the run scores the untouched base")
    for warning in caught:
        display.warn(str(warning.message))


def _row(name: str, layer: Any, scales: list[float] | None) -> dict[str, str]:
    """Cost of one layer; extra FLOPs are the factors', padding included, over those of the frozen layer's product."""
    d_out, d_in, rank = layer.base.d_out, layer.base.d_in, layer.ranks[0]
    parameters = sum(layer.parts(0)[key].numel() for key in layer.trained)
    padded, at_first = layer.rank_padded_to(), layer.unpadded(0)
    return {
        "layer": name,
        "shape": f"{d_out} x {d_in}",
        "rank": (str(rank) if at_first == rank else f"{at_first}→{rank}") if padded else "full",
        "scale": f"{scales[0]:g}" if scales else "-",
        "parameters": f"{parameters:,} ({parameters / (d_out * d_in):.0%})",
        "flops": f"{padded * (d_out + d_in) / (d_out * d_in):+.1%}",
    }
