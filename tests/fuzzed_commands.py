"""Command lines of run.py, study.py and spectra.py with the files that they name: sensible ones, and others."""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from fuzzed_adapters import fuzzed_adapter
from fuzzed_text import SNIPPETS, text_of
from fuzzed_trees import TINY, Places, Tree, files_of, run_tree, study_tree
from fuzzed_values import WORDS, any_value, paths
from fuzzing import Case

from lora_variants import VARIANTS

TWO_STEPS = ("training.steps=2", "training.evaluate_every=0", "training.threads=1", "training.device=cpu")


def run_cases(seed: int, count: int, places: Places, *, trained: float) -> Iterator[Case]:
    """Run configurations; of this share two steps are trained, the others are planned."""
    for number in range(count):
        rng = random.Random(f"run {seed} {number}")
        trains = rng.random() < trained
        tree = run_tree(rng, places, small=trains)
        files, flags = files_of(rng, tree, "case.yaml")
        flags = ["--config", "case.yaml", *flags, *_run_flags(rng, tree, places)]
        ends = [*_set(*TWO_STEPS), "--wandb", "disabled"] if trains else ["--plan"]
        yield Case(number, "run.py", [*flags, *ends], files)


def study_cases(seed: int, count: int, places: Places) -> Iterator[Case]:
    """Study files; most are planned, of the others the status is asked for."""
    for number in range(count):
        rng = random.Random(f"study {seed} {number}")
        base, study = run_tree(rng, places, small=True), study_tree(rng)
        files = (
            files_of(rng, base, "base.yaml")[0] if rng.random() < 0.1 else {"base.yaml": text_of(rng, base).encode()}
        )
        own, flags = files_of(rng, study, "case.yaml")
        flags = ["case.yaml", *flags, *_study_flags(rng), "--plan" if rng.random() < 0.85 else "--status"]
        yield Case(number, "study.py", flags, files | own)


def adapter_cases(seed: int, count: int) -> Iterator[Case]:
    """Adapters; half of them go to spectra.py, the others to `run.py --start-from`."""
    for number in range(count):
        rng = random.Random(f"adapter {seed} {number}")
        files, path, needs_alpha = fuzzed_adapter(rng)
        if rng.random() < 0.5:
            yield Case(number, "spectra.py", [path, "--out", "figures"], files)
            continue
        alpha = _set("start.alpha=8") if needs_alpha != (rng.random() < 0.1) else []
        flags = ["--config", "case.yaml", "--start-from", path, *alpha, "--plan"]
        yield Case(number, "run.py", flags, {**files, "case.yaml": json.dumps(TINY).encode()})


def _set(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def _word(rng: random.Random) -> str:
    """Anything that a command line can hold: no NUL is among it."""
    return str(rng.choice((rng.choice(WORDS), rng.choice(SNIPPETS), any_value(rng))))[:5000].replace("\x00", "")


def _run_flags(rng: random.Random, tree: Tree, places: Places) -> list[str]:
    """None, mostly; else a flag of run.py, with a value for it or with any."""
    some_key = rng.choice([".".join(map(str, path)) for path in paths(tree)])
    good = {
        "--variant": rng.choice(list(VARIANTS)), "--rank": str(rng.randint(0, 4)), "--seed": str(rng.randint(0, 99)),
        "--start-from": places.run,
        "--set": f"{rng.choice(('steps', 'rank', 'training.batch_size'))}={rng.randint(0, 9)}",
        "--runs-dir": "elsewhere", "--wandb": "disabled", "--test": "", "--nope": "",
    }  # fmt: skip
    bad = (f"{some_key}={_word(rng)}", _word(rng), f"{_word(rng)}={_word(rng)}", f"{some_key}.x.y={_word(rng)}")
    return _flag(rng, good, {"--set": rng.choice(bad)})


def _study_flags(rng: random.Random) -> list[str]:
    """None, mostly; else a flag of study.py, with a value for it or with any."""
    good = {
        "--workers": "2", "--pack": "2", "--storage": "queue.log", "--runs-dir": "elsewhere", "--wandb": "disabled",
        "--set": "protocol.margin=0.5", "--collect": "other", "--retry-failed": "", "--separate-runs": "",
    }  # fmt: skip
    some_key = rng.choice(
        ("protocol.margin", "protocol.tuning.seeds", "protocol.x", "training.steps", "rank", "name", "arms")
    )
    storage = rng.choice(("sqlite:///x.db", "postgresql+psycopg://u@127.0.0.1:1/x", "postgresql://", _word(rng)))
    flags = _flag(rng, good, {"--set": rng.choice((f"{some_key}={_word(rng)}", _word(rng))), "--storage": storage})
    return [*flags, "--storage-patience", "0"] if len(flags) == 2 and flags[0] == "--storage" else flags


def _flag(rng: random.Random, good: Mapping[str, str], bad: Mapping[str, str]) -> list[str]:
    if rng.random() < 0.75:
        return []
    flag = rng.choice(list(good))
    if not good[flag]:
        return [flag]
    if rng.random() < 0.6:
        return [flag, good[flag]]
    value: Any = bad.get(flag, _word(rng))
    return [flag] if rng.random() < 0.1 else [flag, value]
