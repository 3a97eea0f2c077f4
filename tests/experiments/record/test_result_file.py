"""A `result.json` whose values are of another kind is named with the key, before anybody computes with it."""

from pathlib import Path
from typing import Any

import pytest

from experiments.record.errors import RecordError
from experiments.record.result_file import refuse_other_types

WHOLE: dict[str, Any] = {
    "score": 0.5,
    "score_name": "loss",
    "higher_is_better": False,
    "validation": {"loss": 0.5},
    "best": {"step": 2, "score": 0.5},
    "steps": 2,
    "bytes_peak": None,
    "of_another_version": [1, 2],
}


def test_a_whole_result_is_taken_and_so_is_one_with_fewer_or_other_keys() -> None:
    refuse_other_types(Path("result.json"), WHOLE)
    refuse_other_types(Path("result.json"), {"score": 1})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"score": "0.5"}, "score: Input should be a valid number"),
        ({"score_name": True}, "score_name: Input should be a valid string"),
        ({"best": "2"}, "best: Input should be a valid dictionary"),
        ({"validation": {"loss": None}}, "validation.loss: Input should be a valid number"),
        ({"test": {"accuracy": 0.5}}, "test has no 'loss'"),
        ({"files_sha256": 3}, "files_sha256: Input should be a valid dictionary"),
    ],
)
def test_a_value_of_another_kind_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=f"result.json is damaged, {said}.*; restore it from a copy"):
        refuse_other_types(Path("result.json"), WHOLE | changed)
