"""How often the verdicts of a study are wrong, its tuning inside: with replicated tuning as often as they say."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from simulated_tuning import (
    ALPHA,
    INDEPENDENT,
    PLACES,
    SHARED,
    Noise,
    Scores,
    any_of,
    choose,
    curve,
    replicated,
    shared,
    verdicts,
)
from synthetic_studies import Ending, study_of, study_state_of

from analysis.study_results.conclusion import conclusion_of
from experiments.studies.protocol.trials import PlannedTrial

FAMILIES = 2000
MARGIN = 1.7  # standard deviations of a run's score
NO_MARGIN = 1e-9  # so that no difference is called equivalent before it is called better or worse
COSTS = (0.0, 0.5, 1.0, 2.0, 4.0)  # of a squared step of the grid
NOISES = {"own noise": INDEPENDENT, "noise that arms share": SHARED}
TUNING = 2  # seeds, where tuning is shared


def allowed(families: int = FAMILIES) -> float:
    return ALPHA + 3 * float(np.sqrt(ALPHA * (1 - ALPHA) / families))


def simulated(
    cost: float, noise: Noise, *, comparisons: int, seeds: int, shift: float = 0.0, families: int = FAMILIES
) -> Scores:
    """Equal arms, whose optimum lies anywhere between two points; all but the reference are better by `shift`."""
    generator = np.random.default_rng([int(10 * cost), comparisons, seeds, int(100 * noise.seed)])
    drawn = noise.draw(generator, (families, comparisons + 1, seeds))
    level = curve(cost, generator.uniform(-0.5, 0.5, families))
    level = level - shift * (np.arange(comparisons + 1) > 0)[None, :, None, None]
    return Scores(drawn.validation + level, drawn.test + level)


def false_words(cost: float, noise: Noise, *, comparisons: int, seeds: int) -> tuple[float, float]:
    """Shares of families with a false better or worse, and with a false equivalent at the margin."""
    equal = simulated(cost, noise, comparisons=comparisons, seeds=seeds)
    apart = simulated(cost, noise, comparisons=comparisons, seeds=seeds, shift=MARGIN)
    differ = any_of(verdicts(*replicated(equal), NO_MARGIN), "better", "worse")
    return differ, any_of(verdicts(*replicated(apart), MARGIN), "equivalent")


@pytest.mark.parametrize("how", ["replicated", "shared"])
def test_the_simulated_studies_are_those_of_the_protocol(how: str, tmp_path: Path) -> None:
    """Twenty families through the real choice, table and verdicts, failures and extended grids included."""
    generator = np.random.default_rng(7)
    arms, own = 4, 6
    tuning: dict[str, object] = {"shared": True, "seeds": [100, 101]} if how == "shared" else {}
    grid = {"grid": {"learning_rate_multipliers": [0.25, 0.5, 1, 2, 4]}}
    study = study_of(
        tmp_path,
        arms=[{"variant": "lora", "rank": 2, "dropout": [0.0, 0.1, 0.2, 0.3]}],
        protocol={"margin": 1.0, "tuning": grid | tuning, "reference": {"dropout": 0.0}},
    )
    place = {arm.config_hash: number for number, arm in enumerate(study.arms)}
    ends, seen = 0, set[str]()
    for _ in range(20):
        count = own + TUNING * (how == "shared")
        drawn = INDEPENDENT.draw(generator, (1, arms, count))
        level = curve(float(generator.choice([0.0, 0.3, 2.0])), generator.uniform(-3, 3, 1))
        level = level + generator.choice([0.0, 0.0, 3.0], size=(1, arms, 1, 1))
        scores = Scores(drawn.validation + level, drawn.test + level)
        scores.validation[generator.random(scores.validation.shape) < 0.05] = np.nan
        seeds = {seed: n for n, seed in enumerate([*([100, 101] if how == "shared" else []), *range(own)])}

        def outcome(trial: PlannedTrial, scores: Scores = scores, seeds: dict[int, int] = seeds) -> Ending:
            step = round(np.log2(trial.multiplier or 1))
            at = (0, place[trial.arm.config_hash], seeds[trial.seed], int(np.flatnonzero(step == PLACES)[0]))
            if trial.stage == "evaluation" and how == "shared":  # a run of its own, which has not failed
                return {"score": 1.0, "loss": 1.0, "test": scores.test[at]}
            if np.isnan(scores.validation[at]):
                return {"failure": "diverged"}
            return {"score": scores.validation[at], "loss": 1.0, "test": scores.test[at]}

        conclusion = conclusion_of(study, study_state_of(study, outcome), tmp_path)
        compared = conclusion.summary["comparisons"]["families"]["tuned"]["comparisons"]
        chosen, tuned = replicated(scores) if how == "replicated" else shared(scores, TUNING)
        expected = verdicts(chosen, tuned, 1.0)[0]
        assert [each["verdict"] or "" for each in compared] == expected.tolist()
        ends += int((~tuned).sum())
        seen |= set(expected.tolist())
    assert ends > 0
    assert {"better", "worse", "undecided"} & seen


def test_the_simulation_extends_and_counts_ends_as_the_protocol_says() -> None:
    validation = np.full((3, len(PLACES)), 9.0)
    validation[0, 6], validation[0, 7] = 2.0, 1.0  # at the upper end, and better beyond it
    validation[1, 2] = 1.0  # at the lower end, no better beyond it
    validation[2, 4] = 1.0
    validation[2, 8] = 0.0  # nobody goes there
    place, at_end = choose(validation)
    assert place.tolist() == [7, 2, 4]
    assert at_end.tolist() == [False, False, False]
    validation[0, 8] = 0.5
    assert choose(validation)[1].tolist() == [True, False, False]


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("cost", [0.0, 1.0])
def test_equal_methods_rarely_get_a_word_that_says_otherwise(cost: float, noise: Noise) -> None:
    for comparisons, seeds in ((1, 8), (18, 8)):
        differ, equivalent = false_words(cost, noise, comparisons=comparisons, seeds=seeds)
        assert max(differ, equivalent) <= allowed()


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("cost", COSTS)
def test_equal_methods_rarely_get_a_word_that_says_otherwise_whatever_the_study(cost: float, noise: Noise) -> None:
    for comparisons, seeds in itertools.product((1, 18), (5, 8, 20)):
        differ, equivalent = false_words(cost, noise, comparisons=comparisons, seeds=seeds)
        assert max(differ, equivalent) <= allowed(), (comparisons, seeds, differ, equivalent)


def unlike(optimum: float, noise: Noise, *, seeds: int, comparisons: int, families: int) -> Scores:
    """A steep reference and flat arms, to which the luck of tuning is worth more; their means are made equal."""
    generator = np.random.default_rng([int(100 * optimum), seeds, comparisons, int(100 * noise.seed)])

    def draw(count: int) -> Scores:
        drawn = noise.draw(generator, (count, comparisons + 1, seeds))
        at = np.full(count, optimum)
        level = np.repeat(curve(0.25, at), comparisons + 1, axis=1)
        level[:, :1] = curve(4.0, at)
        return Scores(drawn.validation + level, drawn.test + level)

    means = replicated(draw(100_000 // (seeds * (comparisons + 1))))[0].mean((0, 2))
    means[1:] = means[1:].mean()
    found = draw(families)
    return Scores(found.validation, found.test - means[None, :, None, None])


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
@pytest.mark.parametrize("optimum", [0.0, 0.25, 0.5])
def test_a_flat_method_and_a_steep_one_of_equal_means_rarely_get_a_word_that_says_otherwise(
    optimum: float, noise: Noise
) -> None:
    for comparisons, seeds in itertools.product((1, 18), (5, 8, 20)):
        scores = unlike(optimum, noise, seeds=seeds, comparisons=comparisons, families=FAMILIES)
        differ = any_of(verdicts(*replicated(scores), NO_MARGIN), "better", "worse")
        apart = Scores(scores.validation, scores.test - MARGIN * (np.arange(comparisons + 1) > 0)[None, :, None, None])
        equivalent = any_of(verdicts(*replicated(apart), MARGIN), "equivalent")
        assert max(differ, equivalent) <= allowed(), (comparisons, seeds, differ, equivalent)


@pytest.mark.parametrize(("seeds", "least"), [(8, 0.10), (20, 0.30)])
def test_a_shared_tuning_forgets_its_own_noise_and_is_wrong_the_more_often_the_more_seeds(
    seeds: int, least: float
) -> None:
    scores = simulated(1.0, INDEPENDENT, comparisons=18, seeds=seeds + TUNING)
    assert any_of(verdicts(*shared(scores, TUNING), NO_MARGIN), "better", "worse") >= least
