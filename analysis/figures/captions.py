"""The words of a study's figures: axis labels that say what is better, and captions that say n and interval."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

FONT_POINTS = 7
LETTERS_PER_INCH = 19.0  # at that size
LINE_INCHES = 0.125


def score_label(table: pd.DataFrame, split: str) -> str:
    """'test accuracy (higher is better)'."""
    better = "higher" if table["higher_is_better"].iloc[0] else "lower"
    score = f"{split} {str(table['score'].iloc[0]).replace('_', ' ')}"
    return f"{score} ({better} is better)"


def numbers(counts: Sequence[float]) -> str:
    """'8', or '5 to 8' where they differ."""
    found = sorted({int(count) for count in counts})
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def describe_setting(setting: str) -> str:
    """Title of the panel of a setting."""
    name, _, late = setting.partition(", family ")
    words = "tuned" if name == "tuned" else f"learning rate {name.removeprefix('fixed ')} for all"
    return words + (f", arms that came later ({late})" if late else "")


def put_caption(figure: Figure, sentences: Sequence[str]) -> None:
    """At the foot of the figure, which grows by as much; all else is laid out above it."""
    width, height = figure.get_size_inches()
    words = "; ".join(sentence for sentence in sentences if sentence)
    lines = textwrap.wrap(words, int(width * LETTERS_PER_INCH))
    foot = LINE_INCHES * len(lines) + 0.08
    figure.set_size_inches(width, height + foot)
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # every figure of a study is made with it
    share = foot / (height + foot)
    engine.set(rect=(0, share, 1, 1 - share))
    figure.text(
        0.01, 0.25 * share / max(1, len(lines)), "\n".join(lines), fontsize=FONT_POINTS, color="0.3", va="bottom"
    )
