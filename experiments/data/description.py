"""What a plan says of a split, in words: its labels, its length in tokens, and what of it is cut."""

from collections import Counter
from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor

from experiments.data.rows import SourceRead
from experiments.data.tokens import Tokens

SHOWN_LABELS = 6
SHOWN_SOURCES = 3


def describe_labels(given: Sequence[str], known: Sequence[str]) -> str:
    """How many rows have each label, of many labels the most frequent and the rarest; of numbers their range."""
    if not known:
        numbers = [float(label) for label in given]
        return f"numbers from {min(numbers):g} to {max(numbers):g}"
    counts = Counter(given)
    if len(known) <= SHOWN_LABELS:
        return ", ".join(f"{label}: {counts[label]:,}" for label in known)
    often = counts.most_common()
    shown = ", ".join(f"{label}: {rows:,}" for label, rows in often[: SHOWN_LABELS // 2])
    rarest, rows = often[-1]
    return f"{len(counts)} of {len(known)} labels; {shown}, ... {rarest}: {rows:,}"


def describe_sources(read: Sequence[SourceRead], elsewhere: Mapping[str, int]) -> str:
    """The files of a split with what their lines hold, of many the first and the sum; of a share of train that.

    `elsewhere`: how many of the rows are not in this split, by where they are.
    """
    if len(read) <= SHOWN_SOURCES:
        files = ", ".join(map(str, read)) or "a share of the training rows"
    else:
        files = f"{read[0]}, ... {len(read)} in all, {sum(source.rows for source in read):,} rows"
    others = ", ".join(f"{rows:,} {where}" for where, rows in elsewhere.items())
    return f"{files}, of which {others}" if others else files


def describe_tokens(tokens: Tokens, rows: Int[Tensor, " chosen"], most: int) -> dict[str, str]:
    """Of these rows all tokens, how long the longest is before it is cut, and what is cut at `most` tokens."""
    lengths, cut = tokens.lengths[rows], tokens.cut[rows]
    long = int((cut > 0).sum())
    lost, all_tokens = int(cut.sum()), int(cut.sum() + lengths.sum())
    loss = f"{long:,} row{'s' * (long != 1)} ({long / len(rows):.1%}), {lost:,} tokens ({lost / all_tokens:.1%})"
    return {
        "tokens": f"{int(lengths.sum()):,}",
        "longest": f"{int((lengths + cut).max()):,}",
        f"cut at {most} tokens": loss if long else "none",
    }
