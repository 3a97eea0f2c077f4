"""PEFT's `adapter_config.json`: what it says of an update's rank and scale, each value checked before it is used."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import regex
import torch

from experiments.record.adapter_formats import AS_DELTA, CONFIG, RunStoreError
from experiments.record.tensor_files import has_file

BYTES_MOST = 10_000_000  # ten thousand modules with patterns of their own come to two million
PATTERN_LENGTH_MOST = 1000
MATCH_SECONDS = 1.0  # a name is matched in microseconds, or by a pattern that takes exponential time
# initialisations that leave W0 as it is; others (pissa, olora, corda, loftq, lora_ga) move it, so that B A is not ΔW
INITIALISATIONS = ("none", "true", "false", "gaussian", "eva", "orthogonal", "mica")
# what makes an update of something else than B A · scale, and layers other than those of the base model
OTHER_METHODS = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layers replicated",
    "target_parameters": "target_parameters",
    "lora_bias": "lora_bias",
}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number that float32 has; NaN, true and 10**400 are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= torch.finfo(torch.float32).max


def shown(value: object) -> str:
    """A value of a file in an error, however long it is."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


@dataclass(frozen=True)
class PeftConfig:
    """The entries of an `adapter_config.json` of LoRA or AdaLoRA."""

    path: Path
    entries: Mapping[str, Any]

    @property
    def is_adalora(self) -> bool:
        return self.entries["peft_type"] == "ADALORA"

    @cached_property
    def use_rslora(self) -> bool:
        return self._flag("use_rslora")

    @property
    def body(self) -> str | None:
        """What the model that was trained calls the base that the names begin in; None where it is that base."""
        found = self.entries.get("body")
        if found is None or isinstance(found, str):
            return found
        raise RunStoreError(f"body is a module's name; in {self.path} it is {shown(found)}: save it again")

    def rank(self, name: str) -> Any:
        """r of the module of that name; whatever the file has."""
        return _by_pattern(self._ranks, name, self.entries.get("r"))

    def alpha(self, name: str) -> Any:
        """lora_alpha of the module of that name; whatever the file has."""
        return _by_pattern(self._alphas, name, self.entries.get("lora_alpha"))

    @cached_property
    def _ranks(self) -> list[tuple[Any, Any]]:
        return list(self._patterns("rank_pattern"))

    @cached_property
    def _alphas(self) -> list[tuple[Any, Any]]:
        return list(self._patterns("alpha_pattern"))

    def _patterns(self, entry: str) -> Iterable[tuple[Any, Any]]:
        """A compiled pattern of the ends of modules' paths, and its value: of PEFT's `get_pattern_key`."""
        patterns = self.entries.get(entry) or {}
        if not isinstance(patterns, dict):
            raise RunStoreError(
                f"{entry} maps patterns to numbers; in {self.path} it is {shown(patterns)}: save it again"
            )
        for pattern, value in patterns.items():
            whole = rf"(.*\.)?({pattern})$"
            try:
                if len(pattern) > PATTERN_LENGTH_MOST:
                    raise ValueError(f"it has more than {PATTERN_LENGTH_MOST} characters")
                re.compile(whole)  # what PEFT would refuse
                yield regex.compile(whole), value
            except (re.error, regex.error, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
                raise RunStoreError(
                    f"{entry} has regular expressions; in {self.path} {shown(pattern)} is none that can be read "
                    f"({error}): name the modules instead"
                ) from None

    def refuse_other_methods(self) -> None:
        """Raise RunStoreError for an adapter whose factors are not its ΔW."""
        initialisation = shown(self.entries.get("init_lora_weights"))
        plain = initialisation.strip("'").lower() in INITIALISATIONS
        made_with = [method for entry, method in OTHER_METHODS.items() if self._flag(entry)]
        if made_with or not plain:
            how = made_with[0] if made_with else f"init_lora_weights {initialisation}"
            raise RunStoreError(
                f"the factors of an adapter are its ΔW only if W0 stays as it was and nothing rescales W0 + B A; "
                f"{self.path.parent} was made with {how}: {AS_DELTA}"
            )

    def _flag(self, entry: str) -> bool:
        """Whether an entry is set; a map or a list that is not empty sets it too."""
        value = self.entries.get(entry)
        if value is None or isinstance(value, bool | dict | list):
            return bool(value)
        raise RunStoreError(f"{entry} is true or false; in {self.path} it is {shown(value)}: save it again")


def read_peft_config(path: Path) -> PeftConfig:
    """Raises: RunStoreError for a file that is missing, no JSON, or of another method."""
    if not has_file(path):
        raise RunStoreError(
            f"an adapter's scale and ranks stand in {CONFIG}; {path} is missing: "
            "copy it from where the adapter was saved"
        )
    entries = read_json(path)
    if entries.get("peft_type") not in ("LORA", "ADALORA"):
        found = shown(entries.get("peft_type"))
        raise RunStoreError(f"peft_type must be LORA or ADALORA; in {path} it is {found}: {AS_DELTA}")
    return PeftConfig(path, entries)


def read_json(path: Path) -> dict[str, Any]:
    """The map in a JSON file. Raises: RunStoreError where there is none."""
    if path.stat().st_size > BYTES_MOST:
        raise RunStoreError(
            f"{path.name} has at most {BYTES_MOST} bytes; {path} has {path.stat().st_size}: it is another file"
        )
    try:
        tree = json.loads(path.read_bytes())  # of bytes it finds out the encoding, and takes a BOM
    except (ValueError, RecursionError) as error:
        raise RunStoreError(f"{path.name} is JSON; {path} is not ({error}): save it again") from error
    if not isinstance(tree, dict):
        raise RunStoreError(f"{path.name} is a map; {path} is {shown(tree)}: save it again")
    return tree


def _by_pattern(patterns: Iterable[tuple[Any, Any]], name: str, default: Any) -> Any:
    """The value of the first pattern that matches."""
    for pattern, value in patterns:
        try:
            if pattern.match(name, timeout=MATCH_SECONDS):
                return value
        except TimeoutError:
            raise RunStoreError(
                f"a pattern of adapter_config.json is matched within a second; {shown(pattern.pattern)} is not for "
                f"{name}: name the modules instead"
            ) from None
    return default
