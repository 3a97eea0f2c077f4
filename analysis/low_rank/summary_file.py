"""What the low-rank test reads of a study's `summary.json`, by type: what is missing or another kind is named."""

import json
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from experiments.record.errors import RecordError, shortened

WRITTEN_AGAIN = "the study's own study.py command writes it again"


class Score(TypedDict):
    higher_is_better: bool


class Evaluation(TypedDict):
    seeds: list[int]


class TunedArm(TypedDict):
    arm: str
    keys: dict[str, Any]
    state: str
    reason: str


class Tuning(TypedDict):
    arms: list[TunedArm]


class Arms(TypedDict):
    """Labels of the arms by what they are to the hypothesis; of an adapter also its rank."""

    full: str
    capacity: Annotated[dict[str, int], Field(min_length=1)]
    floor: str | None
    false_labels: list[str]


class Hypothesis(TypedDict):
    score: str
    rho0: float
    retention: float
    alpha: float
    family: list[str]
    floor: str | dict[str, Any]
    arms: Arms


class SummaryFile(TypedDict):
    study: str
    complete: bool
    frozen_sha256: str
    score: Score
    evaluation: Evaluation
    tuning: Tuning
    hypothesis: NotRequired[Hypothesis]


_CHECKED = TypeAdapter(SummaryFile)


def read_summary(path: Path) -> dict[str, Any]:
    """All that the file holds. Raises: RecordError where it is damaged or a key that is read is missing."""
    content = path.read_bytes()
    try:
        found: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is damaged, it is no JSON: {shortened(content)}; {WRITTEN_AGAIN}") from None
    try:
        _CHECKED.validate_python(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "all of it"
        raise RecordError(f"{path} is damaged, {key}: {first['msg']}; {WRITTEN_AGAIN}") from None
    return found
