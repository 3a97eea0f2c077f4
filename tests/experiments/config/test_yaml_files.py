"""YAML as it is read here: one meaning for each value, limits, and errors of one line that name the way out."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from project_paths import CONFIGS

from experiments.config.errors import MOST_ERRORS, ConfigError
from experiments.config.shown import printable
from experiments.config.yaml_files import MOST_BYTES, MOST_VALUES, parse_yaml, read_tree, yaml_text


def refused(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        parse_yaml(text)
    return error.value.errors


def refused_file(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_tree(path)
    (told,) = error.value.errors
    place, told = told.split(": ", 1)
    assert place == printable(str(path))
    return told


def doubling(levels: int) -> str:
    """A list of ten lists of ten lists ...: ten times as many values with each level."""
    anchors = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return f"[{', '.join(['&a0 [x]', *anchors])}]"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_file_is_what_any_yaml_reader_makes_of_it(path: Path) -> None:
    def with_numbers(value: Any) -> Any:  # PyYAML takes 1e-3 for a text
        if isinstance(value, dict):
            return {key: with_numbers(part) for key, part in value.items()}
        if isinstance(value, list):
            return [with_numbers(part) for part in value]
        return float(value) if isinstance(value, str) and value[:1].isdigit() and "e-" in value else value

    assert read_tree(path) == with_numbers(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10), ("-10", -10), ("+5", 5), ("0", 0), ("0x10", 16), ("0b11", 3), ("1_000", 1000), ("0o17", "0o17"),
        ("1.5", 1.5), (".5", 0.5), ("-.5", -0.5), ("5.", 5.0), ("1e3", 1000.0), ("3e-4", 3e-4),
        ("-.inf", -float("inf")),
        ("yes", True), ("Off", False), ("TRUE", True), ("y", "y"), ("~", None), ("", None), ("null", None),
        ("2024-01-01", "2024-01-01"), ("2024-01-01 10:00:00", "2024-01-01 10:00:00"), ("=", "="), ("<<", "<<"),
        ("08", "08"), ("1.2.3", "1.2.3"), ("'010'", "010"), ('"yes"', "yes"), ("[a, {b: 1}]", ["a", {"b": 1}]),
    ],
)  # fmt: skip
def test_each_word_has_one_meaning(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["010", "-010", "00", "0_1", "1:30", "190:20:30", "1:30.5"])
def test_what_is_another_number_elsewhere_is_refused(text: str) -> None:
    """010 is 8 to a reader of YAML 1.1 and 10 to one of 1.2; 1:30 is 90 or a text."""
    (told,) = refused(f"seed: {text}")
    assert told.startswith(f"'{text}' is one number in YAML 1.1 and another or a text in YAML 1.2; write")
    assert parse_yaml(f"'{text}'") == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 9223372036854775808", "9223372036854775808 is too large: a whole number is at most 9223372036854775807"),
        (f"a: {'9' * 5000}", "has 5,000 characters, a number at most 100"),
        ("a: 1e400", "1e400 is too large"),
        ("a: !!int ''", "the tag '!!int' is not read; write the value alone"),
        ("a: !!python/name:os.system ''", "the tag '!!python/name:os.system' is not read"),
        ("a: !!timestamp x", "the tag '!!timestamp' is not read"),
        ("a: !!map [1]", "the tag '!!map' is not read"),
        ("a: !own 3", "the tag '!own' is not read"),
        ("a: ! 3", "the tag '!' is not read"),
        ("a: &a [*a]", "*a stands for nothing before it, or for what it is in"),
        ("a: *b", "*b stands for nothing before it"),
        ("a: {<<: {b: 1}}", "<< is not read; write the keys out"),
        ("{a: 1, 'a': 2}", "duplicate key 'a'; give it once"),
        ("{1: a}", "a key is a text, got 1; put it in quotes"),
        ("{yes: a}", "a key is a text, got True; put it in quotes"),
        ("{[a]: 1}", "a key is a text, got ['a']"),
        ("[" * 3000, "at most 40 deep"),
        ("{a: " * 3000, "at most 40 deep"),
        (doubling(9), f"at most {MOST_VALUES:,} values"),
        ('a: "\\uDCFF"', "'\\udcff' is no text"),
        ("a: \udcff", "'\\udcff' cannot stand in a text"),
        ("a: [", "invalid YAML: expected the node content"),
    ],
    ids=range(22),
)  # fmt: skip
def test_what_is_refused_is_said_in_one_short_line_and_at_once(text: str, told: str) -> None:
    begun = time.process_time()
    (found,) = refused(text)
    assert told in found
    assert "\n" not in found
    assert len(found) < 300
    assert time.process_time() - begun < 1


def test_every_refusal_of_a_text_is_told_with_its_line() -> None:
    assert refused("a: 010\nb: !!int 3\nb: 4\nc: [1:30]\n--- 5\n") == (
        "line 1: '010' is one number in YAML 1.1 and another or a text in YAML 1.2; write a number without leading "
        "zeros and colons, or the text in quotes",
        "line 2: the tag '!!int' is not read; write the value alone, a text in quotes",
        "line 3: duplicate key 'b'; give it once",
        "line 4: '1:30' is one number in YAML 1.1 and another or a text in YAML 1.2; write a number without leading "
        "zeros and colons, or the text in quotes",
        "line 5: a second document begins here; a configuration is one",
    )


def test_of_very_many_errors_the_first_are_told_and_their_number() -> None:
    found = refused("[" + "010, " * 1000 + "]")
    assert len(found) == MOST_ERRORS + 1
    assert found[-1] == f"... and {1000 - MOST_ERRORS} more errors"


def test_many_keys_take_time_in_proportion() -> None:
    begun = time.process_time()
    assert len(parse_yaml("\n".join(f"k{i}: {i}" for i in range(9_900)))) == 9_900
    assert time.process_time() - begun < 2


def test_an_alias_is_a_value_of_its_own() -> None:
    tree = parse_yaml("a: &x {b: [1]}\nc: *x\nd: [*x]\n")
    assert tree == {"a": {"b": [1]}, "c": {"b": [1]}, "d": [{"b": [1]}]}
    tree["a"]["b"].append(2)
    assert (tree["c"], tree["d"]) == ({"b": [1]}, [{"b": [1]}])


any_text = st.text(st.characters(exclude_categories=["Cs"]))
number_like = st.from_regex(r"\A[-+]?[0-9_:.eExXbo]{1,6}\Z")


texts = any_text | number_like
numbers = st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False)
leaves = texts | numbers | st.none() | st.booleans()


@given(st.recursive(leaves, lambda part: st.lists(part) | st.dictionaries(texts, part)))
def test_what_is_written_reads_back_equal(value: object) -> None:
    """A text that looks like a number, a date or a word stays a text, whatever is in it."""
    assert parse_yaml(yaml_text({"value": value})) == {"value": value}


def test_a_file_that_cannot_be_one_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    pipe, loop, long = tmp_path / "pipe", tmp_path / "loop", tmp_path / "long"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    long.write_text("#" * (MOST_BYTES + 1))
    assert refused_file(pipe) == "this is a pipe or a device; write the configuration into a file and give that"
    assert refused_file(Path("/dev/zero")).startswith("this is a pipe or a device")
    assert refused_file(tmp_path) == "this is a folder; write the configuration into a file and give that"
    assert refused_file(loop).startswith("cannot be read: Too many levels")
    assert refused_file(tmp_path / "no\0where") == "cannot be read: embedded null byte"
    assert refused_file(long) == f"a configuration has at most {MOST_BYTES:,} bytes, this file has more"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "a configuration is a map of keys to values, it is empty"),
        (b"# nothing\n", "a configuration is a map of keys to values, it is empty"),
        (b"- a\n", "a configuration is a map of keys to values, this is a list"),
        ("a: 1".encode("utf-16"), "line 1: byte 0xff is no UTF-8; save the text as UTF-8"),
        (b"a: 1\nb: caf\xe9\n", "line 2: byte 0xe9 is no UTF-8; save the text as UTF-8"),
        (b"a: 1\nb: \0\n", "line 2: '\\x00' cannot stand in a text; rename or leave it out"),
    ],
)
def test_a_file_that_holds_no_configuration_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    assert refused_file(tmp_path / "c.yaml") == told


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_tree(tmp_path / "c.yaml") == {"a": 1}
