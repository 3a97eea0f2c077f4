"""The verdicts of a study: each arm's difference to its reference, beside the margin that was fixed before."""

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.axes import largest_size
from analysis.figures.captions import describe_setting, numbers, put_caption, score_label
from analysis.figures.style import WIDTH_INCHES, figure_style

ACROSS = 2
ROW_INCHES = 0.19
MARKERS = {"better": "^", "worse": "v", "equivalent": "o", "undecided": "D"}
WITHOUT_VERDICT = (0.55, 0.55, 0.55)
Colour = tuple[float, float, float]
LETTERS = 34


def comparison_figure(comparisons: pd.DataFrame) -> Figure:
    """A row for each comparison, a panel for each setting: difference with interval, at the right the verdict.

    The band is the margin. A comparison without a verdict is hollow, with its reason for a verdict. `comparisons` has
    the columns setting, arm, reference, value, low, high, n, verdict, excluded, score, higher_is_better, margin, alpha,
    looks, tests, holds, units.
    """
    settings = list(dict.fromkeys(comparisons["setting"]))
    rows = max(comparisons.groupby("setting").size())
    across, down = min(ACROSS, len(settings)), -(-len(settings) // ACROSS)
    one_reference = comparisons["reference"].nunique() == 1
    reference = str(comparisons["reference"].iloc[0]) if one_reference else "reference"
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(WIDTH_INCHES, down * (ROW_INCHES * rows + 0.75)), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(settings):
                axes.set_axis_off()
                continue
            families = [comparisons[comparisons["setting"] == name] for name in settings]
            _draw(axes, families[place], one_reference=one_reference)
            if place % across and _pairs(families[place]) == _pairs(families[place - 1]):
                axes.set_yticklabels([])  # those of the panel on the left
            axes.xaxis.set_major_locator(MaxNLocator(6 // across))
            axes.set_xlabel(f"difference to {reference}")
            if len(settings) > 1:
                axes.set_title(describe_setting(settings[place]), loc="left")
        put_caption(figure, _caption(comparisons))
    return figure


def _pairs(family: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(family["arm"], family["reference"], strict=True))


def _draw(axes: Axes, family: pd.DataFrame, *, one_reference: bool) -> None:
    colours = _colours()
    margin, bound = float(family["margin"].iloc[0]), _bound(family)
    axes.axvspan(-margin, margin, color="0.92", linewidth=0, zorder=0)
    axes.axvline(0, color="0.5", linewidth=0.6, zorder=1)
    for place, row in enumerate(family.to_dict("records")):
        judged = pd.notna(row["verdict"])
        colour = colours[str(row["verdict"])] if judged else WITHOUT_VERDICT
        marker = MARKERS.get(str(row["verdict"]), "D")
        if abs(row["value"]) > bound:
            _point_beyond(axes, place, row["value"], colour)
        else:
            axes.hlines(place, row["low"], row["high"], color=colour, linewidth=1.2, zorder=2)
            axes.plot(row["value"], place, marker, color=colour, markersize=4, mfc=colour if judged else "white")
        axes.text(
            1.02, place, _cut(str(row["verdict" if judged else "excluded"])), transform=axes.get_yaxis_transform(),
            va="center", ha="left", fontsize=7, color=colour,
            style="normal" if judged else "italic",
        )  # fmt: skip
    names = family["arm"] if one_reference else family["arm"] + " vs " + family["reference"]
    axes.set_yticks(range(len(family)), [_cut(name) for name in names])
    axes.set_ylim(len(family) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    sns.despine(ax=axes, left=True)


def _colours() -> dict[str, Colour]:
    palette = sns.color_palette("colorblind")
    return {"better": palette[0], "worse": palette[3], "equivalent": palette[2], "undecided": (0.25, 0.25, 0.25)}


def _bound(family: pd.DataFrame) -> float:
    """The size of the differences that are drawn to scale."""
    return largest_size(family["value"].dropna().abs().to_numpy(), at_least=2 * float(family["margin"].iloc[0]))


def _point_beyond(axes: Axes, place: int, value: float, colour: Colour) -> None:
    """An arrow at the edge, and in words what lies there."""
    right = value > 0
    edge, across = (0.99 if right else 0.01, place), axes.get_yaxis_transform()
    axes.plot(*edge, ">" if right else "<", color=colour, markersize=4.5, transform=across)
    axes.annotate(
        f"{value:+.3g}", edge, xycoords=across, xytext=(-6 if right else 6, 0), textcoords="offset points",
        va="center", ha="right" if right else "left", fontsize=6.5, color=colour,
    )  # fmt: skip


def _cut(words: str) -> str:
    return words if len(words) <= LETTERS else f"{words[: LETTERS - 1]}…"


def _caption(comparisons: pd.DataFrame) -> list[str]:
    first = comparisons.iloc[0]
    shown = comparisons.loc[comparisons["value"].notna(), "n"]
    beyond = any((family["value"].abs() > _bound(family)).any() for _, family in comparisons.groupby("setting"))
    tests, looks = sorted(set(comparisons["tests"])), first["looks"]
    kind = "t-" if pd.isna(looks) else "repeated "
    family = f"{numbers(tests)} comparison{'s' * (tests != [1])}"
    return [
        f"mean differences in {score_label(comparisons, 'test')}, "
        f"n = {numbers(shown.tolist())} paired {first['units']}",
        f"bars: {kind}intervals of {100 * (1 - first['alpha']):.4g} %, each by itself",
        "" if pd.isna(looks) else f"looked at {looks}",
        f"band: margin ± {first['margin']:g}",
        f"verdicts {' and '.join(dict.fromkeys(comparisons['holds']))}: Holm over {family} at {first['alpha']:g}",
        "arrows: too far away to draw" if beyond else "",
        "hollow: no verdict" if comparisons["verdict"].isna().any() else "",
    ]
