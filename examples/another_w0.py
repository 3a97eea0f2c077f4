"""How much another W0 moves a score: the shipped base model of `bytes` beside three pretrained with other seeds.

Trains `lora` r=4 on each with four seeds of its own; finished runs are found again. Arguments are overrides, key=value.
"""

import sys
from pathlib import Path

import numpy as np

from analysis.stats.random_effects import between_groups
from experiments.config.loading import load
from experiments.runner import execute
from experiments.terminal import Display

CONFIG = Path(__file__).parents[1] / "configs" / "bytes.yaml"
BASES, SEEDS = 4, 4

display = Display()
scores = np.zeros((BASES, SEEDS))
for pretraining_seed in range(BASES):
    for repeat in range(SEEDS):
        config = load(
            CONFIG,
            variant="lora",
            rank=4,
            seed=pretraining_seed * SEEDS + repeat,  # no two bases share a seed: their scores are independent
            overrides=[f"task.pretraining_seed={pretraining_seed}", "study=another_w0", *sys.argv[1:]],
        )
        result = execute(config, runs_dir=Path("runs"), test=False, display=display).result
        scores[pretraining_seed, repeat] = result["score"]
    base = "shipped" if config.task.pretraining == "shipped" else "rebuilt"
    row = "  ".join(f"{score:.4f}" for score in scores[pretraining_seed])
    display.say(f"W0 of seed {pretraining_seed} ({base}): mean {scores[pretraining_seed].mean():.4f} of {row}")

found = between_groups(scores)
display.say(
    f"standard deviation between seeds {found.within**0.5:.4f}, between W0s {max(0.0, found.between) ** 0.5:.4f}\n"
    f"share of W0 in the variance: {found.share:.2f}, 95% interval [{found.low:.2f}, {found.high:.2f}]"
)
