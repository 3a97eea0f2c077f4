"""What a run would do, without doing it: the resolved configuration, its layers and their costs, data and base."""

from pathlib import Path
from typing import Any

from experiments.config.schema import RunConfig
from experiments.config.yaml_files import yaml_text
from experiments.record.run_description import describe_run
from experiments.record.starting_point import StartingPoint
from experiments.runner import begin
from experiments.terminal import Display
from experiments.training.context import TrainingContext
from experiments.user_cache import NotHereError, read_only
from lora_variants.frozen_model.target_names import patterns_of
from lora_variants.interface.attach import outside_heads
from lora_variants.interface.variant import Variant

MOST_BYTES_LOADED = 2**30  # of W0: a second or two


def show_plan(config: RunConfig, display: Display, *, runs_dir: Path = Path("runs")) -> None:
    """Print the plan; nothing is trained, downloaded or written.

    What is not on this machine yet is said, and what depends on it is left out.
    Raises: what the run would raise before its first step.
    """
    context, start = begin(config, runs_dir)
    unknown: list[str] = []
    with read_only():
        try:
            variant, warnings = context.plan(config, start)
        except NotHereError as error:
            unknown.append(str(error))
        display.say(yaml_text(config.tree()))
        if start is not None:
            display.say(start.describe())
        if not unknown:
            _show_layers(config, context, variant, display)
            for warning in warnings:
                display.warn(warning)
        try:
            show_data(context, display)
            if not unknown and has_base(context, display):
                _show_folder(config, context, variant, display, runs_dir=runs_dir, start=start)
        except NotHereError as error:
            unknown.append(str(error))
    show_unknown(unknown, display)


def show_unknown(unknown: list[str], display: Display) -> None:
    """Print what is not on this machine, each once."""
    for what in dict.fromkeys(unknown):
        display.say(f"not checked: {what}", style="yellow")


def show_data(context: TrainingContext, display: Display) -> None:
    """Print rows, labels and what is cut of every split.

    Raises: DataError with what is wrong with each split; NotHereError, after what is known of them.
    """
    missing = None
    try:
        with display.live():
            context.read_data(display.report)
    except NotHereError as error:
        missing = error
    display.splits(context.task.describe_data())
    if missing is not None:
        raise missing
    display.data((), context.task.data_warnings())


def has_base(context: TrainingContext, display: Display) -> bool:
    """Load W0 where that is quick, as a run does before its first step; False, and said, where it is not.

    Raises: ValueError for weights that are not there or not all; NotHereError.
    """
    context.task.find_base()
    size = sum(p.numel() * p.element_size() for p in context.task.architecture().parameters())
    if size > MOST_BYTES_LOADED:
        show_unknown([f"W0 has {size / 2**30:.1f} GiB: whether all weights of the model are in its files"], display)
        return False
    with display.live():
        context.load(display.report)
    return True


def _show_layers(config: RunConfig, context: TrainingContext, variant: Variant, display: Display) -> None:
    """Print what is adapted and what it costs."""
    model = context.task.architecture()
    base_parameters = sum(p.numel() for p in model.parameters())
    named = patterns_of(config.targets, outside_heads(model, context.task.head_names(model)))
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


def _show_folder(
    config: RunConfig, context: TrainingContext, variant: Variant, display: Display, *,
    runs_dir: Path, start: StartingPoint | None,
) -> None:  # fmt: skip
    """Print where the run goes and whether it is there already. Raises: RecordError where another run is there."""
    rank_total = sum(layer.ranks[0] for layer in variant.layers.values())
    folder = describe_run(config, context, runs_dir, rank_total=rank_total, start=start).run_dir
    if folder.finished:
        folder.refuse_other(config)
        display.say(f"this run has already finished: {folder.path}")
    else:
        display.say(f"run directory: {folder.path}")


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
