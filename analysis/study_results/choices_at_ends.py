"""Arms that chose at an end of what they were tuned over: a wider grid might have served them better."""

from collections.abc import Iterator

from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import ArmProgress
from experiments.studies.spec.study import Study


def choices_at_ends(study: Study, study_state: StudyState) -> list[str]:
    """A line for each arm and knob with such choices, once they are made; of arms without a verdict others tell."""
    tuned = [progress for progress in study_state.arms if progress.tuning.state == "tuned"]
    return [line for progress in tuned for line in (*_of_knobs(study, progress), *_of_rates(progress))]


def _of_knobs(study: Study, progress: ArmProgress) -> Iterator[str]:
    """Only rates are extended, so a knob at its end is all that there is to say of it."""
    chosen = [each.values for each in progress.tuning.replications if each.multiplier is not None]
    for knob, values in study.protocol.tuning.points.knobs.items():
        own = [each[knob] for each in chosen if knob in each]
        for end, word in ((max(values), "highest"), (min(values), "lowest")):
            if 2 * (count := own.count(end)) > len(own):
                yield (
                    f"{progress.arm.label}: {count} of {len(own)} {_choices(len(own))} the {word} {knob} of the grid, "
                    f"{end:g}: a grid that goes on there may serve it better"
                )


def _of_rates(progress: ArmProgress) -> Iterator[str]:
    replications = progress.tuning.replications
    if astray := sum(each.state == "not tuned" and each.multiplier is not None for each in replications):
        yield (
            f"{progress.arm.label}: {astray} of {len(replications)} {_choices(len(replications))} a rate at the end of "
            "their extended grid; with more than half it would not be tuned"
        )


def _choices(count: int) -> str:
    return "choices is" if count == 1 else "choices are"
