"""From a file and a command line to a configuration: defaults < file < command line, and every error at once."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from experiments.config.errors import LONGEST_KEY, ConfigError, explained, fields_of, name_of, nearest
from experiments.config.schema import RunConfig
from experiments.config.seed import by_part
from experiments.config.shown import is_utf8, shown
from experiments.config.variant_change import carry_over, choose_variant
from experiments.config.yaml_files import INVALID, parse_yaml, read_tree
from experiments.models.model_config import ModelConfig
from experiments.tasks.registry import TASKS
from lora_variants import VARIANTS
from lora_variants.interface.config import AdapterConfig, Config

MOST_PARTS = 8  # of a key
OF_A_RUN = {"task", "variant", "targets", "training"}  # keys that tell the file of a run from that of a study
OF_A_STUDY = {"arms", "protocol"}


class _UnknownVariant(AdapterConfig):
    """The section of a variant that is not known: of its knobs those that all adapters share are checked."""

    model_config = ConfigDict(extra="ignore")

    name: Any = None


def load(
    path: Path | None = None,
    *,
    variant: str | None = None,
    rank: int | None = None,
    seed: int | None = None,
    start_from: Path | None = None,
    overrides: Sequence[str] = (),
    notes: list[str] | None = None,
) -> RunConfig:
    """The configuration of a file with the command line on top; `overrides` are 'key=value' with YAML values.

    A `variant` that is not the file's takes over what the file states of the knobs that all adapters share, and none
    of the other variant's own; `notes` gets a line on what carried over and one on what was dropped, also where an
    error is raised.
    Raises: ConfigError with every error.
    """
    errors: list[str] = []
    tree = read_run_tree(path) if path else {}
    replaced = {} if variant is None else choose_variant(tree, variant)
    if start_from is not None:
        tree["start"] = {"path": str(start_from)}
    flags = {"rank": rank, "seed": seed}
    for override in (*(f"{key}={value}" for key, value in flags.items() if value is not None), *overrides):
        for key, given in parse_override(override, errors).items():
            put(tree, key, given, errors)
    told = carry_over(tree, replaced)
    if notes is not None:
        notes += told
    return resolve(tree, errors)


def read_run_tree(path: Path) -> dict[str, Any]:
    """The tree of a run's file. Raises: ConfigError, naming the file, and for a study's file what reads it."""
    tree = read_tree(path)
    if tree.keys() & OF_A_STUDY and not tree.keys() & OF_A_RUN:
        raise ConfigError([f"{path}: this is the file of a study, which study.py reads: study.py {path}"])
    return tree


def resolve(tree: Mapping[str, Any], errors: Sequence[str] = ()) -> RunConfig:
    """Validate a tree against the schema that its task and variant make, and settle the learning rate."""
    found = list(errors)
    schema = schema_of(tree, found)
    if tree.get("model") is not None and schema.model_fields["task"].is_required() and not _needs_model(schema):
        found.append(f"model: task {name_of(tree['task'])!r} brings its own base model; leave the section out")
        tree = {**tree, "model": None}
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(found + explained(schema, error, tree)) from None
    config = _with_own_rate(config, found)
    found = found or [
        f"{path}: {shown(text)} is not UTF-8; give the file or folder a name that is"
        for path, text in _odd(config.tree())
    ]
    if found:
        raise ConfigError(found)
    return config


def schema_of(tree: Mapping[str, Any], errors: list[str] | None = None) -> type[RunConfig]:
    """RunConfig with the sections of the named task and variant; of one with an unknown name less is checked.

    `errors` gets a line for each such name.
    """
    errors = [] if errors is None else errors
    sections: list[type[BaseModel] | None] = []
    for key, table in (("task", TASKS), ("variant", VARIANTS)):
        name = name_of(tree.get(key))
        if name in table:
            sections.append(table[name].load().config_class)  # type: ignore[index]
            continue
        sections.append(_UnknownVariant if key == "variant" and isinstance(tree.get(key), Mapping) else None)
        given = "missing" if name is None else f"{shown(name)} is not known{nearest(name, table)}"
        errors.append(f"{key}.name: {given}; one of {', '.join(table)}")
    task = TASKS.get(str(name_of(tree.get("task"))))
    return _schema_with(*sections, needs_model=task is not None and task.load().needs_model)


@functools.cache  # making a schema takes milliseconds, and a study resolves one tree for each arm
def _schema_with(
    task: type[BaseModel] | None, variant: type[BaseModel] | None, *, needs_model: bool
) -> type[RunConfig]:
    sections = {"task": task, "variant": variant}
    fields: dict[str, Any] = {key: (Any, None) if found is None else (found, ...) for key, found in sections.items()}
    if needs_model:
        fields["model"] = (ModelConfig, ...)
    return create_model("RunConfig", __base__=RunConfig, **fields)


def _needs_model(schema: type[RunConfig]) -> bool:
    return schema.model_fields["model"].is_required()


def _with_own_rate(config: RunConfig, errors: list[str]) -> RunConfig:
    """A map of learning rates becomes the rate of the run's variant."""
    rates = config.training.learning_rate
    if isinstance(rates, dict):
        errors += [
            f"training.learning_rate.{key}: no such variant{nearest(key, VARIANTS)}"
            for key in rates
            if key not in VARIANTS
        ]
        rates = _rate_of(config.variant, rates, errors) if name_of(config.variant) in VARIANTS else 0.0
    training = config.training.model_copy(update={"learning_rate": float(rates)})
    return config.model_copy(update={"training": training})


def _rate_of(variant: Config, rates: Mapping[str, float], errors: list[str]) -> float:
    """The rate that a map names for a variant, else LoRA's times the variant's factor; an error without either."""
    name, factor = variant.name, variant.learning_rate_factor
    if name in rates:
        return rates[name]
    if factor is not None and "lora" in rates:
        return rates["lora"] * factor
    if factor is None:
        why = ", which has no factor of LoRA's rate"
    else:
        why = "" if name == "lora" else f" and none for 'lora', of which {name} takes {factor:g} times"
    errors.append(f"training.learning_rate: has no rate for variant {name!r}{why}; add {name} or give a number")
    return 0.0


def parse_override(override: str, errors: list[str]) -> dict[str, Any]:
    """{key: value} of one 'key=value' with a YAML value; empty, with an error, where it is none."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        errors.append(f"--set {shown(override)}: an override is key=value, e.g. training.steps=100")
    elif key.count(".") >= MOST_PARTS or len(key) > LONGEST_KEY:
        errors.append(f"--set {shown(key)}: a key has at most {MOST_PARTS} parts and {LONGEST_KEY} characters")
    else:
        try:
            return {key: parse_yaml(text)}
        except ConfigError as error:
            quoted = f"put the value in quotes: --set '{key}=\"VALUE\"'"
            errors += [f"{key}: {told}{f'; {quoted}' * told.startswith(INVALID)}" for told in error.errors]
    return {}


def _odd(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The paths and values of texts that are no UTF-8: made of a path that is none."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _odd(value, f"{above}{key}.")
        elif isinstance(value, str) and not is_utf8(value):
            yield f"{above}{key}", value


def put(tree: dict[str, Any], key: str, value: Any, errors: list[str]) -> None:
    """Put a value into the tree; a key without a dot may name a knob of any section."""
    path = full_path(tree, key, errors)
    if path[:1] == ["seed"] and len(path) > 1:
        tree["seed"] = by_part(tree.get("seed"))
    section = tree
    for depth, part in enumerate(path[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        if not isinstance(section[part], dict):
            if not fields_of(schema_of(tree), path[:depth]):  # of a section that is no map an error comes anyway
                errors.append(f"{key}: {'.'.join(path[:depth])} is {shown(section[part])}, which has no keys")
            return
        section = section[part]
    if path:
        section[path[-1]] = value


def full_path(tree: Mapping[str, Any], key: str, errors: list[str]) -> list[str]:
    """The parts of a key's path in the tree; of one that is not known, the key itself; none of one that is several."""
    if "." in key or key in RunConfig.model_fields:
        return key.split(".")
    schema = schema_of(tree)
    there = [name for name, field in schema.model_fields.items() if field.is_required() or field.default is not None]
    sections = [  # one that may be null, and the seed, which may be a number, take whole paths
        name for name in there if name != "seed" and key in fields_of(schema, (name,))
    ]
    if len(sections) > 1:
        errors.append(f"{key}: stands for {' and '.join(f'{name}.{key}' for name in sections)}; give the whole path")
        return []
    if not sections and key == "rank":  # so that the error names the variant that has none
        return ["variant", "rank"]
    return [sections[0], key] if sections else [key]
