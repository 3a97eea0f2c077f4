"""The results of a study as one tidy table: a row a trial, read from the run directories that its trials left."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial
from experiments.studies.spec.arm import Arm, describe
from experiments.studies.spec.study import Study

ARM = {"arm": "string", "config_hash": "string"}
OUTCOME = {
    "stage": "string",
    "settings": "string",
    "learning_rate": "float64",
    "multiplier": "float64",
    "point": "string",
    "seed": "Int64",
    "key": "string",
    "state": "string",
    "score": "float64",
    "loss": "float64",
    "test_score": "float64",
    "best_score": "float64",
    "best_step": "Int64",
    "ranks_total": "Int64",
    "trainable_parameters": "Int64",
    "update_parameters": "Int64",
    "steps": "Int64",
    "failure": "string",
    "folder": "string",
}
CIRCUMSTANCES = {"seconds": "float64", "steps_executed": "Int64", "resumed": "boolean", "note": "string"}
ELSEWHERE = "no run directory here: another runs folder has it; --collect FOLDER brings it"
SETTINGS_APART = ", "


def results_table(study: Study, study_state: StudyState, runs_dir: Path) -> pd.DataFrame:
    """One row for each trial that the study wants so far: by arm in the study's order, stage, rate and seed.

    Columns: `ARM`, every key of the arms (a key with the name of another column is 'arm.<key>'; values of several
    kinds are text), `OUTCOME`, and what machines, packs and interruptions may change: `CIRCUMSTANCES`. score and loss
    are of validation, test_score is there in the evaluation only, seconds are those of training. They are those of
    the run directories below `<runs_dir>/<study>`; of one that is not there, the queue's, with a note.
    """
    keys = _keys(study.arms)
    rows = [
        {**_of_arm(trial.arm, keys), **_of_trial(trial), **_outcome(trial, study_state, runs_dir / study.name)}
        for progress in study_state.arms
        for trial in _in_order(progress)
    ]
    _count_work_once(rows)
    table = pd.DataFrame(rows, columns=[*ARM, *keys.values(), *OUTCOME, *CIRCUMSTANCES])
    kinds = {column: _kind([arm.keys[key] for arm in study.arms if key in arm.keys]) for key, column in keys.items()}
    for column in (column for column, kind in kinds.items() if kind == "string"):
        table[column] = [None if _missing(value) else _describe_value(value) for value in table[column]]
    return table.astype(ARM | kinds | OUTCOME | CIRCUMSTANCES)


def _count_work_once(rows: Sequence[dict[str, Any]]) -> None:
    """Several trials may be one run, trained in parts or read: each row keeps what its trial added to those before."""
    claimed: dict[tuple[object, str], float] = {}
    for row in rows:
        for name in ("steps_executed", "seconds"):
            if row.get("folder") is not None and row.get(name) is not None:
                whole = row[name]
                row[name] = max(0, whole - claimed.get((row["folder"], name), 0))
                claimed[row["folder"], name] = max(whole, claimed.get((row["folder"], name), 0))


def write_table(table: pd.DataFrame, path: Path) -> None:
    """The whole table as parquet or, after a crash, what was there before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    table.to_parquet(partial, index=False)
    partial.replace(path)


def _keys(arms: Sequence[Arm]) -> dict[str, str]:
    """Key of an arm -> its column, in the order in which arms have them."""
    taken = {*ARM, *OUTCOME, *CIRCUMSTANCES}
    return {key: f"arm.{key}" if key in taken else key for arm in arms for key in arm.keys}


def _kind(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds <= {int}:
        return "Int64"
    if kinds <= {int, float}:
        return "float64"
    return "boolean" if kinds <= {bool} else "string"


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _describe_value(value: object) -> str:
    return describe({"": value}).removeprefix("=")


def _in_order(progress: ArmProgress) -> list[PlannedTrial]:
    return sorted(progress.wanted, key=lambda trial: (trial.stage == "evaluation", trial.learning_rate, trial.seed))


def _of_arm(arm: Arm, keys: Mapping[str, str]) -> dict[str, Any]:
    return {"arm": arm.label, "config_hash": arm.config_hash} | {keys[key]: value for key, value in arm.keys.items()}


def _of_trial(trial: PlannedTrial) -> dict[str, Any]:
    return {
        "stage": trial.stage,
        "settings": SETTINGS_APART.join(trial.settings),
        "learning_rate": trial.learning_rate,
        "multiplier": trial.multiplier,
        "point": describe_knobs(trial) or None,
        "seed": trial.seed,
        "key": trial.key,
    }


def describe_knobs(trial: PlannedTrial) -> str:
    """'alpha_per_rank=8': the knobs beside rate and ranks that tuning set."""
    return describe({name: value for name, value in trial.knobs.items() if name != "rank" and value is not None})


def _outcome(trial: PlannedTrial, study_state: StudyState, folder: Path) -> dict[str, Any]:
    """What became of a trial."""
    state, entry = study_state.state(trial.key), study_state.entries.get(trial.key)
    if entry is None or state in ("waiting", "running"):
        return {"state": state}
    ended = {"state": state, "folder": entry.facts.get("folder")}
    if state == "failed":
        return ended | {"failure": entry.facts["failure"]}
    if entry.state == "pruned":
        return ended | {name: entry.facts[name] for name in ("steps", "steps_executed", "seconds")}
    of_queue = {"score": entry.score, "loss": entry.facts.get("loss"), "test_score": entry.facts.get("test")}
    run_dir = RunDirectory(folder / str(ended["folder"]))
    if not run_dir.finished:
        return ended | of_queue | {"note": ELSEWHERE}
    result = run_dir.result()
    found = _of_run(result, test=trial.stage == "evaluation")
    differ = [name for name, value in of_queue.items() if found[name] != value]
    told = [f"result.json has {name} {found[name]}, the queue {of_queue[name]}" for name in differ]
    tuned = study_state.entries.get(trial.run_of or "")
    if tuned is not None and tuned.score != entry.score:
        told.append(
            f"{ended['folder']} was trained again where the run of the tuning was not at hand, and rounded otherwise: "
            f"score {entry.score} on validation, where it was chosen for {tuned.score}"
        )
    return ended | found | {"note": "; ".join(told) or None}


def _of_run(result: Mapping[str, Any], *, test: bool) -> dict[str, Any]:
    return {
        "score": result["score"],
        "loss": result["validation"].get("loss"),
        "test_score": result.get("test", {}).get(result["score_name"]) if test else None,
        "best_score": result["best"]["score"],
        "best_step": result["best"]["step"],
        "ranks_total": result["ranks_total"],
        "trainable_parameters": result["trainable_parameters"],
        "update_parameters": result["update_parameters"],
        "steps": result["steps"],
        "seconds": result["seconds"]["training"],
        "steps_executed": result["steps_executed"],
        "resumed": bool(result["resumed_from"]),
    }
