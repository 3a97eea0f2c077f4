"""One concept has one name, and it is the field's own: retired words name nothing, and are printed nowhere."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from project_paths import ROOT, SOURCES
from pydantic import BaseModel

RETIRED_KEYS = {"rows", "clip", "accumulation", "checkpointing", "warmup", "schedule", "multipliers"}
RETIRED_PRINT = (
    r"detectable(?! difference)", "kept_out", "kept out", "stopped", "to come", "best on the way", "parameters left",
    "besides", "records?",
)  # fmt: skip
# Each row of names that were given up, with what says the same now
RETIRED_NAMES = {
    "TrainingContext, SharedHyperparameters, RunOptions, TrialRun": {"Setting", "Regime", "Wishes", "Member"},
    "train_pack, load_into, unload": {"crew", "sit", "rise"},
    "StudyState, snapshot, enqueue": {"Board", "board", "fill"},
    "StudyStatus; consistency": {"Standing", "standing", "agreement"},
    "SearchSpace": {"Ground", "ground"},
    "Observation, Suggestion, suggest": {"Tried", "Asked", "propose"},
    "AdaLoRA-derived ranks; Pareto front": {"taken_over", "front"},
    "requeue_dead, requeue_stale": {"bury", "reclaim"},
    "heartbeat, liveness": {"attendance", "Attendance", "silence", "Silence", "signs_of_life"},
    "report": {"handing_in", "HandingIn"},
    "WorkerProcess, WorkerPool, prestarted": {"Hand", "Workforce", "workforce", "spares"},
    "WorkerSpec": {"Order"},
    "errors": {"faults", "fault"},
    "hashed_config, config_hash": {"essence", "identity"},
    "rng": {"streams"},
    "fused kernels": {"lean"},
    "thresholds": {"bars"},
    "describe": {"in_words"},
}
RETIRED_ON_DISK = (RETIRED_KEYS - {"rows"}) | {  # rows are counted in data too
    "kept_out", "to_come", "besides", "identity", "bars", "minimum_detectable", "stopped", "added_multipliers",
}  # fmt: skip
TABLE_OF_OLD_KEYS = ROOT / "experiments" / "config" / "retired_keys.py"


def keys_of(schema: type[BaseModel]) -> Iterator[str]:
    """Every key of a schema and of the sections below it."""
    for name, field in schema.model_fields.items():
        yield name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from keys_of(part)


def test_no_schema_of_a_run_or_of_a_study_has_a_retired_key() -> None:
    from experiments.config.loading import schema_of
    from experiments.studies.spec.study_config import StudyConfig
    from experiments.tasks.registry import TASKS
    from lora_variants import VARIANTS

    schemas = [schema_of({"task": {"name": task}, "variant": {"name": name}}) for task in TASKS for name in VARIANTS]
    keys = {key for schema in (*schemas, StudyConfig) for key in keys_of(schema)}
    assert {"batch_size", "max_grad_norm", "learning_rate_multipliers"} <= keys
    assert not keys & RETIRED_KEYS


def names_in(path: Path) -> set[str]:
    """The names that a file gives: its own, and those of its classes, functions and parameters."""
    given = {*path.relative_to(ROOT).with_suffix("").parts}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            given.add(node.name)
        elif isinstance(node, ast.arg):
            given.add(node.arg)
    return given


@pytest.mark.parametrize("instead", RETIRED_NAMES)
def test_no_class_function_parameter_module_or_file_has_a_retired_name(instead: str) -> None:
    retired = RETIRED_NAMES[instead]
    found = {
        str(path.relative_to(ROOT)): sorted({name.lstrip("_") for name in names_in(path)} & retired)
        for path in SOURCES
        if path != TABLE_OF_OLD_KEYS
    }
    assert not {path: names for path, names in found.items() if names}


def retired_words_in(text: str) -> list[str]:
    return [word.group(0) for pattern in RETIRED_PRINT for word in re.finditer(rf"\b{pattern}\b", text)]


def keys_on_disk(folder: Path) -> set[str]:
    """The keys of every JSON file and the columns of every table below a folder."""

    def keys_in(tree: object) -> Iterator[str]:
        if isinstance(tree, dict):
            yield from tree
        for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
            yield from keys_in(part)

    found = {key for path in folder.rglob("*.json") for key in keys_in(json.loads(path.read_text(encoding="utf-8")))}
    tables = [*map(pd.read_csv, folder.rglob("*.csv")), *map(pd.read_parquet, folder.rglob("*.parquet"))]
    return found | {str(column) for table in tables for column in table.columns}


def test_a_run_prints_no_retired_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.run import main

    tiny = [
        "--config", str(ROOT / "configs" / "planted.yaml"), "--variant", "adalora", "--rank", "2", "--set", "steps=20",
        "--set", "evaluate_every=3", "--set", "learning_rate=3", "--set", "task.evaluation_rows=64",
        "--set", "alpha_per_rank=2",
        "--set", "wandb.mode=disabled", "--runs-dir", str(tmp_path),
    ]  # fmt: skip
    for more in (["--plan"], [], ["--test"]):
        assert main([*tiny, *more]) == 0
    shown = "".join(capsys.readouterr())
    assert "best during training" in shown
    assert "parameters in final ΔW" in shown
    assert retired_words_in(shown) == []


@pytest.mark.slow
def test_a_study_prints_no_retired_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from experiments.study import main

    smoke = [str(ROOT / "configs" / "studies" / "smoke.yaml"), "--runs-dir", str(tmp_path)]
    assert main([*smoke, "--plan"]) == 0
    assert main([*smoke, "--status"]) == 1
    assert main(smoke) == 0
    assert main([*smoke, "--status"]) == 0
    shown = "".join(capsys.readouterr())
    assert "MDE" in shown
    assert retired_words_in(shown) == []
    keys = keys_on_disk(tmp_path)
    assert {"excluded", "pending", "pruned", "config_hash", "overhead", "learning_rate_multipliers"} <= keys
    assert not keys & RETIRED_ON_DISK
