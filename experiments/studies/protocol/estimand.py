"""What the verdicts of a study are about: methods with their tuning inside, or the points that one tuning chose."""

from experiments.studies.spec.study import Study


def of_methods(study: Study) -> bool:
    """Whether every unit of the comparison is a replication of the whole tuning."""
    search = study.config.search
    return not study.protocol.tuning.shared if search is None else search.repeats > 1


def unit(study: Study) -> str:
    """What the scores of one unit come from."""
    search, seeds = study.config.search, len(study.protocol.evaluation.seeds)
    if search is None and not study.protocol.tuning.shared:
        return (
            "each evaluation seed trains the grid once and keeps the point that is best on its validation split; the "
            "same run's test score counts"
        )
    if search is None:
        return "one point is chosen for all evaluation seeds, on the tuning seeds, and trained with each"
    if search.repeats > 1:
        own = seeds // search.repeats
        plural = "s" * (own > 1)
        return f"each of {search.repeats} whole searches chooses ranks, evaluated on {own} seed{plural} of its own"
    return "one search chooses ranks, which are trained with each evaluation seed"


def holds_for(study: Study) -> str:
    """What a verdict is of."""
    if of_methods(study):
        return "of methods"
    return "of the chosen points, not of the methods" if study.config.search is None else "of these allocations"


def holds_over(study: Study, *, tuned: bool = True, rows: int | None = None) -> str:
    """What a verdict varies and what not, at the points that tuning chose or at a rate for all; `rows` of the test."""
    split = "this test split" if rows is None else f"this test split of {rows:,} rows"
    return f"over {'tuning and ' if tuned and of_methods(study) else ''}training seeds, for {split} and this W0"


def looked_at(study: Study) -> str:
    """'after 5, 8, 12 and 20 seeds', the looks at a study; empty where there is one."""
    looks = [str(look) for look in study.protocol.evaluation.looks]
    return f"after {', '.join(looks[:-1])} and {looks[-1]} seeds" if len(looks) > 1 else ""


def units_of(study: Study) -> str:
    """What the n of a comparison counts."""
    search = study.config.search
    return "searches" if search is not None and search.repeats > 1 else "seeds"
