"""What `result.json` holds, by type: a value of another kind is named before anybody computes with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from experiments.record.errors import RecordError, train_again

Numbers = dict[str, float]


class Best(TypedDict):
    step: int
    score: float


class SeedOfParts(TypedDict):
    init: int
    data: int
    dropout: int


class ResultFile(TypedDict, total=False):
    """The keys that something reads; a run of an earlier version may lack some."""

    variant: str
    task: str
    seed: int | SeedOfParts
    learning_rate: float
    score: float
    score_name: str
    higher_is_better: bool
    validation: Numbers
    test: Numbers
    forgetting: Numbers
    best: Best
    diagnostics: Numbers
    trainable_parameters: int
    trainable_share: float
    update_parameters: int
    steps: int
    steps_executed: int
    resumed_from: list[int]
    seconds: Numbers
    bytes_peak: int | None
    ranks: dict[str, int]
    ranks_total: int
    scales: Numbers
    files_sha256: dict[str, str]


_CHECKED = TypeAdapter(ResultFile)


class Result(dict[str, Any]):
    """What a finished run came to; a key that is missing is named with its file."""

    def __init__(self, path: Path, tree: Mapping[str, Any]) -> None:
        super().__init__(tree)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise RecordError(f"{self.path} has no {key!r}; {train_again(self.path.parent)}")


def refuse_other_types(path: Path, tree: Mapping[str, Any]) -> None:
    """Raise RecordError where a value is not of its key's type, or a split's metrics lack the score."""
    try:
        _CHECKED.validate_python(tree, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecordError(f"{path} is damaged, {key}: {first['msg']}; {train_again(path.parent)}") from None
    for split in ("validation", "test"):
        if split in tree and "score_name" in tree and tree["score_name"] not in tree[split]:
            raise RecordError(
                f"{path} is damaged, {split} has no {tree['score_name'][:40]!r}; {train_again(path.parent)}"
            )
