"""The figures of a search: maps of ranks, importances of knobs, and the front of score against parameters."""

import warnings
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.figures.registry import FIGURES, read_drawn, save_drawn, typed

ARMS = ("grouped", "priority", "prior", "uniform", "attention", "mlp", "gradient", "adalora", "random")
KINDS = ("query", "key", "value", "output", "up", "down")
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAN = float("nan")
ACCURACY = {"score": "accuracy", "higher_is_better": True}
BUDGET = 12288.0


def ranks_of(
    layers: int, arms: Sequence[str] = ARMS, kinds: Sequence[str] = KINDS, **changed: float | str
) -> pd.DataFrame:
    """Arms but 'uniform' have a range around the rank; rank 0 is among them."""
    draws = np.random.default_rng(0)
    rows = []
    for arm in arms:
        for layer in range(layers):
            for kind in kinds:
                rank = float(draws.choice([0, 1, 2, 4, 8, 16, 32]))
                known = {"low": rank // 2, "high": 2 * rank, "n": 8, "over": "8 contenders"} if arm != "uniform" else {}
                rows.append({
                    "arm": arm, "layer": str(layer), "kind": kind, "value": rank, "low": NAN, "high": NAN, "n": NAN,
                    "over": None, **ACCURACY, **known, **changed,
                })  # fmt: skip
    return typed(pd.DataFrame(rows))


def importances_of(shares: dict[str, dict[str, float]], **changed: float) -> pd.DataFrame:
    return typed(
        pd.DataFrame([
            {
                "knob": knob, "evaluator": evaluator, "value": share, "low": 0.8 * share, "high": 1.5 * share, "n": 48,
                "resamples": 50, **ACCURACY, **changed,
            }
            for evaluator, of_knobs in shares.items()
            for knob, share in of_knobs.items()
        ])
    )  # fmt: skip


SHARES = {
    "PED-ANOVA": {"query.0": 0.3, "learning_rate": 0.4, "down.1": 0.2, "alpha_per_rank": 0.1},
    "fANOVA": {"query.0": 0.15, "learning_rate": 0.05, "down.1": 0.8, "alpha_per_rank": 0.0},
}


def many_importances() -> pd.DataFrame:
    knobs = [f"{kind}.{layer}" for layer in range(12) for kind in KINDS]
    return importances_of({evaluator: dict.fromkeys(knobs, 1 / len(knobs)) for evaluator in SHARES})


def front_of(
    runs: Sequence[tuple[str, float, float]],
    front: Sequence[tuple[float, float]] = (),
    chosen: Sequence[tuple[str, float, float, float, float]] = (),
    **changed: Any,
) -> pd.DataFrame:
    """Runs of the arm 'uniform' are there once more as such."""
    rows: list[dict[str, Any]] = [
        {"arm": arm, "kind": "run", "parameters": size, "value": score} for arm, size, score in runs
    ]
    rows += [{**row, "kind": "uniform"} for row in rows if row["arm"] == "uniform"]
    rows += [{"arm": "grouped", "kind": "pareto_front", "parameters": size, "value": score} for size, score in front]
    rows += [
        {"arm": arm, "kind": "chosen", "parameters": size, "value": mean, "low": low, "high": high, "n": 5}
        for arm, size, mean, low, high in chosen
    ]
    empty = {"low": NAN, "high": NAN, "n": 1}
    return typed(
        pd.DataFrame([{**empty, **row, **ACCURACY, "budget": BUDGET, "units": "seeds", **changed} for row in rows])
    )


RUNS = [
    ("grouped", 12288.0, 0.90), ("grouped", 6144.0, 0.86), ("uniform", 12288.0, 0.88), ("uniform", 3072.0, 0.80),
    ("gradient", 12288.0, 0.84),
]  # fmt: skip
STEPS = [(12288.0, 0.90), (3072.0, 0.80), (6144.0, 0.86)]
CHOSEN = [
    ("grouped", 12288.0, 0.885, 0.87, 0.90), ("uniform", 12288.0, 0.875, 0.86, 0.89),
    ("gradient", 12288.0, 0.885, 0.80, 0.97),
]  # fmt: skip


def many_runs(arms: Sequence[str] = ARMS) -> pd.DataFrame:
    draws = np.random.default_rng(1)
    sizes = np.exp(draws.uniform(np.log(2000), np.log(60000), 400))
    scores = 0.9 - 0.3 * np.exp(-sizes / 8000) - draws.exponential(0.02, 400)
    runs = [
        (arms[i % len(arms)], float(size), float(score))
        for i, (size, score) in enumerate(zip(sizes, scores, strict=True))
    ]
    means = [(arm, BUDGET, 0.85, 0.84, 0.86) for arm in arms]
    return front_of(runs, sorted((size, score) for _, size, score in runs)[:1], means)


TABLES = {
    "24 matrices of 9 arms": ("rank_map", ranks_of(4)),
    "72 matrices of 9 arms": ("rank_map", ranks_of(12)),
    "224 matrices of 9 arms": ("rank_map", ranks_of(32, kinds=LLAMA)),
    "4 arms": ("rank_map", ranks_of(4, ARMS[:4])),
    "5 arms with long names": (
        "rank_map",
        ranks_of(2, [f"lora {arm} sampler=cmaes search_seed=3" for arm in ARMS[:5]], ("attention.output", "query")),
    ),
    "one cell": ("rank_map", ranks_of(1, ["grouped"], ["query"])),
    "few knobs": ("rank_importance", importances_of(SHARES)),
    "72 knobs": ("rank_importance", many_importances()),
    "one knob": ("rank_importance", importances_of({"fANOVA": {"learning_rate": 1.0}})),
    "few runs": ("score_by_parameters", front_of(RUNS, STEPS, CHOSEN)),
    "400 runs of 9 arms": ("score_by_parameters", many_runs()),
    "27 arms": ("score_by_parameters", many_runs([f"{arm} {seed}" for seed in range(3) for arm in ARMS])),
    "long names": ("score_by_parameters", many_runs([f"lora {arm} sampler=cmaes search_seed=3" for arm in ARMS])),
    "one run": ("score_by_parameters", front_of(RUNS[:1], STEPS[:1], budget=NAN)),
}


def drawn(name: str, table: pd.DataFrame) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, where a layout does not fit
        figure = FIGURES[name](table)
        FigureCanvasAgg(figure).draw()
    return figure


def panels(figure: Figure) -> dict[str, Axes]:
    """Title -> axes, without the colour bar."""
    return {
        axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"
    }


def colour_bar(figure: Figure) -> Axes:
    [axes] = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    return axes


def mesh(axes: Axes) -> QuadMesh:
    [found] = [part for part in axes.collections if isinstance(part, QuadMesh)]
    return found


def ticks(axes: Axes, along: str) -> list[str]:
    return [label.get_text() for label in getattr(axes, f"get_{along}ticklabels")()]


def cell_words(axes: Axes) -> dict[tuple[int, int], list[str]]:
    """Row and column -> what stands in the cell, from the top."""
    found: dict[tuple[int, int], list[Text]] = {}
    for text in axes.texts:
        column, row = text.get_position()
        found.setdefault((int(row), int(column)), []).append(text)
    return {
        cell: [text.get_text() for text in sorted(texts, key=lambda text: -text.get_window_extent().y0)]
        for cell, texts in found.items()
    }


def points(axes: Axes, marker: str, size: float | None = None) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == marker and size in (None, line.get_markersize())
        for x, y in zip(*map(np.atleast_1d, line.get_data()), strict=True)
    ]


def thresholds(axes: Axes) -> list[list[list[float]]]:
    return [
        part.tolist()
        for found in axes.collections
        if isinstance(found, LineCollection)
        for part in found.get_segments()
        if len(part) and np.isfinite(part).all()
    ]


def caption(figure: Figure) -> str:
    return figure.texts[-1].get_text().replace("\n", " ")


@pytest.mark.parametrize("case", ["5 arms with long names", "one cell", "few knobs", "few runs", "one run"])
def test_a_figure_of_a_search_comes_again_from_its_saved_table_alone(tmp_path: Path, case: str) -> None:
    name, table = TABLES[case]
    (tmp_path / "first").mkdir()
    (tmp_path / "again").mkdir()
    first = save_drawn(name, table, tmp_path / "first")
    saved = read_drawn(first[0])
    again = save_drawn(name, saved, tmp_path / "again")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    pd.testing.assert_frame_equal(saved, table)


@pytest.mark.parametrize("case", TABLES)
def test_a_figure_of_a_search_has_room_for_all_its_words(case: str) -> None:
    name, table = TABLES[case]
    figure = drawn(name, table)
    renderer = FigureCanvasAgg(figure).get_renderer()
    there = [axes for axes in figure.axes if axes.axison]
    boxes = [part.get_tightbbox(renderer) for part in (*there, *figure.legends, *figure.texts)]
    for box in boxes:
        assert box is not None
        assert min(box.x0, box.y0) >= -1
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y1 <= figure.bbox.y1 + 1
    for box, other in combinations(boxes, 2):
        assert min(box.x1, other.x1) - max(box.x0, other.x0) <= 1 or min(box.y1, other.y1) - max(box.y0, other.y0) <= 1
    for axes in there:
        for along, of_axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            low, high = sorted(of_axis.get_view_interval())
            labels = [tick.label1 for tick in of_axis.get_major_ticks() if low <= tick.get_loc() <= high]
            shown = [label.get_window_extent(renderer) for label in labels if label.get_visible() and label.get_text()]
            ends = sorted((box.x0, box.x1) if along == "x" else (box.y0, box.y1) for box in shown)
            assert all(one[1] <= other[0] + 1 for one, other in pairwise(ends)), along


def test_every_matrix_of_every_arm_has_the_colour_of_its_rank_on_one_scale() -> None:
    table = ranks_of(4)
    figure = drawn("rank_map", table)
    found = panels(figure)
    assert list(found) == list(ARMS)
    for arm, axes in found.items():
        of_arm = table[table["arm"] == arm].set_index(["layer", "kind"])["value"]
        cells = mesh(axes).get_array()
        assert cells.shape == (4, 6)
        assert cells.tolist() == [[of_arm[str(layer), kind] for kind in KINDS] for layer in range(4)]
        assert (mesh(axes).norm.vmin, mesh(axes).norm.vmax) == (0, 32)
        assert mesh(axes).cmap.name == "viridis"
    lowest, highest = axes.get_ylim()[::-1]
    assert lowest < 0 < 3 < highest  # layer 0 on top
    apart = np.diff(np.asarray(mesh(axes).norm(np.array([0.0, 2.0, 4.0, 8.0, 32.0]))))
    assert apart.min() > 0.1
    threshold = colour_bar(figure)
    assert threshold.get_xlabel() == "rank"
    assert ticks(threshold, "x") == ["0", "1", "2", "4", "8", "16", "32"]


def test_layers_and_kinds_stand_in_the_order_in_which_they_come() -> None:
    table = pd.concat([ranks_of(11, ["grouped"], ["up", "query"]), ranks_of(1, ["grouped"], ["head"], layer="–")])
    [axes] = panels(drawn("rank_map", table)).values()
    assert ticks(axes, "y") == [*map(str, range(11)), "–"]
    assert ticks(axes, "x") == ["up", "query", "head"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("kind of matrix", "layer")


def test_a_cell_says_its_rank_and_below_it_the_range_where_there_is_one() -> None:
    table = ranks_of(2, ["grouped", "uniform"])
    found = panels(drawn("rank_map", table))
    for row in table.to_dict("records"):
        words = [f"{row['value']:.0f}"]
        if row["arm"] == "grouped" and row["value"] > 0:
            words.append(f"{row['low']:.0f}–{row['high']:.0f}")
        assert cell_words(found[row["arm"]])[int(row["layer"]), KINDS.index(row["kind"])] == words
    assert (table["value"] == 0).any()
    sizes = {text.get_text(): text.get_fontsize() for text in found["grouped"].texts}
    assert max(size for words, size in sizes.items() if "–" in words) < min(
        size for words, size in sizes.items() if "–" not in words
    )


def test_a_median_between_two_ranks_is_not_rounded_to_one_of_them() -> None:
    table = ranks_of(1, ["grouped"], ["query"], value=2.5, low=1, high=4, n=10, over="10 searches")
    figure = drawn("rank_map", table)
    assert cell_words(panels(figure)["grouped"]) == {(0, 0): ["2.5", "1–4"]}
    assert "of several searches the median" in caption(figure)


def test_words_in_a_cell_can_be_told_from_its_colour() -> None:
    axes = panels(drawn("rank_map", ranks_of(12, ["grouped"])))["grouped"]
    map_of = mesh(axes)
    cells = map_of.get_array()
    for text in axes.texts:
        column, row = (int(at) for at in text.get_position())
        rgb = np.array(map_of.cmap(map_of.norm(cells[row, column]))[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        light = float(linear @ [0.2126, 0.7152, 0.0722])
        contrast = (light + 0.05) / 0.05 if text.get_color() == "black" else 1.05 / (light + 0.05)
        assert contrast > 4


@pytest.mark.parametrize(
    ("layers", "with_ranks", "with_ranges"), [(12, True, True), (16, True, False), (32, False, False)]
)
def test_words_stay_inside_their_cells_and_ranges_leave_before_ranks(
    layers: int, with_ranks: bool, with_ranges: bool
) -> None:
    figure = drawn("rank_map", ranks_of(layers))
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = panels(figure)["grouped"]
    texts = axes.texts
    assert any("–" not in text.get_text() for text in texts) == with_ranks
    assert any("–" in text.get_text() for text in texts) == with_ranges
    assert ("small: the range of its ranks over 8 contenders" in caption(figure)) == with_ranges
    assert ("not drawn, but in the table: the range" in caption(figure)) != with_ranges
    wide, high = axes.bbox.width / 6, axes.bbox.height / layers
    for text in texts:
        box, (x, y) = text.get_window_extent(renderer), axes.transData.transform(text.get_position())
        assert box.x0 >= x - wide / 2
        assert box.x1 <= x + wide / 2
        assert box.y0 >= y - 0.62 * high  # what is below the baseline is empty under figures
        assert box.y1 <= y + 0.62 * high


def test_long_names_of_kinds_take_no_room_from_the_maps() -> None:
    short, long = (
        panels(drawn("rank_map", ranks_of(2, ARMS[:5], kinds)))["grouped"].bbox.height
        for kinds in (["up", "query"], ["intermediate_of_all", "query"])
    )
    assert long > 0.95 * short


def test_where_an_arm_has_no_such_matrix_the_map_is_blank() -> None:
    table = ranks_of(3, ["grouped", "prior"])
    lacking = (table["layer"] == "1") & (table["kind"] == "up") & (table["arm"] == "prior")
    figure = drawn("rank_map", table[~lacking])
    found = panels(figure)
    assert np.argwhere(np.ma.getmaskarray(mesh(found["prior"]).get_array())).tolist() == [[1, KINDS.index("up")]]
    assert (1, KINDS.index("up")) not in cell_words(found["prior"])
    assert not np.ma.getmaskarray(mesh(found["grouped"]).get_array()).any()
    assert "blank: no such matrix" in caption(figure)
    assert "blank" not in caption(drawn("rank_map", table))


def test_the_caption_says_over_what_the_ranges_are_arm_by_arm_where_they_differ() -> None:
    one = drawn("rank_map", ranks_of(2, ["grouped", "mlp"]))
    assert caption(one).endswith("chosen by validation accuracy (higher is better); small: the range of its ranks over "
                                 "8 contenders")  # fmt: skip
    table = pd.concat([ranks_of(2, ["grouped", "uniform", "mlp"]), ranks_of(2, ["random"], over="10 searches")])
    assert "over 8 contenders (grouped, mlp) and 10 searches (random)" in caption(drawn("rank_map", table))
    bare = caption(drawn("rank_map", ranks_of(2, ["uniform"])))
    assert "range" not in bare


@pytest.mark.parametrize(("rank", "labels"), [(8.0, ["0", "1", "2", "4", "8"]), (0.0, ["0", "1"]), (9.0, None)])
def test_ranks_that_are_all_equal_have_a_scale_from_zero(rank: float, labels: list[str] | None) -> None:
    figure = drawn("rank_map", ranks_of(2, ["uniform"], value=rank))
    [axes] = panels(figure).values()
    assert set(mesh(axes).get_array().ravel()) == {rank}
    assert mesh(axes).norm.vmin == 0
    assert ticks(colour_bar(figure), "x") == (labels or ["0", "1", "2", "4", "9"])  # 8 and 9 would touch


def test_knobs_are_sorted_by_fanova_and_each_evaluator_has_its_panel() -> None:
    figure = drawn("rank_importance", importances_of(SHARES))
    found = panels(figure)
    assert list(found) == ["fANOVA", "PED-ANOVA"]
    knobs = ["down.1", "query.0", "learning_rate", "alpha_per_rank"]
    assert ticks(found["fANOVA"], "y") == knobs
    bottom, top = found["fANOVA"].get_ylim()
    assert top < 0 < 3 < bottom
    for evaluator, marker in (("fANOVA", "o"), ("PED-ANOVA", "s")):
        shares = SHARES[evaluator]
        assert sorted(points(found[evaluator], marker)) == sorted(
            (shares[knob], float(place)) for place, knob in enumerate(knobs)
        )
        for place, knob in enumerate(knobs):
            assert [[0.8 * shares[knob], place], [1.5 * shares[knob], place]] in thresholds(found[evaluator])
        low, high = found[evaluator].get_xlim()
        assert low == 0
        assert high > 1.2
        assert found[evaluator].get_xlabel() == "importance (share of 1)"
    colours = {line.get_color() for axes in found.values() for line in axes.lines}
    assert len(colours) == 2


def test_the_caption_of_importances_says_trials_resamples_and_what_sums_to_one() -> None:
    words = caption(drawn("rank_importance", importances_of(SHARES)))
    assert "computed on n = 48 random trials" in words
    assert "bars: 10th to 90th percentile over 50 resamples of the trials" in words
    assert "the shares of one evaluator sum to one" in words
    assert "sorted by fANOVA" in words


def test_one_evaluator_without_resamples_is_one_panel_sorted_by_itself() -> None:
    table = importances_of({"PED-ANOVA": SHARES["PED-ANOVA"]}, low=NAN, high=NAN, resamples=NAN)
    figure = drawn("rank_importance", table)
    [axes] = panels(figure).values()
    assert ticks(axes, "y") == ["learning_rate", "query.0", "down.1", "alpha_per_rank"]
    assert not thresholds(axes)
    assert "thresholds" not in caption(figure)
    assert "sorted by PED-ANOVA" in caption(figure)
    assert axes.get_xlim() == pytest.approx((0, 1.06 * 0.4))


def test_a_knob_that_one_evaluator_leaves_out_still_has_its_row() -> None:
    shares = {**SHARES, "fANOVA": {"down.1": 1.0}}
    found = panels(drawn("rank_importance", importances_of(shares)))
    assert ticks(found["fANOVA"], "y")[0] == "down.1"
    assert set(ticks(found["fANOVA"], "y")) == set(SHARES["PED-ANOVA"])
    assert points(found["fANOVA"], "o") == [(1.0, 0.0)]


def test_importances_that_are_all_zero_have_an_axis() -> None:
    none = importances_of({"fANOVA": {"query.0": 0.0, "up.0": 0.0}})
    [axes] = panels(drawn("rank_importance", none)).values()
    assert axes.get_xlim() == (0, 1)


def test_runs_uniform_runs_front_and_means_are_where_the_table_has_them() -> None:
    figure = drawn("score_by_parameters", front_of(RUNS, STEPS, CHOSEN))
    axes, beside = figure.axes
    sizes = [(size, score) for _, size, score in RUNS]
    runs = next(line for line in axes.lines if line.get_color() == (0.7, 0.7, 0.7))
    assert list(zip(*runs.get_data(), strict=True)) == sizes
    uniform = next(line for line in axes.lines if line.get_marker() == "s" and line.get_markersize() == 3)
    assert list(zip(*uniform.get_data(), strict=True)) == sizes[2:4]
    [front] = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert list(zip(*front.get_data(), strict=True)) == [*sorted(STEPS), (12288.0, 0.90)]
    assert uniform.get_zorder() > runs.get_zorder()
    for marker, (_, size, mean, _, _) in zip("osD", CHOSEN, strict=True):
        assert points(axes, marker, 5.5) == [(size, mean)]
    [line] = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert set(line.get_xdata()) == {BUDGET}
    assert axes.get_xlabel() == "parameters in A and B"
    assert axes.get_ylabel().replace("\n", " ") == "validation accuracy (higher is better)"
    assert beside.get_ylim() == axes.get_ylim()


def test_means_at_one_budget_stand_side_by_side_with_interval_and_name() -> None:
    figure = drawn("score_by_parameters", front_of(RUNS, STEPS, CHOSEN))
    _, beside = figure.axes
    assert ticks(beside, "x") == ["grouped", "uniform", "gradient"]
    for place, (marker, (_, _, mean, low, high)) in enumerate(zip("osD", CHOSEN, strict=True)):
        assert points(beside, marker) == [(place, mean)]
        assert [[place, low], [place, high]] in thresholds(beside)
    bottom, top = beside.get_ylim()
    assert bottom < 0.80
    assert top > 0.97


def test_an_arm_has_one_look_in_both_panels_and_the_uniform_one_the_colour_of_its_runs() -> None:
    axes, beside = drawn("score_by_parameters", many_runs()).axes
    looks = [
        [(line.get_color(), line.get_marker()) for line in one.lines if line.get_markersize() == 5.5]
        for one in (axes, beside)
    ]
    assert looks[0] == looks[1]
    colours, markers = zip(*looks[0], strict=True)
    assert len(set(colours)) == len(set(markers)) == len(ARMS)
    of_runs = next(line.get_color() for line in axes.lines if line.get_markersize() == 3)
    assert colours[ARMS.index("uniform")] == of_runs


def test_the_legend_and_the_caption_name_what_is_there_and_nothing_else() -> None:
    figure = drawn("score_by_parameters", front_of(RUNS, STEPS, CHOSEN))
    [legend] = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["run", "run of the uniform allocation", "Pareto front", "budget"]
    assert "5 finished runs" in caption(figure)
    assert "means of n = 5 seeds with 95 % t-intervals" in caption(figure)
    bare = drawn("score_by_parameters", front_of(RUNS[:1], budget=NAN))
    [legend] = bare.legends
    assert [text.get_text() for text in legend.get_texts()] == ["run"]
    assert caption(bare) == "dots: 1 finished run of all stages"
    assert len(bare.axes) == 1


@pytest.mark.parametrize(
    ("sizes", "scale"), [((4000.0, 11000.0), "linear"), ((3000.0, 12000.0), "log"), ((0.0, 9e5), "linear")]
)
def test_parameters_are_on_a_logarithmic_axis_where_their_range_is_wide(sizes: tuple[float, float], scale: str) -> None:
    axes = drawn("score_by_parameters", front_of([("grouped", size, 0.5) for size in sizes], budget=NAN)).axes[0]
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    assert low < sizes[0] < sizes[1] < high
    shown = [tick.label1.get_text() for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(shown) >= 3
    assert all(text.endswith("k") or text == "0" for text in shown)


def test_a_budget_beyond_all_runs_is_in_the_frame() -> None:
    low, high = drawn("score_by_parameters", front_of(RUNS, budget=50000.0)).axes[0].get_xlim()
    assert low < 3072
    assert high > 50000


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_runs_that_diverged_lie_beyond_the_frame_and_are_counted(higher_is_better: bool) -> None:
    sign = 1 if higher_is_better else -1
    runs = [("grouped", 3000.0 + 100 * i, sign * (0.8 + 0.005 * i)) for i in range(20)]
    lost = [("grouped", 1000.0, -sign * 1e6), ("grouped", 1500.0, -sign * float("inf"))]
    means = [("grouped", 4900.0, sign * 0.85, sign * 0.85 - 0.1, sign * 0.85 + 0.1)]
    table = front_of([*runs, *lost], [(1000.0, -sign * 1e6), (4900.0, sign * 0.895)], means)
    figure = drawn("score_by_parameters", table.assign(higher_is_better=higher_is_better))
    low, high = sorted(sign * end for end in figure.axes[0].get_ylim())
    assert -1 < low < 0.75
    assert 0.95 < high < 2
    assert "2 worse runs lie beyond the frame" in caption(figure)
    assert "beyond" not in caption(drawn("score_by_parameters", front_of(RUNS, STEPS, CHOSEN)))


def test_runs_that_are_all_equal_and_means_without_interval_are_drawn() -> None:
    runs = [("uniform", 4096.0, 0.5)] * 3
    table = front_of(runs, [(4096.0, 0.5)], [("uniform", 4096.0, 0.5, NAN, NAN)], budget=NAN)
    figure = drawn("score_by_parameters", table)
    axes, beside = figure.axes
    assert points(axes, "o") == [(4096.0, 0.5)]
    assert not thresholds(beside)
    assert "t-interval" not in caption(figure)
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < high
