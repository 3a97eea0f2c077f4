"""A crossed design of two parts of the seed: its runs, and how much of the variance of the score each part has."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.stats.variance_components import variance_components
from experiments.config.errors import ConfigError
from experiments.config.schema import RunConfig
from experiments.config.seed import SeedParts, read_seed, seed_parts
from experiments.config.shown import shown
from lora_variants.interface.config import HIGHEST_SEED

MOST_LEVELS = 1000


def read_levels(given: Sequence[str], config: RunConfig) -> dict[str, range]:
    """The seeds of the two parts that vary, from 'part=number' each; they count up from the configuration's own.

    Raises: ConfigError.
    """
    own, levels, errors = seed_parts(config.seed).model_dump(), dict[str, range](), []
    for text in given:
        found = re.fullmatch(r"(\w+)=(\d{1,4})", text, re.ASCII)
        part, number = (found[1], int(found[2])) if found else ("", 0)
        if part not in own or not 2 <= number <= MOST_LEVELS:
            known = ", ".join(own)
            errors.append(f"--vary {shown(text)}: a part of the seed ({known}) and 2 to {MOST_LEVELS} seeds: init=8")
        elif part in levels:
            errors.append(f"--vary {shown(text)}: the design crosses two different parts of the seed")
        elif part == "dropout" and not getattr(config.variant, "dropout", 0.0):
            errors.append(f"--vary {shown(text)}: nothing is dropped, its seed decides nothing; --set dropout=0.1, say")
        elif own[part] > HIGHEST_SEED - number:
            errors.append(f"--vary {shown(text)}: seed.{part} {own[part]} leaves no {number} seeds; take a lower one")
        else:
            levels[part] = range(own[part], own[part] + number)
    if errors:
        raise ConfigError(errors)
    return levels


def crossed_configs(config: RunConfig, levels: Mapping[str, range]) -> list[RunConfig]:
    """Every seed of the first part with every one of the second, which changes faster."""
    (rows, of_row), (columns, of_column) = levels.items()
    own = seed_parts(config.seed).model_dump()
    seeds = [read_seed(own | {rows: row, columns: column}) for row in of_row for column in of_column]
    return [config.model_copy(update={"seed": seed}) for seed in seeds]


def describe_design(config: RunConfig, levels: Mapping[str, range]) -> str:
    """'64 runs: init 0-7 x data 0-7, dropout 0'."""
    crossed = " x ".join(f"{part} {seeds[0]}-{seeds[-1]}" for part, seeds in levels.items())
    (rows, columns), own = levels.values(), seed_parts(config.seed).model_dump()
    fixed = next(f"{part} {own[part]}" for part in SeedParts.model_fields if part not in levels)
    return f"{len(rows) * len(columns)} runs: {crossed}, {fixed}"


def variance_table(results: Sequence[Mapping[str, Any]], levels: Mapping[str, range], *, split: str) -> list[str]:
    """Lines that say what each part has of the variance of the score on a split, the results in the order of the runs.

    Raises: ValueError for scores that are all alike.
    """
    name = results[0]["score_name"]
    scores = np.array([result[split][name] for result in results]).reshape([len(seeds) for seeds in levels.values()])
    found = variance_components(scores)
    lines = [f"{name} ({split}): mean {scores.mean():.4f}", f"{'source':<8} {'sd':>9}   share of the variance"]
    for source, each in zip([*levels, "rest"], found, strict=True):
        interval = f"[{each.low:.2f}, {each.high:.2f}]"
        lines.append(f"{source:<8} {each.variance**0.5:>9.3g}   {each.share:.2f}, 95 % interval {interval}")
    total = sum(each.variance for each in found)
    return [*lines, f"{'a run':<8} {total**0.5:>9.3g}"]
