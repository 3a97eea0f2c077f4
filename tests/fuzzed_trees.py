"""Trees of runs and studies: those that ship, over models and data that are here, and files of them with a change."""

import copy
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzed_text import another_file, corrupted, read, text_of, with_snippet
from fuzzed_values import extreme_value, mutated, resolved, valid_value
from project_paths import CONFIGS
from text_data import SENTENCES, write_labelled, write_model

from experiments.config.loading import schema_of
from experiments.run import main
from experiments.studies.spec.study_config import StudyConfig
from lora_variants import VARIANTS

Tree = dict[str, Any]
Files = dict[str, bytes | None]

RUNS = tuple(read(path) for path in sorted([*CONFIGS.glob("*.yaml"), *(CONFIGS / "recipes").glob("*.yaml")]))
STUDIES = tuple(read(path) for path in sorted((CONFIGS / "studies").glob("*.yaml")))
MATRICES = {"matrices.0": (16, 16), "matrices.1": (24, 16)}  # (d_out, d_in)
TINY: Tree = {
    "task": {
        "name": "planted", "evaluation_rows": 32,
        "matrices": [{"rank": 2, "d_out": d_out, "d_in": d_in} for d_out, d_in in MATRICES.values()],
    },
    "targets": ["matrices.*"], "variant": {"name": "lora", "rank": 4}, "seed": 0,
    "training": {
        "steps": 20, "batch_size": 8, "threads": 1, "evaluate_every": 0, "learning_rate": {"lora": 1e-2, "head": 1e-2},
    },
}  # fmt: skip
NOT_CHANGED = ("name", "path", "revision", "subset", "source", "reference", "config")  # names of something elsewhere


@dataclass(frozen=True)
class Places:
    """What stands on disk before there are cases: tiny models, tiny data, a finished run over the tiny matrices."""

    encoder: str
    decoder: str
    labelled: str
    lines: str
    run: str

    @classmethod
    def made(cls, folder: Path) -> "Places":
        lines = folder / "lines"
        lines.mkdir()
        for name, part in {"train": SENTENCES[:60], "test": SENTENCES[60:70]}.items():
            (lines / f"{name}.txt").write_text("".join(f"a {s.split()[2]}||{s}\n" for s in part))
        tiny = folder / "tiny.yaml"
        tiny.write_text(json.dumps(TINY | {"training": TINY["training"] | {"steps": 2}}))
        assert main(["--config", str(tiny), "--runs-dir", str(folder / "runs"), "--wandb", "disabled"]) == 0
        (run,) = (path for path in (folder / "runs" / "single").iterdir() if path.is_dir())
        return cls(
            encoder=write_model(folder / "bert", "bert"), decoder=write_model(folder / "llama", "llama"),
            labelled=write_labelled(folder / "labelled"), lines=str(lines), run=str(run),
        )  # fmt: skip


def run_tree(rng: random.Random, places: Places, *, small: bool) -> Tree:
    """A real configuration; a `small` one is over the tiny matrices, now and then over a tiny model."""
    tree: Tree = copy.deepcopy(TINY)
    if not small or rng.random() < 0.2:
        tree = copy.deepcopy(rng.choice([run for run in RUNS if "model" in run or not small]))
    if "model" in tree:
        decodes = tree["task"]["name"] == "language_modeling"
        tree = over(tree, *((places.decoder, places.lines) if decodes else (places.encoder, places.labelled)))
    if rng.random() < 0.5:
        name = rng.choice(list(VARIANTS))
        adapts = "rank" in VARIANTS[name].load().config_class.model_fields
        tree["variant"] = {"name": name} | ({"rank": rng.choice((1, 2, 4))} if adapts else {})
    return tree


def over(tree: Mapping[str, Any], model: str, data: str) -> Tree:
    """A configuration of a text task over another model and other data."""
    own: Tree = {"path": data, "text": ["sentence"], "labels": ["0", "1"], "max_length": 32}
    targets = ["*.query", "*.value"]
    if tree["task"]["name"] == "language_modeling":
        own, targets = {"path": data, "context": 32, "prompt_separator": "||"}, ["*_proj"]
    task = {knob: value for knob, value in tree["task"].items() if knob != "preset"} | own
    return {**tree, "task": task, "model": {**tree["model"], "name": model}, "targets": targets}


def study_tree(rng: random.Random) -> Tree:
    """A real study over base.yaml, the tiny matrices, with fewer arms."""
    tree: Tree = copy.deepcopy(rng.choice([study for study in STUDIES if study["name"] != "targets"]))
    tree["config"] = "base.yaml"
    tree["set"] = {key: value for key, value in tree["set"].items() if not key.startswith("task.")}
    tree["arms"] = [
        {key: rng.sample(value, min(2, len(value))) if isinstance(value, list) else value for key, value in arm.items()}
        for arm in tree["arms"]
    ]
    for arm in tree["arms"]:
        arm |= {"rank": rng.choice((1, 4, [1, 2], [2, 8]))} if "rank" in arm else {}
    if "search" in tree:
        tree["search"] |= {"budget": {"total_rank": rng.randint(2, 16)}, "highest_rank": 8, "gradient_batches": 1}
        tree["arms"] = [arm for arm in tree["arms"] if "sampler" not in arm]
        tree["arms"][0]["allocation"] = sorted({"uniform", *tree["arms"][0]["allocation"]})
    elif isinstance(variants := tree["arms"][0]["variant"], list):
        tree["protocol"]["reference"] = {"variant": rng.choice(variants)}
    return tree


def files_of(rng: random.Random, tree: Tree, name: str) -> tuple[Files, list[str]]:
    """The tree's file with a change of some kind, and flags with further ones."""
    how, flags = rng.random(), list[str]()
    if how < 0.5:
        for _ in range(rng.randint(0, 3)):
            key, value = allowed_change(rng, tree)
            if rng.random() < 0.5:
                _put(tree, key, value)
            else:
                flags += ["--set", f"{key}={json.dumps(value)}"]
        return {name: text_of(rng, tree).encode()}, flags
    if how < 0.75:
        for _ in range(rng.randint(1, 2)):
            tree = mutated(rng, tree)
        return {name: text_of(rng, tree).encode()}, flags
    if how < 0.87:
        return {name: with_snippet(rng, tree).encode()}, flags
    if how < 0.97:
        return {name: corrupted(rng, text_of(rng, tree))}, flags
    return {} if rng.random() < 0.1 else {name: another_file(rng)}, flags


def allowed_change(rng: random.Random, tree: Mapping[str, Any]) -> tuple[str, Any]:
    """A knob with a value that its schema allows, now and then an extreme one."""
    if "task" in tree:
        schema = schema_of(tree).model_json_schema()
        section = rng.choice([name for name in ("task", "model", "variant", "training") if name in tree])
        of = resolved(rng, _first(schema["properties"][section]), schema)
    else:
        schema = StudyConfig.model_json_schema()
        section, definition = rng.choice(
            [("protocol", "Protocol"), ("protocol.tuning", "Tuning"), ("protocol.evaluation", "Evaluation")]
            + [("search", "Search"), ("search.space", "Space")] * ("search" in tree)
        )
        of = schema["$defs"][f"{definition}Config"]
    knob = rng.choice([knob for knob in of["properties"] if knob not in NOT_CHANGED] or ["name"])
    if knob == "name":
        return f"{section}.name", tree[section]["name"]
    if knob in ("seeds", "learning_rate_multipliers") and rng.random() < 0.7:
        values = (
            [0.1, 0.25, 0.5, 1.0, 2, 4]
            if knob == "learning_rate_multipliers"
            else range(*((0, 90), (200, 290))[section.endswith("g")])
        )
        return f"{section}.{knob}", rng.sample(values, rng.randint(2, 4))
    if knob == "looks" and rng.random() < 0.7:
        seeds = tree["protocol"].get("evaluation", {}).get("seeds")
        return f"{section}.looks", [len(seeds)] if seeds else sorted(rng.sample(range(5, 12), rng.randint(1, 3)))
    make = extreme_value if rng.random() < 0.3 else valid_value
    return f"{section}.{knob}", make(rng, of["properties"][knob], schema)


def _first(of: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of an optional one."""
    return of["anyOf"][0] if "anyOf" in of else of


def _put(tree: Any, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value
