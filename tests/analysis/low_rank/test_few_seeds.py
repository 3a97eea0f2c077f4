"""What too few seeds can not test is said to be not tested, and no finding is printed of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.low_rank.family import assess_family
from analysis.low_rank.record import tree_of
from experiments.terminal import Display


def told(study: Path, folder: Path, seeds: int) -> tuple[str, dict[str, Any]]:
    """The block of a study of so many seeds, and what `hypothesis.json` would say."""
    shutil.copytree(study.parent, folder / "runs")
    path = folder / "runs" / study.name / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"evaluation": {"seeds": list(range(seeds))}}))
    family = assess_family([path.parent], Display.silent())
    return "\n".join(family.lines()), tree_of(family.tasks, family.judged)["tasks"][0]


def test_three_seeds_test_none_of_what_recurs_and_say_why(with_null: Path, tmp_path: Path) -> None:
    said, task = told(with_null, tmp_path, 3)
    halves = "a half needs two of 3 seeds: train at least 4, better 8"
    flips = "seeds can be relabelled in 4 ways, so that no p is below 1/4, which is above .05: train at least 6 seeds"
    assert f"recur in other seeds: not tested ({halves}); p of sign flips not tested ({flips})" in said
    assert f"p against false labels not tested ({flips})" in said
    assert task["reproducible"][0]["not_tested"] == {"k_rep": halves, "p_flip": flips, "p_contrast": flips}
    assert "none" not in said


def test_five_seeds_count_directions_and_flip_no_signs(with_null: Path, tmp_path: Path) -> None:
    said, task = told(with_null, tmp_path, 5)
    assert "directions that recur in other seeds: ΔW 2; p of sign flips not tested (seeds can be" in said
    assert set(task["reproducible"][0]["not_tested"]) == {"p_flip", "p_contrast"}


def test_six_seeds_test_all(with_null: Path, tmp_path: Path) -> None:
    said, task = told(with_null, tmp_path, 6)
    assert "directions that recur in other seeds: ΔW 2; p of sign flips 0.031; p against false labels" in said
    assert "not tested" not in said
    assert task["reproducible"][0]["not_tested"] == {}


@pytest.mark.parametrize("seeds", [2, 4])
def test_under_five_seeds_no_rank_is_said_to_be_enough(with_null: Path, tmp_path: Path, seeds: int) -> None:
    said, task = told(with_null, tmp_path, seeds)
    assert said.count(f"; {seeds} seeds are too few for a word   undecided") == 2
    assert " on   " not in said
    assert (task["k95"], task["r95"]) == (None, None)


def test_from_five_seeds_on_the_least_rank_is_said(with_null: Path, tmp_path: Path) -> None:
    said, task = told(with_null, tmp_path, 5)
    assert "0.95 from k = 2 on" in said
    assert (task["k95"]["least"], task["r95"]["least"]) == (2, 2)
