"""The figures of a study: each shows its table, all of it, and comes again from the saved table alone."""

import warnings
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic_studies import CONFIGS, Ending, study_of, study_state_of, valley

from analysis.figures.registry import FIGURES, read_drawn, save_drawn
from analysis.study_results.conclusion import conclusion_of
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.search import importance
from experiments.studies.spec.study import load_study


def eventful(trial: PlannedTrial) -> Ending:
    """A rate of lora fails at rank 4, an evaluation run of rslora at rank 4, and rslora at rank 2 is extended."""
    if trial.arm.label == "lora r=4" and trial.stage == "tuning" and trial.learning_rate == 2 * trial.arm.centre:
        return {"failure": "not finite at step 3"}
    if trial.arm.label == "rslora r=4" and trial.stage == "evaluation" and trial.seed == 5:
        return {"failure": "not finite at step 4"}
    return valley(trial, best=4 if trial.arm.label == "rslora r=2" else 1)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("tables")
    study = study_of(folder, protocol={"fixed_learning_rates": [1e-3]})
    return dict(conclusion_of(study, study_state_of(study, eventful), folder).drawn)


def drawn_points(axes: Axes, marker: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for line in axes.lines
        if line.get_marker() == marker
        for x, y in zip(*map(np.atleast_1d, line.get_data()), strict=True)
    ]


def segments(axes: Axes) -> list[np.ndarray]:
    return [
        part
        for found in axes.collections
        if isinstance(found, LineCollection)
        for part in found.get_segments()
        if len(part)
    ]


def words(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


def test_a_study_draws_scores_rates_and_comparisons(tables: dict[str, pd.DataFrame]) -> None:
    assert set(tables) == {"score_by_rank", "score_by_rank_and_rate", "learning_rates", "comparisons"}


@pytest.mark.parametrize("name", ["score_by_rank", "learning_rates", "comparisons"])
def test_a_figure_comes_again_from_its_saved_table_alone(
    tables: dict[str, pd.DataFrame], tmp_path: Path, name: str
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "again").mkdir()
    first = save_drawn(name, tables[name], tmp_path / "first")
    again = save_drawn(name, read_drawn(first[0]), tmp_path / "again")
    assert [path.name for path in first] == [f"{name}.{kind}" for kind in ("csv", "png", "pdf")]
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert len(list((tmp_path / "first").iterdir())) == 3
    saved = read_drawn(first[0])
    for column in tables[name]:
        ours, theirs = saved[column], tables[name][column]
        assert ours.isna().tolist() == theirs.isna().tolist()
        assert ours.dropna().tolist() == theirs.dropna().tolist()


def test_means_intervals_runs_and_failures_are_where_the_table_has_them(tables: dict[str, pd.DataFrame]) -> None:
    scores = tables["score_by_rank"]
    [axes] = redrawn_axes("score_by_rank", scores)
    for line, marker in (("lora", "o"), ("rslora", "s")):
        of_line = scores[scores["line"] == line]
        means = of_line[of_line["kind"] == "mean"]
        found = drawn_points(axes, marker)
        assert [y for _, y in found] == means["value"].tolist()
        assert np.round(np.log2([x for x, _ in found])).tolist() == np.log2(means["rank"].astype(float)).tolist()
        for _, low, high in means[["value", "low", "high"]].itertuples(index=False):
            assert any(part[:, 1].tolist() == [low, high] for part in segments(axes))
    runs = scores[(scores["kind"] == "seed") & scores["rank"].notna()]["value"]
    assert sorted(y for _, y in drawn_points(axes, ".")) == sorted(runs)
    assert len(drawn_points(axes, "x")) == (scores["kind"] == "failed").sum() == 1
    full = scores[(scores["line"] == "full") & (scores["kind"] == "mean")].iloc[0]
    assert any(np.all(line.get_ydata() == full["value"]) for line in axes.lines)
    band = next(patch for patch in axes.patches).get_extents().transformed(axes.transData.inverted())
    assert (band.y0, band.y1) == pytest.approx((full["low"], full["high"]))


def redrawn_axes(name: str, table: pd.DataFrame) -> list[Axes]:
    figure = FIGURES[name](table)
    FigureCanvasAgg(figure).draw()
    return [axes for axes in figure.axes if axes.axison]


@pytest.mark.parametrize(("units", "said"), [("seeds", "dots: single runs"), ("searches", "dots: searches")])
def test_the_scores_say_what_their_means_are_over(tables: dict[str, pd.DataFrame], units: str, said: str) -> None:
    figure = FIGURES["score_by_rank"](tables["score_by_rank"].assign(units=units))
    told = " ".join(text.replace("\n", " ") for text in words(figure))
    assert f" {units} with 95 % t-intervals" in told
    assert said in told


def test_titles_of_two_knobs_are_broken_over_lines_and_meet_no_other(tables: dict[str, pd.DataFrame]) -> None:
    rates = tables["learning_rates"]
    figure = FIGURES["learning_rates"](rates.assign(line=rates["line"] + " alpha_per_rank=32 learning_rate_ratio=16"))
    FigureCanvasAgg(figure).draw()
    titles = [text for text in figure.findobj(Text) if "learning_rate_ratio" in text.get_text()]
    assert len(titles) == rates["line"].nunique()
    boxes = [title.get_window_extent() for title in titles]
    assert all(not one.overlaps(other) for one, other in combinations(boxes, 2))


def test_an_arm_without_verdict_is_hollow(tables: dict[str, pd.DataFrame]) -> None:
    [axes] = redrawn_axes("score_by_rank", tables["score_by_rank"])
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    means = tables["score_by_rank"].query("kind == 'mean' and excluded.notna()")
    assert [float(line.get_ydata()[0]) for line in hollow] == means["value"].tolist()
    assert means["arm"].tolist() == ["rslora r=4"]


def test_the_curves_of_learning_rates_show_what_was_chosen_added_and_failed(tables: dict[str, pd.DataFrame]) -> None:
    rates = tables["learning_rates"]
    panels = {axes.get_title(loc="left"): axes for axes in redrawn_axes("learning_rates", rates)}
    assert set(panels) == {"lora", "rslora", "full"}
    for title, axes in panels.items():
        of_line = rates[rates["line"] == title]
        means = of_line[of_line["kind"] == "mean"]
        rings = [line for line in axes.lines if line.get_markerfacecolor() == "none" and line.get_marker() == "o"]
        chosen = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in rings]
        ringed = of_line[of_line["kind"] == "chosen"][["learning_rate", "value"]]
        assert chosen == list(ringed.itertuples(index=False, name=None))
        added = means[means["added"]][["learning_rate", "value"]]
        assert set(added.itertuples(index=False, name=None)) <= set(drawn_points(axes, "s"))
        broken = of_line[of_line["kind"] == "failed"]
        assert {x for x, _ in drawn_points(axes, "x")} == set(broken["learning_rate"])
        runs = of_line[of_line["kind"] == "seed"]
        assert len(drawn_points(axes, ".")) == (~runs["added"]).sum()
        assert len(drawn_points(axes, "s")) == len(added) + runs["added"].sum()
    assert len(drawn_points(panels["rslora"], "s")) == 2 + 2 * 2  # two rates beyond the grid: means, and a run a seed
    assert len(drawn_points(panels["lora"], "x")) == 1


def test_the_forest_has_difference_interval_margin_and_word_of_every_comparison(
    tables: dict[str, pd.DataFrame],
) -> None:
    comparisons = tables["comparisons"]
    panels = redrawn_axes("comparisons", comparisons)
    assert [axes.get_title(loc="left") for axes in panels] == ["tuned", "learning rate 0.001 for all"]
    for axes, (_, family) in zip(panels, comparisons.groupby("setting", sort=False), strict=True):
        for place, row in enumerate(family.to_dict("records")):
            word = row["excluded"] if pd.isna(row["verdict"]) else row["verdict"]
            assert word in [text.get_text() for text in axes.texts if text.get_position()[1] == place]
            if pd.isna(row["value"]):
                continue
            assert [float(row["low"]), place] in [part[0].tolist() for part in segments(axes)]
            assert [float(row["high"]), place] in [part[1].tolist() for part in segments(axes)]
            points = [point for marker in "^voD" for point in drawn_points(axes, marker)]
            assert (row["value"], place) in points
        band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
        assert (band.x0, band.x1) == pytest.approx((-0.01, 0.01))
    assert any("Holm over 4 comparisons" in text for text in words(FIGURES["comparisons"](comparisons)))


def test_every_family_has_the_names_of_its_own_arms(tables: dict[str, pd.DataFrame]) -> None:
    comparisons = tables["comparisons"]
    tuned = comparisons[comparisons["setting"] == "tuned"]
    late = tuned.head(1).assign(setting="tuned, family 2", arm="late")
    first, second = redrawn_axes("comparisons", pd.concat([tuned, late]))
    assert len([label.get_text() for label in first.get_yticklabels()]) == len(tuned)
    assert [label.get_text().split(" vs ")[0] for label in second.get_yticklabels()] == ["late"]
    assert not any("late" in label.get_text() for label in first.get_yticklabels())


def test_scores_far_worse_than_most_lie_beyond_the_frame_and_are_counted(tables: dict[str, pd.DataFrame]) -> None:
    rates = tables["learning_rates"].copy()
    worst = rates.index[(rates["arm"] == "full") & ~rates["chosen"]][-2:]
    rates.loc[worst, "value"] = 1e6
    figure = FIGURES["learning_rates"](rates)
    low, high = figure.axes[0].get_ylim()
    best = rates.loc[rates["chosen"], "value"]
    assert low < best.min()
    assert best.max() < high < 10
    beyond = (rates["value"] > high).sum()
    assert beyond >= 2
    assert any(f"{beyond} worse points lie beyond the frame" in text.replace("\n", " ") for text in words(figure))


def test_a_difference_far_beyond_the_others_is_an_arrow_with_its_number(tables: dict[str, pd.DataFrame]) -> None:
    comparisons = tables["comparisons"][tables["comparisons"]["setting"] == "fixed 0.001"].copy()
    comparisons.loc[comparisons.index[-1], ["value", "low", "high"]] = [-77.0, -78.0, -76.0]
    [axes] = redrawn_axes("comparisons", comparisons)
    assert drawn_points(axes, "<") == [(0.01, len(comparisons) - 1)]  # of the width: at the left edge
    assert "-77" in [text.get_text() for text in axes.texts]
    assert axes.get_xlim()[0] > -1


def test_an_arm_far_worse_at_a_fixed_rate_is_named_at_the_edge_of_its_panel(tables: dict[str, pd.DataFrame]) -> None:
    scores = tables["score_by_rank_and_rate"].copy()
    lost = (scores["setting"] == "fixed 0.001") & (scores["arm"] == "full")
    scores.loc[lost, ["value", "low", "high"]] += 100
    tuned, fixed = redrawn_axes("score_by_rank_and_rate", scores)
    mean = scores.loc[lost & (scores["kind"] == "mean"), "value"].item()
    assert next(text.get_text() for text in fixed.texts) == f"beyond: full {mean:.3g}"
    assert not tuned.texts
    shown = scores.loc[scores["setting"] == "tuned", ["value", "low", "high"]].stack()
    assert fixed.get_ylim()[0] < shown.min()
    assert shown.max() < fixed.get_ylim()[1] < 10


SHIPPED = sorted(path.stem for path in (CONFIGS / "studies").glob("*.yaml"))


@pytest.mark.parametrize("study", SHIPPED)
def test_the_figures_of_every_shipped_study_have_room_for_all_their_words(
    tmp_path: Path, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 2)
    loaded = load_study(CONFIGS / "studies" / f"{study}.yaml")
    for name, table in conclusion_of(loaded, study_state_of(loaded, eventful), tmp_path).drawn.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib's, where a layout does not fit
            figure = FIGURES[name](table)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        renderer = canvas.get_renderer()
        there = [axes for axes in figure.axes if axes.axison]
        boxes = [part.get_tightbbox(renderer) for part in (*there, *figure.legends, *figure.texts)]
        for box in boxes:
            assert box is not None
            page = figure.bbox
            assert box.x0 >= -1, name
            assert box.y0 >= -1, name
            assert box.x1 <= page.x1 + 1, name
            assert box.y1 <= page.y1 + 1, name
        caption = figure.texts[-1].get_window_extent(renderer)
        assert all(caption.y1 <= axes.get_tightbbox(renderer).y0 + 1 for axes in there), name
        for axes in (axes for axes in there if axes.get_label() != "<colorbar>"):
            assert axes.bbox.width > 80, name  # at 100 dpi
            assert axes.bbox.height > 40, name
            low, high = axes.get_xlim()
            labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
            extents = [label.get_window_extent(renderer) for label in labels if label.get_visible()]
            assert all(left.x1 < right.x0 for left, right in pairwise(extents)), name
