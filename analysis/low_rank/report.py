"""What the low-rank test says, for the terminal: one block a task, the verdict against rho0, and the family's."""

import math
from collections.abc import Sequence
from statistics import fmean

from analysis.low_rank.assessment import AT_K0, Assessment
from analysis.low_rank.descriptions import Matrix
from analysis.low_rank.noted_reads import noted_reads
from analysis.low_rank.seeds_to_settle import of_undecided
from analysis.stats.rank_hypothesis import Finding, Judgement, family_verdict
from analysis.stats.retention import FixedSequence, Retention

CONTROLS = {
    "random": "random {k}",
    "removed": "top {k} removed",
    "weighted": "nearest in outputs",
    "shared": "shared over matrices",
}


def lines_of(task: Assessment, judged: Judgement) -> list[str]:
    """The block of one task."""
    study, asked = task.study, task.study.hypothesis
    lines = [
        f"{study.name}: {study.score}, test split, {len(study.seeds)} seeds; {task.matrices} matrices, p = {task.p}; "
        f"k0 = {task.k0} (rho0 {asked['rho0']:g}); frozen {study.frozen_sha256[:8]}, W0 {study.base_sha256[:8]}",
        _gate(task),
    ]
    if task.testable:
        lines += [*_truncation(task, judged.truncation), *_capacity(task, judged.capacity), *_described(task)]
    lines += [f"               {note}" for note in (*task.missing, noted_reads(study).note) if note]
    return [*lines, verdict_line(task, judged)]


def verdict_line(task: Assessment, judged: Judgement) -> str:
    """'low_rank: CONTRADICTED at rho0 0.1, ...', with the verdicts at other shares of p in a line below."""
    rho0 = task.study.hypothesis["rho0"]
    text = f"{task.study.name}: {judged.verdict} at rho0 {rho0:g}, for this W0 and this budget of steps"
    if task.by_rho0:
        others = ", ".join(f"{share:g} {each.verdict}" for share, each in task.by_rho0.items())
        text += f"\n               at other rho0, not adjusted for one another: {others}"
    if task.testable and (lacking := of_undecided(task.seeds_needed, judged)):
        needed = ", ".join(f"{name} {_no_number(task) if n is None else n}" for name, n in lacking.items())
        text += f"\n               seeds that would settle it: {needed}"
    return text


def _no_number(task: Assessment) -> str:
    has_k0 = task.of("adapter", task.k0) is not None
    return "no number" if has_k0 else f"no number, but an adapter of rank {task.k0} could"


def family_line(tasks: Sequence[Assessment], judged: Sequence[Judgement]) -> str:
    """The verdict of several studies together."""
    verdict = family_verdict([each.verdict for each in judged])
    named = ", ".join(f"{task.study.name} {each.verdict}" for task, each in zip(tasks, judged, strict=True))
    return f"family of {len(tasks)}: {verdict} ({named}); Holm over {2 * len(tasks)} tests of either direction"


def _gate(task: Assessment) -> str:
    gain = task.gain
    word = "testable" if task.testable else "no gain, so nothing else is tested"
    return (
        f"G0 gain        {task.floor.mean():.4g} -> {task.full.mean():.4g}: {gain.gain:.4g} "
        f"[{gain.low:.4g}, {gain.high:.4g}], p = {gain.p:.2g}   {word}"
    )


def _truncation(task: Assessment, found: Finding) -> list[str]:
    top, ks = task.of("top", task.k0), [each for each in task.kept if each.kind == "top"]
    assert top is not None
    columns = [(str(each.k), _share(each.found.share)) for each in ks]
    widths = [max(map(len, column)) for column in columns]
    rows = [
        f"               {name:<5}" + " ".join(column[i].rjust(w) for column, w in zip(columns, widths, strict=True))
        for i, name in enumerate(("k", "keep"))
    ]
    controls = "; ".join(
        f"{CONTROLS[kind].format(k=task.k0)} {_share(each.found.share)}"
        for kind in ("random", *AT_K0)
        if (each := task.of(kind, task.k0)) is not None
    )
    shrunk = task.of("shrunk", task.k0)
    energy = "" if shrunk is None else f"; ΔW shrunk to their energy ({shrunk.energy:.0%}) {_share(shrunk.found.share)}"
    least = _least(task, task.k95, "k")
    own, loose, head = task.of("base", 0), task.from_own_head, list[str]()
    if own is not None and loose is not None:
        head.append(
            f"               W0 under the run's own head: {_share(own.found.share)}; with that as floor top {task.k0} "
            f"would keep {_interval(loose)}"
        )
    return [
        f"H1 truncation  top {task.k0} of ΔW keep {_interval(top.found)} of it; {least}   {found.word}",
        *rows,
        f"               at {task.k0}: {controls}{energy}",
        *head,
    ]


def _capacity(task: Assessment, found: Finding) -> list[str]:
    adapters = [each for each in task.kept if each.kind == "adapter"]
    below = [each for each in adapters if each.k <= task.k0]
    nearest = below[-1] if below else adapters[0]
    shares = " ".join(f"{each.k}: {_share(each.found.share)}" for each in adapters)
    least = _least(task, task.r95, "r")
    return [
        f"H2 capacity    adapter r = {nearest.k} reaches {_interval(nearest.found)}; {least}   {found.word}",
        f"               r {shares}",
    ]


def _described(task: Assessment) -> list[str]:
    """H3 and H4, by kind of matrix: they describe and decide nothing."""
    kinds: dict[str, list[Matrix]] = {}
    for matrix in task.described:
        kinds.setdefault(matrix.kind, []).append(matrix)
    tests = {
        "k_rep": ", ".join(f"{kind} {_range([m.k_rep for m in of])}" for kind, of in kinds.items()),
        "p_flip": _range([m.p_flip for m in task.described], ".2g"),
        "p_contrast": _range([m.p_contrast for m in task.described], ".2g"),
    } | {name: f"not tested ({why})" for name, why in task.described[0].not_tested.items()}  # of all matrices alike
    against = f"; p against false labels {tests['p_contrast']}" if tests["p_contrast"] else ""
    rows = [
        f"{kind} {fmean(m.r90 for m in of):.1f} ({fmean(m.gaussian_r90 for m in of):.1f}{_of_false_labels(of)})"
        for kind, of in kinds.items()
    ]
    told = "Gaussian, false labels" if any(m.false_labels_r90 is not None for m in task.described) else "Gaussian"
    return [
        f"H3 recurring   directions that recur in other seeds: {tests['k_rep']}; p of sign flips {tests['p_flip']}"
        f"{against}",
        f"H4 spectra     r90 ({told}): {', '.join(rows)}",
    ]


def _of_false_labels(matrices: Sequence[Matrix]) -> str:
    known = [m.false_labels_r90 for m in matrices if m.false_labels_r90 is not None]
    return f", {fmean(known):.1f}" if known else ""


def _range(values: Sequence[float | None], form: str = "g") -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return ""
    ends = dict.fromkeys(f"{value:{form}}" for value in (known[0], known[-1]))
    return "-".join(ends)


def _least(task: Assessment, found: FixedSequence | None, name: str) -> str:
    required = task.study.hypothesis["retention"]
    if found is None:
        return f"{len(task.study.seeds)} seeds are too few for a word"
    where = f"at no {name} tried" if found.least is None else f"from {name} = {found.least} on"
    return f"surely {required:g} {where}"


def _interval(found: Retention) -> str:
    low, high = found.low, found.high
    ends = (
        f"[{_share(low)}, {_share(high)}]"
        if math.isfinite(low) and math.isfinite(high) and low <= high
        else "[unbounded]"
    )
    return f"{_share(found.share)} {ends}"


def _share(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"
