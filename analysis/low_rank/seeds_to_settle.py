"""How many seeds would settle what is undecided: a number only where there are runs that could say it."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from analysis.stats.rank_hypothesis import Finding, Judgement, Word, capacity_ranks
from analysis.stats.retention import seeds_to_settle

Form = Float[np.ndarray, " seeds"]  # the linear form, positive where enough is kept


def seeds_by_hypothesis(cut: Form, adapters: Mapping[int, Form], k0: int, *, alpha: float) -> dict[str, int | None]:
    """`cut`: of the update cut to k0; `adapters`: by rank. None where no number of seeds would do.

    An adapter of a rank below k0 can say only that the hypothesis holds, one above only that it fails.
    """
    supporting, contradicting = capacity_ranks(adapters, k0)
    telling = [adapters[rank] for rank in (supporting,) if rank is not None and adapters[rank].mean() > 0]
    telling += [adapters[rank] for rank in (contradicting,) if rank is not None and adapters[rank].mean() < 0]
    numbers = [number for form in telling if (number := seeds_to_settle(form, alpha=alpha)) is not None]
    return {"H1": seeds_to_settle(cut, alpha=alpha), "H2": min(numbers, default=None)}


def of_undecided(numbers: Mapping[str, int | None], judged: Judgement) -> dict[str, int | None]:
    """Those of the hypotheses on which there is no word yet."""
    words: dict[str, Finding] = {"H1": judged.truncation, "H2": judged.capacity}
    return {name: number for name, number in numbers.items() if words[name].word is Word.UNDECIDED}
