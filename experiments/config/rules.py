"""What a value breaks, in plain words instead of pydantic's: 'must be a whole number, got 0.5'."""

from collections.abc import Sequence

from pydantic_core import ErrorDetails

from experiments.config.shown import shown

KINDS = {
    "list_type": "a list", "dict_type": "a map of keys to values", "model_type": "a map of keys to values",
    "string_type": "a text", "bool_type": "true or false", "float_type": "a number", "int_type": "a whole number",
    "int_from_float": "a whole number", "finite_number": "a finite number",
}  # fmt: skip
BOUNDS = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below", "less_than_equal": "at most"}
PATTERNS = {
    r"^\w[\w.-]*$": "a name of letters, digits, '_', '.' and '-' that begins with a letter, a digit or '_'",
}  # fmt: skip


def describe_broken(details: Sequence[ErrorDetails]) -> str:
    """What the value of one path breaks: the rules, of which it may meet any, the value, and the way out.

    What stands in a map has the path of the map, which is itself no number, and a number beyond a bound is no map:
    of alternatives the one that the value was meant for is told.
    """
    of_value: dict[str, list[ErrorDetails]] = {}
    deepest = max(len(detail["loc"]) for detail in details)
    meant = [detail for detail in details if len(detail["loc"]) == deepest]
    for detail in [detail for detail in meant if detail["type"] in BOUNDS] or meant:
        of_value.setdefault(shown(detail["input"]), []).append(detail)
    return ", or ".join(f"must {_either(found)}, got {value}{_way_out(found)}" for value, found in of_value.items())


def _either(details: Sequence[ErrorDetails]) -> str:
    """'be a whole number or a map of keys to values'."""
    rules = list(dict.fromkeys(map(_rule, details)))
    return " or ".join([rules[0], *(rule.removeprefix("be ") for rule in rules[1:])])


def _rule(detail: ErrorDetails) -> str:
    told = detail["msg"].removeprefix("Input ").partition(" after validation")[0]
    if bound := BOUNDS.get(detail["type"]):
        return f"be {bound} {told.rpartition(' ')[2]}"
    if kind := KINDS.get(detail["type"]) or PATTERNS.get(detail.get("ctx", {}).get("pattern", "")):
        return f"be {kind}"
    return told.partition("should ")[2] if "should " in told else f"be right: {told}"


def _way_out(details: Sequence[ErrorDetails]) -> str:
    kinds, value = {detail["type"] for detail in details}, details[0]["input"]
    if "list_type" in kinds and isinstance(value, str):
        return ": write [...] around it"
    if "string_type" in kinds and isinstance(value, bool | int | float):
        return "; write it in quotes for a text"
    return ""
