"""The allocation that a search found, for use elsewhere: as a configuration of ours, and as PEFT's."""

import re
from pathlib import Path

from experiments.config.yaml_files import yaml_text
from experiments.record.atomic_files import write_atomically
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import PlannedTrial

FOLDER = "allocations"
PEFT_CONFIG = "adapter_config.json"


def export_allocation(label: str, trial: PlannedTrial, study_state: StudyState, folder: Path) -> list[Path]:
    """`<label>.yaml` is a configuration for run.py; `<label>.peft.json` has rank_pattern and alpha_pattern.

    The second is there once a run of the evaluation has ended on this machine, for it is what that run left.
    """
    stem = folder / FOLDER / re.sub(r"[^\w.=+-]+", "-", label)
    stem.parent.mkdir(exist_ok=True)
    tree = trial.config.tree() | {"study": "single", "seed": 0}
    ours = stem.with_name(f"{stem.name}.yaml")
    write_atomically(ours, yaml_text(tree))
    entry = study_state.entries.get(trial.key)
    left = folder / str(entry.facts.get("folder") if entry else None) / PEFT_CONFIG
    if not left.is_file():
        return [ours]
    theirs = stem.with_name(f"{stem.name}.peft.json")
    write_atomically(theirs, left.read_text(encoding="utf-8"))
    return [ours, theirs]
