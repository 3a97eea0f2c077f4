"""What parameters buy: the score of every run against its parameters, the Pareto front, and what arms ended with."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.figures.axes import score_frame
from analysis.figures.captions import numbers, put_caption, score_label
from analysis.figures.style import WIDTH_INCHES, figure_style

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
RUN, PARETO_FRONT, BUDGET = (0.7, 0.7, 0.7), (0.15, 0.15, 0.15), (0.4, 0.4, 0.4)
OF_UNIFORM, GREY = 1, 7  # places in the palette
ARM_INCHES = 0.2
ARMS_INCHES = (1.0, 3.75)  # for all of them
LETTER_INCHES = 0.055
WIDE_RANGE = 3.0  # times the least: more is drawn on a logarithmic scale
ROOM = 0.05  # of the axis, at either side
STEPS = [1, 2, 2.5, 5, 10]
Colour = tuple[float, float, float]
Looks = dict[str, tuple[Colour, str]]


def front_figure(pareto_front: pd.DataFrame) -> Figure:
    """Score against parameters: grey runs, the uniform ones in a colour of their own, the Pareto front, and arm means.

    The front goes on at its height to the largest run. At the right the means of arms once more, side by side and with
    their intervals: at one budget they have nearly the same parameters. Runs far worse than most lie beyond the frame.
    `pareto_front` has the columns arm, kind, parameters, value, low, high, n, score, higher_is_better, budget, units;
    kind 'run' are all finished runs, 'uniform' those of them that have one rank everywhere, 'pareto_front' those that
    no other beats with as few parameters, 'chosen' the mean of an arm over its n units with its interval.
    """
    chosen = pareto_front[pareto_front["kind"] == "chosen"]
    looks = _looks(pareto_front)
    arms_inches = float(np.clip(ARM_INCHES * len(looks), *ARMS_INCHES))
    with mpl.rc_context(figure_style()):
        figure = Figure(
            figsize=(WIDTH_INCHES, 2.8 + LETTER_INCHES * max(map(len, looks), default=8)), layout="constrained"
        )
        ratios = [WIDTH_INCHES - arms_inches, arms_inches] if looks else [1.0]
        axes, *beside = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
        _draw_runs(axes, pareto_front)
        _draw_pareto_front(axes, pareto_front)
        _draw_means(axes, chosen, chosen["parameters"].tolist(), looks)
        for budget in pareto_front["budget"].dropna().unique():
            axes.axvline(budget, color=BUDGET, linestyle=":", linewidth=1.0, zorder=1)
        _set_scale(axes, pareto_front)
        axes.set_ylim(*_frame(pareto_front))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
        axes.set_xlabel("parameters in A and B")
        axes.set_ylabel(score_label(pareto_front, "validation").replace(" (", "\n("))
        sns.despine(ax=axes)
        for other in beside:
            _draw_arms(other, chosen, looks)
        _put_legend(figure, pareto_front)
        put_caption(figure, _caption(pareto_front))
    return figure


def _looks(pareto_front: pd.DataFrame) -> Looks:
    """Chosen arm -> colour and marker; arms with runs of the uniform allocation have the colour of these."""
    palette = sns.color_palette("colorblind")
    uniform = set(pareto_front.loc[pareto_front["kind"] == "uniform", "arm"])
    free = [colour for place, colour in enumerate(palette) if place not in (OF_UNIFORM, GREY)]
    arms = list(dict.fromkeys(pareto_front.loc[pareto_front["kind"] == "chosen", "arm"]))
    others = [arm for arm in arms if arm not in uniform]
    colours = {arm: free[place % len(free)] for place, arm in enumerate(others)}
    return {arm: (colours.get(arm, palette[OF_UNIFORM]), MARKERS[i % len(MARKERS)]) for i, arm in enumerate(arms)}


def _draw_runs(axes: Axes, pareto_front: pd.DataFrame) -> None:
    runs, uniform = (pareto_front[pareto_front["kind"] == kind] for kind in ("run", "uniform"))
    axes.plot(runs["parameters"], runs["value"], ".", color=RUN, markersize=4, markeredgewidth=0, zorder=2)
    colour = sns.color_palette("colorblind")[OF_UNIFORM]
    axes.plot(uniform["parameters"], uniform["value"], "s", color=colour, markersize=3, markeredgewidth=0, zorder=3)


def _draw_pareto_front(axes: Axes, pareto_front: pd.DataFrame) -> None:
    steps = pareto_front[pareto_front["kind"] == "pareto_front"].sort_values("parameters")
    if len(steps):
        largest = pareto_front.loc[pareto_front["kind"] != "chosen", "parameters"].max()
        x, y = [*steps["parameters"], largest], [*steps["value"], steps["value"].iloc[-1]]
        axes.plot(x, y, color=PARETO_FRONT, drawstyle="steps-post", linewidth=1.0, zorder=4)
        axes.plot(
            steps["parameters"], steps["value"], ".", color=PARETO_FRONT, markersize=4, markeredgewidth=0, zorder=4
        )


def _draw_means(axes: Axes, chosen: pd.DataFrame, places: list[float], looks: Looks) -> None:
    for x, row in zip(places, chosen.to_dict("records"), strict=True):
        colour, marker = looks[row["arm"]]
        axes.plot(
            x, row["value"], marker, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.5,
            zorder=6,
        )  # fmt: skip


def _draw_arms(axes: Axes, chosen: pd.DataFrame, looks: Looks) -> None:
    """A column for each arm."""
    arms = list(looks)
    places = [arms.index(arm) for arm in chosen["arm"]]
    for place, row in zip(places, chosen.to_dict("records"), strict=True):
        axes.vlines(place, row["low"], row["high"], color=looks[row["arm"]][0], linewidth=1.2, zorder=5)
    _draw_means(axes, chosen, [float(place) for place in places], looks)
    axes.set_xticks(range(len(arms)), arms, rotation=90)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.set_title("means of arms", loc="left")
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    sns.despine(ax=axes, left=True)


def _set_scale(axes: Axes, pareto_front: pd.DataFrame) -> None:
    """Logarithmic if the range is wide, with room at both ends."""
    every = pareto_front[["parameters", "budget"]].to_numpy(dtype=float)
    least, most = float(np.nanmin(every)), float(np.nanmax(every))
    if 0 < WIDE_RANGE * least < most:
        axes.set_xscale("log")
        room = (most / least) ** ROOM
        axes.set_xlim(least / room, most * room)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if most < 10 * least else (1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = ROOM * (most - least) or 0.1 * abs(most) or 1.0
        axes.set_xlim(least - room, most + room)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _frame(pareto_front: pd.DataFrame) -> tuple[float, float]:
    """All that is good, every mean with its interval, and the runs near most."""
    finite = pareto_front[np.isfinite(pareto_front["value"])]
    runs = finite[finite["kind"] == "run"] if (finite["kind"] == "run").any() else finite
    means = finite.loc[finite["kind"] == "chosen", ["value", "low", "high"]].to_numpy(dtype=float)
    higher_is_better = bool(pareto_front["higher_is_better"].iloc[0])
    best = runs["value"].max() if higher_is_better else runs["value"].min()
    return score_frame(
        runs["value"].to_numpy(),
        runs["value"].to_numpy(),
        np.array([best, *means[np.isfinite(means)]]),
        higher_is_better=higher_is_better,
    )


def _put_legend(figure: Figure, pareto_front: pd.DataFrame) -> None:
    colour = sns.color_palette("colorblind")[OF_UNIFORM]
    marks = {
        "run": Line2D([], [], linestyle="", marker=".", color=RUN, markersize=5, markeredgewidth=0),
        "uniform": Line2D([], [], linestyle="", marker="s", color=colour, markersize=3, markeredgewidth=0),
        "pareto_front": Line2D([], [], marker=".", color=PARETO_FRONT, linewidth=1.0, markersize=4, markeredgewidth=0),
        "budget": Line2D([], [], color=BUDGET, linestyle=":", linewidth=1.0),
    }
    words = {"uniform": "run of the uniform allocation", "pareto_front": "Pareto front"}
    there = {*pareto_front["kind"], *(["budget"] if pareto_front["budget"].notna().any() else [])}
    handles = {words.get(kind, kind): mark for kind, mark in marks.items() if kind in there}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles), frameon=False)


def _caption(pareto_front: pd.DataFrame) -> list[str]:
    runs, chosen = (pareto_front[pareto_front["kind"] == kind] for kind in ("run", "chosen"))
    beyond = int((~runs["value"].between(*_frame(pareto_front))).sum())
    intervals = " with 95 % t-intervals (bars, at the right)" if chosen["low"].notna().any() else ""
    return [
        f"dots: {len(runs)} finished run{'s' * (len(runs) != 1)} of all stages" if len(runs) else "",
        "Pareto front: no other run is as good with as few parameters"
        if (pareto_front["kind"] == "pareto_front").any()
        else "",
        f"named markers: means of n = {numbers(chosen['n'].tolist())} {pareto_front['units'].iloc[0]}{intervals}"
        if len(chosen)
        else "",
        f"{beyond} worse run{'s lie' if beyond > 1 else ' lies'} beyond the frame" if beyond else "",
    ]
