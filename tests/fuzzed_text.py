"""YAML texts of trees, and what hands, editors and strangers do to such texts."""

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from fuzzed_values import at, paths

LAUGHS = ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 10)}]" for i in range(10))
SNIPPETS: tuple[str, ...] = (
    "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!python/tuple [1, 2]", "!!binary aGk=",
    "!!binary é",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2001-01-01", "!!timestamp x", "!!int x", "!!int ''",
    "!!float x", "!!float ''", "!!int '3'", "!!float '3e-4'", "!!float 1", "!!str 3", "!!null ''", "!!bool yes",
    "!!bool x",
    "!!merge x", "!!map {}", "!!map [1]", "!!seq {}", "!mine x", "! 3", "!<tag:x,2000:y> 3", "!!int [1]", "!!str [a]",
    "&a [*a]", "&a {b: *a}", "{&a b: *a}", "*missing", "<<", "{<<: {steps: 2}}", "{<<: 3}", "{<<: [{a: 1}, {b: 2}]}",
    "{<<: {steps: 2}, <<: {steps: 3}}", "{? [a] : b}", "{? {a: 1} : b}", "{1: 2, true: 3, null: 4}", "{1.5: a}",
    "{.nan: a}",
    "{2001-01-01: a}", "{a: 1, a: 2}", "{1: a, 1.0: b, true: c}", "2001-13-45", "2001-01-01", "2001-01-01T99:00:00",
    "2001-01-01t01:01:01.5+99:00", "0b2", "0b11", "0o9", "0o17", "017", "0x", "0xff", "1:60:00", "190:20:30",
    "190:20:30.15",
    "1_0", "_1", "+.inf", ".NaN", "-.INF", "1e400", "1e-400", "3e-4", "1E5", "--1", "1.2.3", "08", "!!int 08",
    "!!int 0x",
    "!!float 1:99.5", "'unclosed", '"\\x"', '"\\ud800"', '"\\0"', '"\\e[31m"', "[1, 2", "}", "@x", "`x`", "%x", "|",
    ">-",
    "? ", "- - - 1", "=", "!!value =", "~", "[]", "{}", "''", "9" * 400, "9" * 5000, "1e" + "9" * 30, "0." + "3" * 5000,
    "[" * 40 + "]" * 40, "[" * 2000, "[" * 2000 + "]" * 2000, "{a: " * 400 + "1" + "}" * 400, "- " * 900 + "1",
    f"[{LAUGHS}]",
)  # fmt: skip
ODD_BYTES = (
    b"\x00",
    b"\t",
    b"\x1b",
    b"\x7f",
    b"\xff",
    b"\xc3\xa9",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\r",
    b"\xed\xa0\x80",
)
MARK = "put-here"


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 is a number, as the project reads it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?e[-+]?\d+$"), list("-+0123456789")
)


def read(path: Path) -> dict[str, Any]:
    """The tree of a file that ships."""
    tree: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    return tree


def text_of(rng: random.Random, tree: Mapping[str, Any]) -> str:
    """The tree as YAML, in the block or the flow style."""
    return yaml.safe_dump(dict(tree), sort_keys=False, default_flow_style=rng.choice((None, False)))


def with_snippet(rng: random.Random, tree: Mapping[str, Any]) -> str:
    """The tree's text with a piece of YAML in the place of one of its values."""
    there = [path for path in paths(tree) if not isinstance(at(tree, path), dict | list)]
    path, marked = rng.choice(there), yaml.safe_load(text_of(rng, tree))
    at(marked, path[:-1])[path[-1]] = MARK
    return text_of(rng, marked).replace(MARK, rng.choice(SNIPPETS), 1)


def corrupted(rng: random.Random, text: str) -> bytes:
    """The text after an accident."""
    lines, plain = text.splitlines(keepends=True), text.encode()
    i, j, place = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.randrange(len(plain))
    before, behind = plain[:place], plain[place:]
    accidents: tuple[Callable[[], bytes], ...] = (
        lambda: "".join(lines[:i] + lines[i + 1 :]).encode(),
        lambda: "".join([*lines[: i + 1], *lines[i:]]).encode(),
        lambda: "".join([*lines[:i], lines[j], *lines[i:]]).encode(),
        lambda: "".join([*lines[:i], f" {lines[i]}", *lines[i + 1 :]]).encode(),
        lambda: before,
        lambda: before + rng.randbytes(rng.randint(1, 8)) + behind,
        lambda: before + rng.choice(ODD_BYTES) + behind,
        lambda: before + bytes([behind[0] ^ (1 << rng.randrange(8))]) + behind[1:],
        lambda: plain.replace(b"  ", b"\t"),
        lambda: plain.replace(b"\n", b"\r\n"),
        lambda: plain.replace(b"\n", b"\r"),
        lambda: plain.replace(b":", b"", 1),
        lambda: b"\xef\xbb\xbf" + plain,
        lambda: text.encode("utf-16"),
        lambda: text.encode("utf-32"),
        lambda: plain * 2,
        lambda: plain + b"---\n" + plain,
        lambda: b"%YAML 9.9\n---\n" + plain,
        lambda: b"--- !!map\n" + plain,
        lambda: plain + b"...\nmore\n",
        lambda: plain + b"\n" * 10 + b"# " + b"x" * 100_000,
    )
    return rng.choice(accidents)()


def another_file(rng: random.Random) -> bytes | None:
    """No configuration at all: nothing, a folder, a picture, a list."""
    return rng.choice(
        (
            b"", None, b"\n\n", b"# only words\n", b"null\n", b"[]\n", b"- a\n- b\n", b"3\n", b"text\n", b"{}\n",
            b"...\n",
            b"---\n", b"\x89PNG\r\n\x1a\n" + rng.randbytes(200), b"PK\x03\x04" + rng.randbytes(50), rng.randbytes(300),
            b"\x80\x04\x95", b'{"task": {"name": "bytes"}}', b"a: &x [*x]", b"&x {task: *x}", b"\x00" * 100,
            b"[" * 100_000,
        )
    )  # fmt: skip
