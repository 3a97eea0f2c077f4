"""The arms of a study, from the entries of its file."""

import copy
import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from experiments.config.errors import ConfigError
from experiments.config.loading import full_path, put, resolve
from experiments.config.schema import RunConfig
from experiments.config.shown import shown
from experiments.config.variant_change import carry_over, choose_variant
from experiments.studies.spec.arm import Arm, describe, labelled
from experiments.studies.spec.borrowed_rates import RATE_OF, with_rates
from experiments.studies.spec.search_config import ARM_KEYS, rank_learner, search_errors
from experiments.studies.spec.study_config import MOST_ARMS
from lora_variants import VARIANTS
from lora_variants.interface.config import HIGHEST_SEED

SEED_OFFSET = "seed_offset"
RESERVED = {
    "seed": "the protocol gives each trial its seed (protocol.evaluation.seeds); an arm's seed_offset is added to it",
    "study": "it is the study's name",
}


@dataclass(frozen=True)
class Expansion:
    """The arms of a study's entries, and what became of the rest."""

    arms: tuple[Arm, ...]
    collapsed: Mapping[str, tuple[str, ...]]  # label of an arm -> the points of the grid that all are this arm
    errors: tuple[str, ...]


@dataclass(frozen=True)
class _StudyDefaults:
    """What all arms stand on: the tree of the run configuration, and the study's keys for all of them."""

    base: Mapping[str, Any]
    common: Mapping[str, Any]
    study: str
    variants: frozenset[str]  # those that the study names
    search: Mapping[str, Any] | None  # of `ARM_KEYS` what holds unless an arm says otherwise; None: no search


def expand(
    entries: Sequence[Mapping[str, Any]],
    *,
    base: Mapping[str, Any],
    common: Mapping[str, Any],
    study: str,
    search: Mapping[str, Any] | None = None,
) -> Expansion:
    """The arms of a study's entries over the tree of a run configuration with the `common` keys on top.

    A variant's knob that a variant does not have is left out for it where another one that the entry (for common
    keys: the study) names has it. Points of the grid that come to the same configuration are one arm.
    """
    grids = [{key: value if isinstance(value, list) else [value] for key, value in e.items()} for e in entries]
    named = [_variants(grid, {**base, **common}) for grid in grids]
    if (size := sum(map(_size, grids))) > MOST_ARMS:
        return Expansion((), {}, (f"arms: {size:,} arms; a study has at most {MOST_ARMS:,}, make it several",))
    defaults = _StudyDefaults(base, common, study, frozenset().union(*named), search)
    errors = _reserved(common, "set")
    broken: dict[str, list[str]] = defaultdict(list)
    resolved: list[tuple[str, Arm]] = []
    for number, (grid, variants) in enumerate(zip(grids, named, strict=True)):
        refused = _entry_errors(grid, f"arms.{number}")
        errors += refused
        for point in [] if refused else _points(grid):
            words = describe({key: value for key, value in point.items() if key != "label"}) or f"arms.{number}"
            try:
                resolved.append((words, _arm(point, defaults, variants)))
            except ConfigError as error:
                for message in error.errors:
                    broken[message].append(words)
    errors += [_of_points(message, points) for message, points in broken.items()]
    found, points = _collapsed(resolved, errors)
    arms = with_rates(labelled(found), errors)
    labels = [arm.label for arm in arms]
    errors += [f"arms: two arms have the label {label!r}" for label in dict.fromkeys(labels) if labels.count(label) > 1]
    collapsed = {arm.label: tuple(points[arm.config_hash]) for arm in arms if len(points[arm.config_hash]) > 1}
    return Expansion(tuple(arms), collapsed, tuple(errors))


def _collapsed(resolved: Sequence[tuple[str, Arm]], errors: list[str]) -> tuple[list[Arm], dict[str, list[str]]]:
    """Each arm once, the one with a label of its own first, and by config hash the points that are that arm."""
    found: dict[str, Arm] = {}
    points: dict[str, list[str]] = defaultdict(list)
    for words, arm in resolved:
        other = found.setdefault(arm.config_hash, arm)
        points[arm.config_hash].append(words)
        if other.centre != arm.centre:
            errors.append(
                f"{words}: differs from another arm in its learning rate alone; rates are tuned, not compared: "
                "leave it out, or name it in protocol.fixed_learning_rates"
            )
        if arm.label and other.label not in ("", arm.label):
            errors.append(f"{words}: {arm.label!r} and {other.label!r} are the same configuration; leave one out")
        elif arm.label:
            found[arm.config_hash] = replace(other, label=arm.label)
    return list(found.values()), points


def _variants(grid: Mapping[str, list[Any]], tree: Mapping[str, Any]) -> set[str]:
    """The known variants that an entry names, or the one that it takes from the run configuration."""
    of_tree = tree.get("variant")
    default = of_tree.get("name") if isinstance(of_tree, Mapping) else of_tree
    return {name for name in grid.get("variant", [default]) if isinstance(name, str) and name in VARIANTS}


def _entry_errors(grid: Mapping[str, list[Any]], at: str) -> list[str]:
    errors = _reserved(grid, at)
    errors += [f"{at}.{key}: an empty list makes no arm" for key, values in grid.items() if not values]
    errors += [
        f"{at}.variant: {shown(value)} is no name; a variant's knobs are keys of their own"
        for value in grid.get("variant", [])
        if not isinstance(value, str)
    ]
    size = _size(grid)
    if "label" in grid and size > 1:
        errors.append(f"{at}.label: names a single arm, and this entry makes {size}; give each an entry of its own")
    errors += [
        f"{at}.label: a label is a {'line of printable ' if isinstance(label, str) else ''}text, got {shown(label)}"
        for label in grid.get("label", [])
        if not isinstance(label, str) or not label or not label.isprintable()
    ]
    return errors


def _reserved(keys: Iterable[str], at: str) -> list[str]:
    sections = {key: key.partition(".")[0] for key in keys}
    return [f"{at}.{key}: cannot be set: {RESERVED[name]}" for key, name in sections.items() if name in RESERVED]


def _size(grid: Mapping[str, list[Any]]) -> int:
    return math.prod(map(len, grid.values()))


def _points(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _arm(point: Mapping[str, Any], defaults: _StudyDefaults, variants: set[str]) -> Arm:
    """One point of an entry's grid as an arm; its label is the given one, or empty.

    Raises: ConfigError.
    """
    tree = {**copy.deepcopy(dict(defaults.base)), "study": defaults.study, "seed": 0}
    errors: list[str] = []
    variant = point.get("variant", defaults.common.get("variant"))
    replaced = {} if variant is None else choose_variant(tree, variant)
    name = tree["variant"].get("name") if isinstance(tree.get("variant"), Mapping) else None
    common = {k: v for k, v in defaults.common.items() if k != "variant" and _applies(k, name, defaults.variants)}
    apart = {"label", "variant", SEED_OFFSET, RATE_OF, *ARM_KEYS}
    own = {k: v for k, v in point.items() if k not in apart and _applies(k, name, variants)}
    given = {k: v for k, v in point.items() if k in ARM_KEYS}
    errors += search_errors(given, searched=defaults.search is not None)
    seed_offset = _seed_offset(point, errors)
    if defaults.search is not None and {"rank", "variant.rank"} & own.keys():
        errors.append("rank: cannot be set: the allocation gives every layer its rank, within search.budget")
    for key, value in (*common.items(), *own.items()):
        put(tree, key, copy.deepcopy(value), errors)
    notes = carry_over(tree, replaced)
    config = resolve(tree, errors)
    search = {} if defaults.search is None else {**defaults.search, **given}
    rank = getattr(config.variant, "rank", None)
    keys = {"variant": config.variant.name} | ({} if rank is None or search else {"rank": rank})
    keys |= {_canonical(tree, key): value for key, value in own.items()} | given
    keys |= {key: value for key, value in point.items() if key in (SEED_OFFSET, RATE_OF)}
    if RATE_OF in point and defaults.search is not None:
        raise ConfigError([f"{RATE_OF}: a study with a search has none; leave it out"])
    borrowed = {RATE_OF: point[RATE_OF]} if RATE_OF in point else {}
    offset = {SEED_OFFSET: seed_offset} if seed_offset else {}
    source = _source(tree, search, learner, offset) if (learner := rank_learner(search)) else None
    config_hash = _config_hash(config, tree, own, {**search, **offset, **borrowed})
    named = point.get("label", ""), config_hash, keys, config
    return Arm(*named, search, source, tuple(notes), seed_offset=seed_offset)


def _source(tree: Mapping[str, Any], search: Mapping[str, Any], learner: str, offset: Mapping[str, int]) -> Arm:
    """A variant that learns ranks in the place of an arm's own; arms that differ in their search alone share it."""
    own = {"name": learner, "rank": 1, "pad_rank_to": tree["variant"]["pad_rank_to"]}
    config = resolve({**tree, "variant": own})
    config_hash = _config_hash(config, tree, {}, {"budget": search["budget"], **offset})
    label = " ".join([f"{learner} for its ranks", *([describe(offset)] if offset else [])])
    return Arm(label, config_hash, {"variant": learner, **offset}, config, seed_offset=offset.get(SEED_OFFSET, 0))


def _seed_offset(point: Mapping[str, Any], errors: list[str]) -> int:
    offset = point.get(SEED_OFFSET, 0)
    if type(offset) is int and 0 <= offset <= HIGHEST_SEED:
        return offset
    errors.append(f"{SEED_OFFSET}: a whole number from 0 to {HIGHEST_SEED}, got {shown(offset)}")
    return 0


def _applies(key: str, variant: str | None, variants: Set[str]) -> bool:
    """Whether a key is for this variant: not so if it is a knob of others of the entry and not of this one."""
    knob = key.removeprefix("variant.")
    having = {name for name in variants if knob in VARIANTS[name].load().config_class.model_fields}
    return not having or (isinstance(variant, str) and variant in having)


def _canonical(tree: Mapping[str, Any], key: str) -> str:
    """One name for a knob however the file spells it: its last name where that is enough."""
    path = full_path(tree, key, [])
    unclear: list[str] = []
    return path[-1] if full_path(tree, path[-1], unclear) == path and not unclear else ".".join(path)


def _config_hash(config: RunConfig, tree: Mapping[str, Any], own: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
    """`rest`: what makes an arm another one besides its configuration: its search, its seed offset.

    A run's hashed config leaves out where things lie; of two arms that differ in that, the given place tells."""
    hashed_config = config.hashed_config()
    del hashed_config["study"], hashed_config["seed"], hashed_config["training"]["learning_rate"]
    places = {("task", *place.split(".")) for place in config.task.places}
    paths = {key: tuple(full_path(tree, key, [])) for key in own}
    given = {".".join(path): own[key] for key, path in paths.items() if path in places or path[0] in ("start", "model")}
    hashed_config |= {"given": given} | ({"search": dict(rest)} if rest else {})
    text = json.dumps(hashed_config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _of_points(message: str, points: Sequence[str]) -> str:
    """An error with the first point of a grid that has it, and a way out where a list was taken for a grid."""
    more = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
    hint = "; a knob that is itself a list needs a list of lists" if "must be a list" in message else ""
    return f"{points[0]}{more}: {message}{hint}"
