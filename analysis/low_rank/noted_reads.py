"""How often a study read the test split, as its ledger says, and what the ledger can not know."""

import json
from dataclasses import dataclass

from analysis.low_rank.study_runs import StudyRuns
from analysis.low_rank.truncated_scores import PURPOSE
from experiments.record.ledger import LEDGER, lines_of_study


@dataclass(frozen=True)
class NotedReads:
    """The reads in the ledger; `missing` are the runs that were evaluated and have none: it was lost on the way."""

    count: int
    missing: tuple[str, ...]
    note: str


def noted_reads(study: StudyRuns) -> NotedReads:
    """Those of the ledger beside the study's folder. Raises: RecordError where it is damaged."""
    lines = lines_of_study(study.runs_dir, study.name)
    rows = [json.loads(line) for line in lines]
    noted = {row.get("run") for row in rows if not str(row.get("purpose")).startswith(PURPOSE)}
    arms = [study.full, *study.capacity.values(), *study.nulls.values(), *([study.floor] if study.floor else [])]
    runs = dict.fromkeys(path.name for arm in arms for path in arm.values())
    missing = tuple(run for run in runs if run not in noted)
    told = (
        f"{study.runs_dir / LEDGER} notes {len(lines)} reads of the test split, and none of {len(missing)} of the "
        f"{len(runs)} runs that were evaluated on it: there were more, in the ledger of the folder that the study was "
        "moved from; add its lines"
    )
    return NotedReads(len(lines), missing, told if missing else "")
