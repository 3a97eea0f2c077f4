"""What arms score: against their rank, a line for each variant, or arm by arm."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.axes import score_frame
from analysis.figures.captions import describe_setting, numbers, put_caption, score_label
from analysis.figures.style import WIDTH_INCHES, figure_style

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
APART = 0.02  # between lines at one rank, as a part of the axis
BESIDE = 0.008  # from a mean to its runs, likewise
BENEATH = 0.28  # of a row, from an arm's mean to its runs
LISTED = 3
Colour = tuple[float, float, float]


def score_by_rank_figure(scores: pd.DataFrame) -> Figure:
    """Score against rank (log2), a panel for each setting, a line for each line of the table.

    Per line the runs (small), the means and their 95 % t-intervals; arms without a rank are a line across the panel
    with a band as their interval. A run that failed is a cross at the edge where the bad scores are. A mean is hollow
    where the arm gets no verdict. `scores` has the columns setting, line, arm, rank, kind ('seed', 'mean', 'failed'),
    seed, value, low, high, n, excluded, score, higher_is_better, margin, units.
    """
    settings = list(dict.fromkeys(scores["setting"]))
    lines = list(dict.fromkeys(scores["line"]))
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(WIDTH_INCHES if len(settings) > 1 else 0.72 * WIDTH_INCHES, 2.9), layout="constrained")
        panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for axes, setting in zip(panels, settings, strict=True):
            _draw_ranks(axes, scores[scores["setting"] == setting], _looks(lines))
            axes.set_xlabel("rank")
            if len(settings) > 1:
                axes.set_title(describe_setting(setting), loc="left")
        panels[0].set_ylim(*_frame(scores))
        for axes, setting in zip(panels, settings, strict=True):
            _name_those_beyond(axes, scores[scores["setting"] == setting])
        panels[0].set_ylabel(score_label(scores, "test").replace(" (", "\n("))
        _mark_margin(panels[-1], scores)
        _put_legend(figure, scores, _looks(lines))
        put_caption(figure, _caption(scores, bands=bool(scores["rank"].isna().any())))
    return figure


def score_by_arm_figure(scores: pd.DataFrame) -> Figure:
    """A row for each arm, a panel for each setting: the runs (small), their mean and its 95 % t-interval.

    `scores` is a table as `score_by_rank_figure` takes it.
    """
    settings, arms = list(dict.fromkeys(scores["setting"])), list(dict.fromkeys(scores["arm"]))
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(WIDTH_INCHES, 0.24 * len(arms) + 0.75), layout="constrained")
        panels = figure.subplots(1, len(settings), sharex=True, sharey=True, squeeze=False)[0]
        for axes, setting in zip(panels, settings, strict=True):
            _draw_arms(axes, scores[scores["setting"] == setting], arms)
            if len(settings) > 1:
                axes.set_title(describe_setting(setting), loc="left")
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].set_ylim(len(arms) - 0.4, -0.6)
        panels[len(panels) // 2].set_xlabel(score_label(scores, "test"))
        put_caption(figure, _caption(scores, bands=False))
    return figure


def _looks(lines: list[str]) -> dict[str, tuple[Colour, str]]:
    """Line -> colour and marker."""
    colours = sns.color_palette("colorblind", len(lines))
    return {line: (colours[i], MARKERS[i % len(MARKERS)]) for i, line in enumerate(lines)}


def _draw_ranks(axes: Axes, scores: pd.DataFrame, looks: dict[str, tuple[Colour, str]]) -> None:
    ranked = [line for line in looks if scores.loc[scores["line"] == line, "rank"].notna().any()]
    axes.set_xscale("log", base=2)
    width = max(1.0, np.log2(scores["rank"].max() / scores["rank"].min()))
    for line, (colour, marker) in looks.items():
        of_line = scores[scores["line"] == line]
        if line in ranked:
            place = APART * (ranked.index(line) - (len(ranked) - 1) / 2)
            _draw_line(axes, of_line, colour, marker, width=width, place=place)
        for row in of_line[(of_line["kind"] == "mean") & of_line["rank"].isna()].to_dict("records"):
            axes.axhline(row["value"], color=colour, linewidth=0.9, linestyle=(0, (4, 1.5)), zorder=1)
            axes.axhspan(row["low"], row["high"], color=colour, alpha=0.15, linewidth=0, zorder=0)
    ticks = sorted(scores["rank"].dropna().unique())
    axes.set_xticks(ticks, [f"{rank:g}" for rank in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(6))
    sns.despine(ax=axes)


def _draw_line(axes: Axes, of_line: pd.DataFrame, colour: Colour, marker: str, *, width: float, place: float) -> None:
    """`place` is how far from the ranks the line is drawn, as a part of the axis of so many doublings."""
    of_line = of_line.assign(rank=of_line["rank"] * 2 ** (width * place))
    runs, means, failed = (of_line[of_line["kind"] == kind] for kind in ("seed", "mean", "failed"))
    beside = runs["rank"] * 2 ** (width * BESIDE)
    axes.plot(beside, runs["value"], ".", color=colour, markersize=3, alpha=0.5, markeredgewidth=0, zorder=2)
    axes.plot(means["rank"], means["value"], color=colour, zorder=3)
    axes.vlines(means["rank"], means["low"], means["high"], color=colour, linewidth=1.1, zorder=3)
    for row in means.to_dict("records"):
        face = colour if pd.isna(row["excluded"]) else "white"
        axes.plot(row["rank"], row["value"], marker, color=colour, markerfacecolor=face, markersize=4, zorder=4)
    if len(failed):  # an empty line that is not clipped still takes room in the layout
        edge = np.full(len(failed), 0.03 if failed["higher_is_better"].iloc[0] else 0.97)
        axes.plot(
            failed["rank"], edge, "x", color=colour, markersize=5, transform=axes.get_xaxis_transform(), clip_on=False
        )


def _draw_arms(axes: Axes, scores: pd.DataFrame, arms: list[str]) -> None:
    colour = sns.color_palette("colorblind")[0]
    for place, arm in enumerate(arms):
        of_arm = scores[scores["arm"] == arm]
        runs, means, failed = (of_arm[of_arm["kind"] == kind] for kind in ("seed", "mean", "failed"))
        beneath = np.full(len(runs), place + BENEATH)
        axes.plot(runs["value"], beneath, ".", color="0.6", markersize=4, markeredgewidth=0, zorder=2)
        for row in means.to_dict("records"):
            axes.hlines(place, row["low"], row["high"], color=colour, linewidth=1.4, zorder=3)
            face = colour if pd.isna(row["excluded"]) else "white"
            axes.plot(row["value"], place, "o", color=colour, markerfacecolor=face, markersize=4, zorder=4)
        if len(failed):
            edge = (0.0, "left") if failed["higher_is_better"].iloc[0] else (1.0, "right")
            words = f"× {len(failed)} failed"
            axes.text(
                edge[0], place, words, ha=edge[1], va="center", fontsize=6.5, transform=axes.get_yaxis_transform()
            )
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
    sns.despine(ax=axes, left=True)


def _frame(scores: pd.DataFrame) -> tuple[float, float]:
    """All of the first panel; of others what is not far worse than most."""
    first = scores[scores["setting"] == scores["setting"].iloc[0]]
    means = scores.loc[scores["kind"] == "mean", "value"].to_numpy()
    needed = first[["value", "low", "high"]].to_numpy(dtype=np.float64).ravel()
    return score_frame(
        scores["value"].dropna().to_numpy(),
        means,
        needed[np.isfinite(needed)] if np.isfinite(needed).any() else means,
        higher_is_better=bool(scores["higher_is_better"].iloc[0]),
    )


def _name_those_beyond(axes: Axes, scores: pd.DataFrame) -> None:
    """The arms whose means lie beyond the frame, at its edge."""
    low, high = axes.get_ylim()
    means = scores[scores["kind"] == "mean"]
    beyond = means[~means["value"].between(low, high)]
    if len(beyond):
        named = [f"{row['arm']} {row['value']:.3g}" for row in beyond.head(LISTED).to_dict("records")]
        text = "beyond: " + ", ".join(named) + (", ..." if len(beyond) > LISTED else "")
        place, anchor = (0.02, "bottom") if scores["higher_is_better"].iloc[0] else (0.98, "top")
        axes.text(0.97, place, text, transform=axes.transAxes, ha="right", va=anchor, fontsize=6.5, color="0.3")


def _mark_margin(axes: Axes, scores: pd.DataFrame) -> None:
    """A bar as high as the margin, to the right of the axes."""
    margin, (low, high) = float(scores["margin"].iloc[0]), axes.get_ylim()
    middle = (low + high) / 2
    beside = axes.get_yaxis_transform()
    bar = [middle - margin / 2, middle + margin / 2]
    axes.plot([1.03] * 2, bar, color="0.2", linewidth=2.2, solid_capstyle="butt", transform=beside, clip_on=False)
    axes.text(1.05, middle, f"margin\n{margin:g}", fontsize=6.5, va="center", ha="left", transform=beside)
    axes.set_ylim(low, high)


def _put_legend(figure: Figure, scores: pd.DataFrame, looks: dict[str, tuple[Colour, str]]) -> None:
    ranked = set(scores.loc[scores["rank"].notna(), "line"])
    handles = [
        Line2D([], [], color=colour, marker=marker if line in ranked else "", label=line,
               linestyle="-" if line in ranked else (0, (4, 1.5)), markersize=4)
        for line, (colour, marker) in looks.items()
    ]  # fmt: skip
    letters = max(map(len, looks)) + 8
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 20 / letters)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def _caption(scores: pd.DataFrame, *, bands: bool) -> list[str]:
    means = scores[scores["kind"] == "mean"]
    units = str(scores["units"].iloc[0])
    return [
        f"means of n = {numbers(means['n'].tolist())} {units} with 95 % t-intervals"
        + (" (bars and bands)" if bands else ""),
        "means of unlike n are of other seeds" if means["n"].nunique() > 1 else "",
        "dots: single runs" if units == "seeds" else f"dots: {units}",
        "hollow: no verdict (" + _reasons(means) + ")" if means["excluded"].notna().any() else "",
        "×: run failed" if (scores["kind"] == "failed").any() else "",
    ]


def _reasons(means: pd.DataFrame) -> str:
    reasons = list(dict.fromkeys(means["excluded"].dropna()))
    return " / ".join(reasons[:LISTED]) + (" / ..." if len(reasons) > LISTED else "")
