"""The words of the low-rank hypothesis: of two hypotheses about a task, of the task and of a family of tasks.

H1, truncation: cut to rank k0, the update of full fine-tuning keeps enough of its gain.
H2, capacity: an adapter of rank k0 gains enough of it.

Each *holds*, *fails* or is *undecided*. At most alpha of families have any *holds* of a hypothesis that is false, and
at most alpha any *fails* of one that is true: the tests of either direction are adjusted by Holm, over all that were
planned. SUPPORTED needs two words at once, so it is wrong more rarely still.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

import numpy as np

from analysis.stats.multiplicity import holm
from analysis.stats.paired_scores import FEWEST_PAIRS
from analysis.stats.retention import Retention

LARGEST_SHARE_OF_RANK = 0.5


class Word(StrEnum):
    """What the tests say of one hypothesis."""

    HOLDS = "holds"
    FAILS = "fails"
    UNDECIDED = "undecided"


class Verdict(StrEnum):
    """What they say of a task, or of a family of tasks."""

    SUPPORTED = "SUPPORTED"
    PARTIAL = "PARTIAL"
    CONTRADICTED = "CONTRADICTED"
    INCONCLUSIVE = "INCONCLUSIVE"
    NOT_TESTABLE = "NOT TESTABLE"


@dataclass(frozen=True)
class Hypothesis:
    """The runs that can say that a hypothesis holds, and those that can say that it fails; None where there are none.

    For truncation both are the update cut to k0. An adapter's rank need not be k0: see `capacity_ranks`.
    """

    support: Retention | None = None
    contradiction: Retention | None = None

    @property
    def p_holds(self) -> float:
        return self.support.p_holds if self.support and self.support.n >= FEWEST_PAIRS else 1.0

    @property
    def p_fails(self) -> float:
        return self.contradiction.p_fails if self.contradiction and self.contradiction.n >= FEWEST_PAIRS else 1.0


@dataclass(frozen=True)
class Task:
    """The evidence of one task. `testable` is false where full fine-tuning has no gain: nothing else counts then."""

    testable: bool
    truncation: Hypothesis = Hypothesis()
    capacity: Hypothesis = Hypothesis()


@dataclass(frozen=True)
class Finding:
    """The word of a hypothesis with its p values, adjusted over the family."""

    word: Word
    p_holds: float
    p_fails: float


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    truncation: Finding
    capacity: Finding


def judge(tasks: Sequence[Task], *, alpha: float = 0.05) -> list[Judgement]:
    """The words and the verdict of every task of a family, in its order.

    The family is what was planned: 2 T tests of either direction for T tasks. Tests that were not made, with under
    five seeds, or of a task without a gain, count in it as p = 1. Whether a task gains is seen in the same scores of
    full fine-tuning and of the floor that its other tests use; if it left the family for that, the others would be
    tested at a level that depends on what came out.
    Raises ValueError for an alpha outside (0, 0.5): from 0.5 on one test could both hold and fail.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"a level alpha lies between 0 and 0.5, both excluded; it is {alpha}")
    no_evidence = Hypothesis()
    hypotheses = [
        hypothesis if task.testable else no_evidence
        for task in tasks
        for hypothesis in (task.truncation, task.capacity)
    ]
    p_holds = holm(np.array([each.p_holds for each in hypotheses]))
    p_fails = holm(np.array([each.p_fails for each in hypotheses]))
    findings = [Finding(_word(*p, alpha), *p) for p in zip(p_holds.tolist(), p_fails.tolist(), strict=True)]
    return [
        Judgement(_verdict(task.testable, truncation.word, capacity.word), truncation, capacity)
        for task, truncation, capacity in zip(tasks, findings[::2], findings[1::2], strict=True)
    ]


def family_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a family from those of its tasks; tasks that are NOT TESTABLE are left out.

    One that all others share is the family's. Otherwise it is INCONCLUSIVE if any of them is, and PARTIAL if none is:
    supported on some tasks or by some hypotheses, contradicted by others.
    """
    testable = set(verdicts) - {Verdict.NOT_TESTABLE}
    if not testable:
        return Verdict.NOT_TESTABLE
    if len(testable) == 1:
        return testable.pop()
    return Verdict.INCONCLUSIVE if Verdict.INCONCLUSIVE in testable else Verdict.PARTIAL


def k0_of(rho0: float, p: int) -> int:
    """The rank that "low" means: floor(rho0 p) of p singular values, and 1 where that is less than 1.

    Raises ValueError for a rho0 outside (0, 0.5], and for p = 1, where 1 is the full rank.
    """
    if not 0 < rho0 <= LARGEST_SHARE_OF_RANK:
        raise ValueError(
            f"rho0, the share of the full rank that counts as low, is above 0 and at most {LARGEST_SHARE_OF_RANK}; "
            f"it is {rho0}. Near the full rank a random or a shrunk update keeps the gain as well: no control can fail"
        )
    if p < 2:
        raise ValueError(f"a low rank needs matrices of full rank 2 or more; the smallest has {p}")
    return max(1, math.floor(Fraction(str(rho0)) * p))  # as written: 0.29 * 100 is below 29


def capacity_ranks(ranks: Iterable[int], k0: int) -> tuple[int | None, int | None]:
    """The adapter ranks that may support and contradict the hypothesis at k0; None where there is none.

    If an adapter of a rank up to k0 gains enough, k0 suffices; the largest such rank is the easiest. That an adapter
    of a smaller rank does not says nothing of k0: only one of rank k0 or more contradicts, and the smallest is the
    nearest. Where k0 is among the ranks both are k0.
    """
    all_ranks = set(ranks)
    up_to = max((rank for rank in all_ranks if rank <= k0), default=None)
    return up_to, min((rank for rank in all_ranks if rank >= k0), default=None)


def _word(p_holds: float, p_fails: float, alpha: float) -> Word:
    """Undecided also where both reject: an adapter of a smaller rank gains enough and one of a larger does not."""
    if (p_holds <= alpha) == (p_fails <= alpha):
        return Word.UNDECIDED
    return Word.HOLDS if p_holds <= alpha else Word.FAILS


def _verdict(testable: bool, truncation: Word, capacity: Word) -> Verdict:
    words = {truncation, capacity}
    if not testable:
        return Verdict.NOT_TESTABLE
    if Word.UNDECIDED in words:
        return Verdict.INCONCLUSIVE
    if len(words) == 2:
        return Verdict.PARTIAL
    return Verdict.SUPPORTED if Word.HOLDS in words else Verdict.CONTRADICTED
