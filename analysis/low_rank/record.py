"""The low-rank test on disk: `hypothesis.json` and the table that its figures show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.low_rank.assessment import Assessment, Kept
from analysis.low_rank.noted_reads import noted_reads
from analysis.low_rank.seeds_to_settle import of_undecided
from analysis.stats.rank_hypothesis import Finding, Judgement, family_verdict

DRAWN = ("top", "adapter", "random", "shrunk")


def tree_of(tasks: Sequence[Assessment], judged: Sequence[Judgement]) -> dict[str, Any]:
    """Plain values; what is not finite is null."""
    asked = tasks[0].study.hypothesis
    return {
        "rho0": asked["rho0"],
        "retention": asked["retention"],
        "alpha": asked["alpha"],
        "tests_in_family": 2 * len(tasks),
        "tasks": [_task(task, each) for task, each in zip(tasks, judged, strict=True)],
        "family": {
            "verdict": str(family_verdict([each.verdict for each in judged])),
            "studies": [task.study.name for task in tasks],
        },
    }


def drawn_table(tasks: Sequence[Assessment]) -> pd.DataFrame:
    """A row for each kind and k of each task that was testable, as the figures show them."""
    rows = [
        {
            "task": task.study.name,
            "kind": each.kind,
            "k": each.k,
            "value": each.found.share,
            **_ends(each),
            "n": each.found.n,
            "energy": each.energy,
            "required": task.study.hypothesis["retention"],
            "k0": task.k0,
            "p": task.p,
            "confidence": 1 - task.study.hypothesis["alpha"],
            "score": task.study.score,
        }
        for task in tasks
        for each in task.kept
        if each.kind in DRAWN
    ]
    return pd.DataFrame(rows)


def _task(task: Assessment, judged: Judgement) -> dict[str, Any]:
    study, gain, reads = task.study, task.gain, noted_reads(task.study)
    return {
        "study": study.name,
        "verdict": str(judged.verdict),
        "frozen_sha256": study.frozen_sha256,
        "base_sha256": study.base_sha256,
        "score": study.score,
        "higher_is_better": study.higher_is_better,
        "n": len(study.seeds),
        "matrices": task.matrices,
        "p": task.p,
        "k0": task.k0,
        "floor": "base" if study.floor is None else study.hypothesis["floor"],
        "gate": {"gain": gain.gain, "interval": [gain.low, gain.high], "p": gain.p, "testable": task.testable},
        "truncation": [_kept(each) for each in task.kept if each.kind != "adapter"],
        "capacity": [_kept(each) for each in task.kept if each.kind == "adapter"],
        "k95": None if task.k95 is None else task.k95._asdict(),
        "r95": None if task.r95 is None else task.r95._asdict(),
        "h1": _finding(judged.truncation),
        "h2": _finding(judged.capacity),
        "spectra": [
            {
                "matrix": each.name,
                "r90": each.r90,
                "gaussian_r90": each.gaussian_r90,
                "false_labels_r90": each.false_labels_r90,
                "p": each.p,
            }
            for each in task.described
        ],
        "reproducible": [
            {
                "matrix": each.name,
                "k_rep": each.k_rep,
                "p_flip": each.p_flip,
                "p_contrast": each.p_contrast,
                "not_tested": dict(each.not_tested),
            }
            for each in task.described
        ],
        "verdict_by_rho0": {f"{rho0:g}": str(each.verdict) for rho0, each in task.by_rho0.items()},
        "seeds_to_settle": of_undecided(task.seeds_needed, judged) if task.testable else {},
        "missing": list(task.missing),
        "from_own_head": None if task.from_own_head is None else task.from_own_head.share,
        "test_reads": reads.count,
        "test_reads_missing_of": list(reads.missing),
    }


def _kept(each: Kept) -> dict[str, Any]:
    found = each.found
    ends = _ends(each)
    return {
        "kind": each.kind, "k": each.k, "share": found.share, "interval": [ends["low"], ends["high"]],
        "energy": each.energy, "p_holds": found.p_holds, "p_fails": found.p_fails,
        "p_flip_holds": found.p_flip_holds, "p_flip_fails": found.p_flip_fails,
    }  # fmt: skip


def _ends(each: Kept) -> Mapping[str, float | None]:
    """None where the interval of the ratio has no end on that side."""
    low, high = each.found.low, each.found.high
    bounded = math.isfinite(low) and math.isfinite(high) and low <= high
    return {"low": low, "high": high} if bounded else {"low": None, "high": None}


def _finding(found: Finding) -> dict[str, Any]:
    return {"word": str(found.word), "p_holds_holm": found.p_holds, "p_fails_holm": found.p_fails}
