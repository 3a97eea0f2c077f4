"""The base model that an adapter was learned on, as far as it is known, beside the one that a run puts it on."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.schema import RunConfig
from experiments.config.yaml_files import read_tree
from experiments.record.adapter_formats import CONFIG, RunStoreError
from experiments.record.adapter_reading import adapter_folder, run_of
from experiments.record.peft_config import read_json, shown
from experiments.record.tensor_files import has_file

HUB_CACHE = re.compile(r"models--(?:[^/\\]+--)?(?P<name>[^/\\]+?)[/\\]snapshots[/\\]")


@dataclass(frozen=True)
class LearnedOn:
    """The fingerprint of W0, the name of the base model, and how its classifier pools; None where it is not known."""

    base_sha256: str | None
    name: str | None
    pooling: str | None


def read_learned_on(path: Path) -> LearnedOn:
    """What the run directory and `adapter_config.json` say, the former first.

    Raises: RunStoreError or ConfigError where they are there and cannot be read.
    """
    folder = adapter_folder(path)
    if folder is None:
        return LearnedOn(None, None, None)
    peft = read_json(folder / CONFIG) if has_file(folder / CONFIG) else {}
    known = {"base_sha256": peft.get("base_sha256"), "name": peft.get("base_model_name_or_path")}
    if "pooling" in peft:
        known["pooling"] = peft["pooling"] or "auto"
    run = run_of(folder)
    if run is not None and has_file(run / "environment.json"):
        known |= _of_run(run)
    return LearnedOn(**{key: _text(known.get(key)) for key in ("base_sha256", "name", "pooling")})


def _of_run(run: Path) -> dict[str, Any]:
    base_sha256 = read_json(run / "environment.json").get("base_sha256")
    model = read_tree(run / "config.yaml").get("model") or {}
    return {"base_sha256": base_sha256, "name": model.get("name"), "pooling": model.get("pooling") or "auto"}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def refuse_other_base(config: RunConfig, base_sha256: str) -> None:
    """Raise RunStoreError for a start that was learned on other weights W0, unless the configuration insists."""
    if config.start is None or config.start.other_base:
        return
    learned_on = read_learned_on(Path(config.start.path))
    if learned_on.base_sha256 in (None, base_sha256):
        return
    theirs = f"{learned_on.base_sha256:.12}" + (f" ({learned_on.name})" if learned_on.name else "")
    raise RunStoreError(
        f"start.path {config.start.path}: an adapter fits the weights W0 that it was learned on, here those of sha256 "
        f"{theirs}; those of this run have {base_sha256:.12} ({base_name(config)}): choose that base model; to "
        "use it all the same, say start.other_base=true (a head of another size and another model.dtype change the "
        "sha256 too)"
    )


def compare_with_base(config: RunConfig, *, has_head: bool) -> list[str]:
    """Warnings of what is doubtful about the start of a run, known before its base model is loaded.

    Raises: RunStoreError for a head that was learned on hidden states pooled in another way.
    """
    if config.start is None:
        return []
    learned_on = read_learned_on(Path(config.start.path))
    pooling = config.model.pooling if config.model else "auto"
    if has_head and learned_on.pooling not in (None, pooling):
        raise RunStoreError(
            f"start.path {config.start.path}: its head was learned with pooling {shown(learned_on.pooling)}, and this "
            f"run pools with {pooling!r}: set model.pooling={learned_on.pooling}, or leave the head out of the file"
        )
    ours, theirs = base_name(config), learned_on.name
    if config.start.other_base or theirs is None or learned_on.base_sha256 or _last(theirs) == _last(ours):
        return []
    return [
        f"start.path {config.start.path}: its {CONFIG} says that it was learned on {shown(theirs)}, and the base model "
        f"here is {ours}: see that they are the same weights"
    ]


def base_name(config: RunConfig) -> str:
    """The name of a run's base model; of a task that brings one, the task's."""
    return config.model.name if config.model else f"that of the task {config.task.name}"


def _last(name: str) -> str:
    """'roberta-base' of 'FacebookAI/roberta-base', of a folder of that name, and of its copy in the Hub's cache."""
    cached = HUB_CACHE.search(f"{name}/")
    return cached["name"].lower() if cached else re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
