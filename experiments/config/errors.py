"""What is wrong with a configuration, in words: every error with its path, the value, the rule and the way out."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from experiments.config.retired_keys import new_name
from experiments.config.rules import describe_broken
from experiments.config.shown import message

MOST_ERRORS = 40
LONGEST_KEY = 100  # characters; nobody misspells a longer one


class ConfigError(ValueError):
    """All errors of a configuration, each with its path, the value, the rule and the nearest known key.

    They are safe to print; of very many the first are told, and how many there are.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        told = [message(error) for error in errors[:MOST_ERRORS]]
        told += [f"... and {len(errors) - MOST_ERRORS:,} more errors"] * (len(errors) > MOST_ERRORS)
        super().__init__("\n".join(told))
        self.errors = tuple(told)


def explained(schema: type[BaseModel], error: ValidationError, tree: Mapping[str, Any]) -> list[str]:
    """One line for each wrong path: the rules it breaks, the value, and the nearest known key."""
    found: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_known_path(schema, detail), []).append(detail)
    return [f"{path or 'configuration'}: {_told(schema, details, tree)}" for path, details in found.items()]


def _told(schema: type[BaseModel], details: Sequence[ErrorDetails], tree: Mapping[str, Any]) -> str:
    """All that is wrong at one path: what is said of its key or by a knob, and the rules that its value breaks."""
    told = [_own_words(schema, detail, tree) for detail in details]
    broken = [detail for detail, words in zip(details, told, strict=True) if words is None]
    found = [words for words in told if words is not None] + ([describe_broken(broken)] if broken else [])
    return ", or ".join(dict.fromkeys(found))


def _known_path(schema: type[BaseModel], detail: ErrorDetails) -> str:
    """The path of the knob, without the names of the alternatives that were tried for its type."""
    parts = []
    for i, part in enumerate(detail["loc"]):
        parts.append(str(part))
        if part not in fields_of(schema, detail["loc"][:i]) and not isinstance(part, int) and i:
            return ".".join(parts if detail["type"] == "extra_forbidden" else parts[:-1])
    return ".".join(parts)


def _own_words(schema: type[BaseModel], detail: ErrorDetails, tree: Mapping[str, Any]) -> str | None:
    """What is wrong with a key, or what a knob's own check says; None where a value breaks one of pydantic's rules."""
    key, known = str(detail["loc"][-1]) if detail["loc"] else "", fields_of(schema, detail["loc"][:-1])
    variant = name_of(tree.get("variant"))
    if detail["type"] == "extra_forbidden":
        if key == "rank" and detail["loc"][0] == "variant":
            return f"{variant!r} has no rank: it trains no low-rank factors; leave rank out or choose another variant"
        if renamed := new_name([str(part) for part in detail["loc"][:-1]], key):
            return f"{key} is called {renamed}"
        below = [f"{section}.{name}" for section in known for name in fields_of(schema, (*detail["loc"][:-1], section))]
        near = nearest(key, known) or _nearest_last(key, below)
        return f"unknown key{near}; known: {', '.join(known)}"
    if detail["type"] == "missing":
        way_out = "; give the base model, e.g. model.name=FOLDER or a name on the Hub" if key == "model" else ""
        return f"missing{way_out}"
    return detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None


def fields_of(schema: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The known keys of the section at a path; none where the path leads to a value."""
    found: Any = schema
    for part in loc:
        if isinstance(part, int):
            continue
        if not (isinstance(found, type) and issubclass(found, BaseModel) and part in found.model_fields):
            return []
        found = found.model_fields[part].annotation
        kinds = [kind for kind in get_args(found) if isinstance(kind, type)]
        found = next((kind for kind in kinds if issubclass(kind, BaseModel)), kinds[0] if kinds else found)
    return list(found.model_fields) if isinstance(found, type) and issubclass(found, BaseModel) else []


def name_of(section: object) -> str | None:
    """The `name` of a task or variant, of its tree or its configuration; None where it has none."""
    name = section.get("name") if isinstance(section, Mapping) else getattr(section, "name", None)
    return name if isinstance(name, str) else None


def nearest(key: object, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or nothing."""
    close = _closest(key, list(known))
    return f" (did you mean {close!r}?)" if close else ""


def _nearest_last(key: str, paths: Sequence[str]) -> str:
    """The path whose last name is nearest, for a knob that was looked for in the wrong section."""
    close = _closest(key, [path.rpartition(".")[2] for path in paths])
    return f" (did you mean {next(p for p in paths if p.rpartition('.')[2] == close)!r}?)" if close else ""


def _closest(key: object, names: Sequence[str]) -> str | None:
    """The name that is spelled most like a key, else one whose words begin with its letters, as lr."""
    if not isinstance(key, str) or len(key) > LONGEST_KEY:
        return None
    close = difflib.get_close_matches(key, names, n=1)
    initials = (name for name in names if key == "".join(word[:1] for word in name.split("_")))
    return close[0] if close else next(initials, None)
