"""YAML as configurations are written: plain values that mean one thing, without tags, in files of sensible size.

Plain words are read as in YAML 1.1, but for what other readers read differently: 010 and 1:30 are refused, a date is
a text, and 3e-4 is a number. Anchors and aliases are read, and every alias is a value of its own.
"""

import math
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.config.errors import ConfigError
from experiments.config.shown import is_utf8, shown

MOST_BYTES = 1_000_000
MOST_VALUES = 20_000  # each alias counted as what it stands for
DEEPEST = 40
LONGEST_NUMBER = 100  # characters
INVALID = "invalid YAML"
YAML_TAG = "tag:yaml.org,2002:"
HIGHEST_INTEGER = 2**63 - 1

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{word: True for name in ("yes", "true", "on") for word in (name, name.title(), name.upper())},
    **{word: False for name in ("no", "false", "off") for word in (name, name.title(), name.upper())},
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01][01_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_AMBIGUOUS = re.compile(  # numbers of base 8 and 60 in YAML 1.1
    r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+|[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*)"
)


class _Dumper(yaml.SafeDumper):
    """YAML whose texts are read back as texts."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = "'" if _INTEGER.fullmatch(data) or _FLOAT.fullmatch(data) else None
        style = '"' if "\x85" in data else style  # a line break to PyYAML's scanner, none to its emitter
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def yaml_text(tree: Mapping[str, Any]) -> str:
    """A tree as YAML that reads back equal."""
    return yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises: ConfigError with every error, each with its line where there are several.
    """
    reader = _Reader(text)
    try:
        value = reader.document()
    except yaml.MarkedYAMLError as error:
        context = f" ({error.context})" if error.context else ""
        reader.error(error.problem_mark or error.context_mark, f"{INVALID}: {error.problem}{context}")
    except yaml.reader.ReaderError as error:
        at = text.count("\n", 0, error.position)
        line = "" if reader.one_line else f"line {at + 1}: "
        reader.errors.append(f"{line}{shown(chr(error.character))} cannot stand in a text; rename or leave it out")
    if reader.errors:
        raise ConfigError(reader.errors)
    return value


def read_tree(path: Path) -> dict[str, Any]:
    """The map that a file holds. Raises: ConfigError, naming the file."""
    try:
        tree = parse_yaml(_text_of(path))
    except ConfigError as error:
        raise ConfigError([f"{path}: {told}" for told in error.errors]) from None
    if not isinstance(tree, dict):
        what = "it is empty" if tree is None else f"this is a {type(tree).__name__}"
        raise ConfigError([f"{path}: a configuration is a map of keys to values, {what}"])
    return tree


def _text_of(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        read = b""
        if stat.S_ISREG(mode):  # a pipe may have no writer, and /dev/zero has no end
            with path.open("rb") as file:
                read = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError([f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ConfigError([f"this is {what}; write the configuration into a file and give that"])
    if len(read) > MOST_BYTES:
        raise ConfigError([f"a configuration has at most {MOST_BYTES:,} bytes, this file has more"])
    try:
        return read.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = read.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"line {line}: byte {read[error.start]:#04x} is no UTF-8; save the text as UTF-8"]) from None


class _Reader:
    """One text, read event by event; `errors` has what is refused, and what is beyond a limit is raised."""

    def __init__(self, text: str) -> None:
        self.one_line = "\n" not in text.strip()
        self.events: Iterator[Any] = yaml.parse(text, yaml.SafeLoader)
        self.anchored: dict[str, Any] = {}
        self.values = 0
        self.errors: list[str] = []

    def error(self, mark: Any, problem: str) -> None:
        self.errors.append(problem if self.one_line or mark is None else f"line {mark.line + 1}: {problem}")

    def document(self) -> Any:
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self.events), 1)
        next(self.events)
        if not isinstance(more := next(self.events), yaml.StreamEndEvent):
            self.error(more.start_mark, "a second document begins here; a configuration is one")
        return value

    def _value(self, event: Any, depth: int) -> Any:
        self._count(event, depth)
        if isinstance(event, yaml.AliasEvent):
            anchor = str(event.anchor)
            if anchor not in self.anchored:
                self.error(event.start_mark, f"*{anchor} stands for nothing before it, or for what it is in")
            return self._copy(self.anchored.get(anchor), event, depth)
        if event.tag is not None:
            tag = shown(event.tag.replace(YAML_TAG, "!!"))
            self.error(event.start_mark, f"the tag {tag} is not read; write the value alone, a text in quotes")
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                value.append(self._value(item, depth + 1))
        else:
            value = self._mapping(depth)
        if event.anchor is not None:
            self.anchored[event.anchor] = value
        return value

    def _mapping(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self._value(event, depth + 1)
            value = self._value(next(self.events), depth + 1)
            if not isinstance(key, str):
                self.error(event.start_mark, f"a key is a text, got {shown(key)}; put it in quotes")
            elif key == "<<" and event.implicit[0]:
                self.error(event.start_mark, "<< is not read; write the keys out, or an alias for a whole value")
            elif key in found:
                self.error(event.start_mark, f"duplicate key {shown(key)}; give it once")
            else:
                found[key] = value
        return found

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if not is_utf8(text):
            self.error(event.start_mark, f"{shown(text)} is no text: half of a character stands alone in it")
        if not event.implicit[0]:  # in quotes
            return text
        if text in _WORDS:
            return _WORDS[text]
        if _AMBIGUOUS.fullmatch(text):
            self.error(
                event.start_mark, f"{shown(text)} is one number in YAML 1.1 and another or a text in YAML 1.2; write a "
                "number without leading zeros and colons, or the text in quotes",
            )  # fmt: skip
        elif _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text):
            return self._number(text, event)
        return text

    def _number(self, text: str, event: Any) -> int | float:
        plain = text.replace("_", "")
        if len(text) > LONGEST_NUMBER:
            self.error(
                event.start_mark, f"{shown(text)} has {len(text):,} characters, a number at most {LONGEST_NUMBER}"
            )
        elif _INTEGER.fullmatch(text):
            whole = int(plain, 0)
            if abs(whole) <= HIGHEST_INTEGER:
                return whole
            self.error(event.start_mark, f"{shown(whole)} is too large: a whole number is at most {HIGHEST_INTEGER}")
        else:
            number = float(plain.replace(".", "") if text[-1] in "fFnN" else plain)  # .inf, .nan
            if math.isfinite(number) or text[-1] in "fFnN":
                return number
            self.error(event.start_mark, f"{text} is too large for a number of 64 bits")
        return 0

    def _count(self, event: Any, depth: int) -> None:
        """Raises: ConfigError beyond a limit, with the errors so far."""
        self.values += 1
        if self.values > MOST_VALUES:
            self.error(
                event.start_mark, f"a text has at most {MOST_VALUES:,} values, aliases written out; this has more"
            )
        elif depth > DEEPEST:
            self.error(event.start_mark, f"maps and lists are at most {DEEPEST} deep in each other; this is deeper")
        else:
            return
        raise ConfigError(self.errors)

    def _copy(self, value: Any, event: Any, depth: int) -> Any:
        """A value of its own, counted as if it were written out: what one path changes, no other sees."""
        if not isinstance(value, dict | list):
            return value
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        copied = {}
        for key, part in parts:
            self._count(event, depth + 1)
            copied[key] = self._copy(part, event, depth + 1)
        return copied if isinstance(value, dict) else list(copied.values())
