"""Values for configurations: those that a schema allows, those that nobody has in mind, and trees with one changed."""

import copy
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[Any, ...]
Schema = Mapping[str, Any]

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 8, 16, 0.0, -0.0, 0.5, 1.0, -0.5, 1e-9, 1e-300, 5e-324, 1e30, 1e300, math.inf, -math.inf,
    math.nan, 10**11, -(10**11), 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**20, 10**400,
)  # fmt: skip
WORDS: tuple[str, ...] = (
    "", " ", "x", "null", "yes", "no", "on", "~", "lora", "full", "adalora", "nan", "inf", "1", "1e400", "0x10", "08",
    "1_000", "12:30:45", "2024-01-01", "*", "**", "[", "]", "[!a]", "a[0:1]", "matrices.0[0:8]", "matrices.*[1/2]",
    "matrices.*[9/2]", "matrices.*[5:3]", "matrices.0", "matrices.1", "all-linear", "attention", "mlp", "(", "(.*",
    "..",
    "../..", "/", "/dev/null", "~", "~nobody-there", "a/b", "a\\b", "a b", "a\nb", "a\x00b", "\x1b[31mred", "\u202eabc",
    "ΔW", "🦙", "\udcff", "%s{0}{}", "${HOME}", "[bold]x[/bold]", "[/]", "https://x.y/z", "hf://a/b", "-", "--help",
    "=",
    "a=b", ":", "#", "'", '"', "{", "a" * 300, "b" * 100_000, "é" * 5000, ".", "-r4", "\t", "\r\n",
)  # fmt: skip
LARGE = (1000, 2**24, 2**31 - 1, 2**31, 10**11, 2**63 - 1, 2**63, 2**64, 10**30)
EDGES = (5e-324, 1e-300, 1e-30, 1e-16, 1e-9, 0.5, 1 - 1e-16, 1e9, 1e30, 1e300, 1.7e308)
PATTERNS = ("*", "lora", "matrices.0", "layers.*", "*.query")


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """A value of any kind, sensible or not."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    if kind < 0.65:
        return rng.choice(WORDS)
    if kind < 0.8 or depth > 2:
        return rng.choice((None, True, False, [], {}))
    if kind < 0.9:
        return [any_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(WORDS): any_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def paths(tree: Any, path: Path = ()) -> Iterator[Path]:
    """Where there is a value, sections and lists included."""
    if path:
        yield path
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from paths(value, (*path, key))


def at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutated(rng: random.Random, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with one thing changed: a value, a key, a section."""
    changed: Any = copy.deepcopy(dict(tree))
    there = list(paths(changed))
    if not there:
        return {rng.choice(WORDS): any_value(rng)}
    path = rng.choice(there)
    parent, key, how = at(changed, path[:-1]), path[-1], rng.random()
    if how < 0.6:
        parent[key] = any_value(rng)
    elif how < 0.75:
        del parent[key]
    elif how < 0.84 and isinstance(parent, dict):
        parent[rng.choice((_misspelt(rng, str(key)), rng.choice(WORDS)))] = parent.pop(key)
    elif how < 0.92 and isinstance(parent, dict):
        parent[rng.choice((*WORDS, *NUMBERS))] = any_value(rng)
    else:
        parent[key] = copy.deepcopy(at(changed, rng.choice(there)))
    return dict(changed)


def _misspelt(rng: random.Random, key: str) -> str:
    place = rng.randrange(len(key) + 1)
    return rng.choice((key[:place] + "x" + key[place:], key[:place] + key[place + 1 :], key.upper(), f"{key}.{key}"))


def valid_value(rng: random.Random, schema: Schema, whole: Schema) -> Any:
    """A value that a JSON schema allows, small where it is a number; `whole` has the definitions."""
    schema = resolved(rng, schema, whole)
    if "enum" in schema or "const" in schema:
        return rng.choice(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind == "integer":
        return rng.randint(int(schema.get("minimum", 0)), 9)
    if kind == "number":
        low = float(schema.get("minimum", schema.get("exclusiveMinimum", 0.0)))
        high = float(schema.get("maximum", schema.get("exclusiveMaximum", 4.0)))
        return round(rng.uniform(low + 1e-3, high - 1e-3), 4)
    if kind == "array":
        count = rng.randint(schema.get("minItems", 0), min(3, schema.get("maxItems", 3)))
        return [valid_value(rng, schema.get("items", {}), whole) for _ in range(count)]
    if kind == "object" and "properties" not in schema:
        return {rng.choice(PATTERNS): valid_value(rng, schema.get("additionalProperties") or {}, whole)}
    if kind == "object":
        of = schema["properties"]
        return {key: valid_value(rng, of[key], whole) for key in of if key in schema.get("required", ())}
    return {"boolean": rng.random() < 0.5, "null": None}.get(str(kind), "x")


def extreme_value(rng: random.Random, schema: Schema, whole: Schema) -> Any:
    """A value of a JSON schema's type that nobody has in mind: a number far too large, a list far too long."""
    schema = resolved(rng, schema, whole)
    kind = schema.get("type")
    if "enum" in schema or "const" in schema:
        return valid_value(rng, schema, whole)
    if kind == "integer":
        return rng.choice(
            (*LARGE, int(schema.get("minimum", 0)), int(schema.get("minimum", 0)) - 1, schema.get("maximum", 0) + 1)
        )
    if kind == "number":
        highest = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
        return rng.choice([edge for edge in EDGES if edge < highest])
    if kind == "string":
        return rng.choice(WORDS)
    if kind == "array":
        return [valid_value(rng, schema.get("items", {}), whole) for _ in range(rng.choice((0, 2, 200)))]
    if kind == "object" and "properties" not in schema:
        of = schema.get("additionalProperties") or {}
        return {rng.choice(WORDS): extreme_value(rng, of, whole) for _ in range(rng.choice((1, 2, 30)))}
    return valid_value(rng, schema, whole)


def resolved(rng: random.Random, schema: Schema, whole: Schema) -> Schema:
    """The schema that a reference leads to, and one of several."""
    while "$ref" in schema or "anyOf" in schema:
        schema = rng.choice(schema["anyOf"]) if "anyOf" in schema else whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema
