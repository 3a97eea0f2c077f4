"""Ranks under a budget: what is decoded never exceeds it, and uses it up."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.studies.search.allocations import Drawn, Fixed, Grouped, Grouping, Prior, Priority
from experiments.studies.search.budget import Budget
from experiments.studies.search.samplers import Observation, suggest
from experiments.studies.search.search_space import LEAST_SENSITIVITY

SHAPES = {
    f"layers.{depth}.{kind}": shape
    for depth in range(4)
    for kind, shape in (("query", (64, 64)), ("up", (256, 64)), ("down", (64, 256)))
}
PLACES = {name: (name.split(".")[1], name.split(".")[2]) for name in SHAPES}
GROUPS = Grouping(2).of(SHAPES, PLACES)
UNITS = st.sampled_from([("total_rank", 4 * len(SHAPES)), ("parameters", 4 * sum(map(sum, SHAPES.values())))])
WEIGHTS = st.lists(st.floats(0, 1), min_size=len(SHAPES), max_size=len(SHAPES))
SENSITIVITIES = st.lists(st.floats(LEAST_SENSITIVITY, 1), min_size=len(SHAPES), max_size=len(SHAPES))


def budget(unit: str = "total_rank", amount: int = 48, highest: int = 32) -> Budget:
    return Budget.of(unit, amount, SHAPES, highest_rank=highest)  # type: ignore[arg-type]


@example(("total_rank", 48), [0.0] * 7 + [1.0] * 4 + [2e-311], 10)
@given(UNITS, WEIGHTS, st.integers(4, 64))
def test_a_division_never_exceeds_the_budget_and_leaves_no_room_for_a_rank(
    given_unit: tuple[str, int], weights: list[float], highest: int
) -> None:
    own = budget(*given_unit, highest)
    shares = dict(zip(SHAPES, weights, strict=True))
    ranks = own.divided(shares)
    own.refuse(ranks)
    left = own.amount - own.spent(ranks)
    assert left >= 0
    for name, weight in shares.items():
        assert weight > 0 or ranks[name] == 0
        assert weight == 0 or ranks[name] == own.limits[name] or own.costs[name] > left


@given(WEIGHTS.filter(any))
def test_a_total_rank_is_used_up_exactly_where_the_chosen_layers_can_hold_it(weights: list[float]) -> None:
    own, shares = budget(), dict(zip(SHAPES, weights, strict=True))
    room = sum(own.limits[name] for name, weight in shares.items() if weight > 0)
    assert sum(own.divided(shares).values()) == min(own.amount, room)


def test_equal_weights_are_the_uniform_allocation_and_unequal_ones_are_proportional() -> None:
    assert set(budget().divided(dict.fromkeys(SHAPES, 0.3)).values()) == {4}
    shapes = dict.fromkeys("abcd", (32, 32))
    own = Budget.of("total_rank", 12, shapes, highest_rank=32)
    assert own.divided({"a": 0.0, "b": 0.1, "c": 0.4, "d": 0.1}) == {"a": 0, "b": 2, "c": 8, "d": 2}


def test_what_rounding_down_leaves_goes_to_the_largest_remainders_and_equal_ones_in_the_order_of_the_layers() -> None:
    shapes = dict.fromkeys("cab", (32, 32))
    own = Budget.of("total_rank", 6, shapes, highest_rank=32)
    assert own.divided({"c": 3.2, "a": 1.7, "b": 1.1}) == {"c": 3, "a": 2, "b": 1}
    assert own.divided({"c": 2.5, "a": 2.5, "b": 1.0}) == {"c": 3, "a": 2, "b": 1}


def test_a_layer_at_its_limit_leaves_its_share_to_the_others() -> None:
    own = Budget.of("total_rank", 12, {"a": (4, 4), "b": (32, 32), "c": (32, 32)}, highest_rank=32)
    assert own.divided({"a": 1.0, "b": 0.01, "c": 0.01}) == {"a": 4, "b": 4, "c": 4}


def test_the_chosen_directions_are_those_of_the_highest_value_per_cost() -> None:
    own = Budget.of("parameters", 3 * 20, {"cheap": (10, 10), "dear": (20, 20)}, highest_rank=8)
    assert own.chosen({"cheap": [9.0, 1.0], "dear": [17.0, 2.0]}) == {"cheap": 1, "dear": 1}
    assert own.chosen({"cheap": [9.0, 8.0, 7.0], "dear": [13.0]}) == {"cheap": 3, "dear": 0}
    assert own.chosen({"cheap": [0.0], "dear": [0.0]}) == {"cheap": 0, "dear": 0}  # nothing to be gained
    alike = Budget.of("total_rank", 4, dict.fromkeys("cab", (8, 8)), highest_rank=8)
    assert alike.chosen({name: [1.0, 1.0] for name in "cab"}) == {"c": 2, "a": 1, "b": 1}  # in the order of the layers


@given(UNITS, st.data())
def test_every_point_of_every_encoding_keeps_to_the_budget_or_says_by_how_much_it_does_not(
    given_unit: tuple[str, int], data: st.DataObject
) -> None:
    own = budget(*given_unit)
    sensitivities = dict(zip(SHAPES, data.draw(SENSITIVITIES), strict=True))
    for allocation in (Priority(own), Grouped(own, GROUPS), Prior(own, GROUPS, sensitivities), Drawn(own)):
        point = {
            name: data.draw(st.integers(low, high) if isinstance(low, int) else st.floats(low, high))
            for name, (low, high, _) in allocation.space().items()
        }
        point["draw"] = data.draw(st.integers(0, 10**6))
        ranks = allocation.ranks(point)
        over = max(0, own.excess(ranks))
        assert allocation.excess(point) == (over if any(ranks.values()) else 1)  # what adapts nothing is no allocation
        assert over == 0 or allocation.may_exceed


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random", pytest.param("gp", marks=pytest.mark.slow)])
@settings(max_examples=2, deadline=None)
@given(UNITS, st.integers(0, 10**6))
def test_no_proposal_of_any_sampler_for_any_encoding_exceeds_the_budget(
    sampler: str, given_unit: tuple[str, int], seed: int
) -> None:
    """Whatever became of the trials before: a score, a stop on the way, a failure."""
    own, dice = budget(*given_unit), random.Random(seed)
    sensitivities = {name: dice.random() for name in SHAPES}
    for allocation in (Priority(own), Grouped(own, GROUPS), Prior(own, GROUPS, sensitivities)):
        tried: list[Observation] = []
        for first in (0, 4, 8):
            asked = suggest(
                allocation.space(),
                tried,
                range(first, first + 4),
                sampler=sampler,
                seed=seed,
                higher_is_better=bool(seed % 2),
                excess=lambda point, of=allocation: float(of.excess(point)),
            )
            for each in asked:
                own.refuse(allocation.ranks(each.point))
            ends = [(dice.random(), None), (dice.random(), None), (None, (5, dice.random())), (None, None)]
            tried += [
                Observation(each.point, score, reached, each.refused, each.excess)
                for each, (score, reached) in zip(asked, ends, strict=True)
            ]


def test_the_ranks_of_a_group_are_none_and_the_powers_of_two_up_to_the_highest() -> None:
    for highest in (1, 8, 100, 128):
        own = Budget.of("total_rank", 1, {"a": (200, 200)}, highest_rank=highest)
        grouped = Grouped(own, {"all": ["a"]})
        low, high, _ = grouped.space()["rank.all"]
        found = [grouped.ranks({"rank.all": place})["a"] for place in range(int(low), int(high) + 1)]
        assert found == [0, *(2**power for power in range(8) if 2**power <= highest)]


def test_the_residual_of_a_group_multiplies_its_weights_by_a_power_of_two() -> None:
    sensitivities = {name: 0.1 * place for place, name in enumerate(SHAPES, start=1)}
    prior = Prior(budget(), GROUPS, sensitivities)
    for residual in (1.0, -1.0):
        point = dict.fromkeys(prior.space(), 0.0) | {"power": 1.0, "residual.query.0": residual}
        factors = {name: 2.0**residual if name in GROUPS["query.0"] else 1.0 for name in SHAPES}
        assert prior.ranks(point) == budget().divided({name: sensitivities[name] * factors[name] for name in SHAPES})


def test_groups_are_kinds_of_matrix_by_blocks_of_depth() -> None:
    assert GROUPS["query.0"] == ["layers.0.query", "layers.1.query"]
    assert GROUPS["down.1"] == ["layers.2.down", "layers.3.down"]
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(SHAPES)
    ten = {f"h.{depth}": (8, 8) for depth in range(10)}
    by_depth = Grouping(3).of(ten, {name: (name.split(".")[1], "c") for name in ten})
    assert [len(names) for names in by_depth.values()] == [4, 3, 3]  # and 2 stands before 10
    assert len(Grouping(99).of(ten, {name: (name.split(".")[1], "c") for name in ten})) == 10


@pytest.mark.parametrize(("amount", "highest"), [(0, 32), (12 * 8 + 1, 8)])
def test_an_impossible_budget_is_refused_with_what_is_possible(amount: int, highest: int) -> None:
    with pytest.raises(ValueError, match=r"a budget of \d+ \(total_rank\) is impossible: one rank .* takes 1, .* take"):
        budget("total_rank", amount, highest)


UNEQUAL = {"a": (10, 20), "b": (7, 9)}


@pytest.mark.parametrize(("unit", "exact"), [("total_rank", 2 + 4), ("parameters", 2 * 30 + 4 * 16)])
def test_what_takes_the_whole_budget_is_kept_and_what_takes_one_more_is_not(unit: str, exact: int) -> None:
    ranks, point = {"a": 2, "b": 4}, {"rank.first": 2, "rank.second": 3}  # places among 0, 1, 2, 4
    for amount, over in ((exact + 1, -1), (exact, 0), (exact - 1, 1)):
        own = Budget.of(unit, amount, UNEQUAL, highest_rank=7)  # type: ignore[arg-type]
        grouped = Grouped(own, {"first": ["a"], "second": ["b"]})
        assert grouped.ranks(point) == ranks
        assert (own.excess(ranks), grouped.excess(point)) == (over, max(0, over))
        if over <= 0:
            assert Fixed(own, ranks).ranks({}) == ranks
        else:
            with pytest.raises(ValueError, match=rf"take {exact} \({unit}\) exceed the budget of {amount}"):
                Fixed(own, ranks)


@pytest.mark.parametrize(("unit", "least", "most"), [("total_rank", 1, 8 + 7), ("parameters", 16, 8 * 30 + 7 * 16)])
def test_the_least_and_the_most_that_ranks_can_take_are_possible_and_one_beyond_is_not(
    unit: str, least: int, most: int
) -> None:
    def of(amount: int) -> Budget:
        return Budget.of(unit, amount, UNEQUAL, highest_rank=8)  # type: ignore[arg-type]

    assert of(least).divided({"a": 0.0, "b": 1.0}) == {"a": 0, "b": 1}
    assert of(most).divided({"a": 1.0, "b": 1.0}) == {"a": 8, "b": 7}
    for amount in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"a budget of {amount}"):
            of(amount)


def test_ranks_beyond_the_budget_or_a_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="exceed the budget of 48"):
        Fixed(budget(), dict.fromkeys(SHAPES, 5))
    with pytest.raises(ValueError, match=r"rank 33 of layers.0.query is not in 0 ... 32"):
        Fixed(budget(), {"layers.0.query": 33})
