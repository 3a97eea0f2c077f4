"""Texts into tokens: labelled texts with special tokens, windows of a stream, prompts with references."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from experiments.data.passages import Passage
from experiments.data.reading import DataError
from experiments.data.tokens import Tokens, joined

PIECE = 1 << 16  # characters of a stream that are tokenised at once, to the end of their line
TEXTS = 4096  # that are tokenised at once; a second or so
PIECES = 64

Row = TypeVar("Row")
Count = Callable[[int, int], None]  # how many of how many are done


def uncounted(done: int, total: int) -> None:
    """A count that nobody reads."""


def encode_texts(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int, count: Count = uncounted) -> Tokens:
    """Texts, or pairs of texts, with the tokenizer's special tokens; the longer of a pair is cut first.

    Raises: DataError for a text of which the tokenizer makes no token.
    """
    rows, segments, cut = [], [], []
    in_pairs = len(texts[0]) > 1
    for part in _counted(texts, TEXTS, count):
        found = _whole_or_cut(tokenizer, part, max_length)
        rows += found.input_ids
        segments += [encoding.type_ids for encoding in found.encodings if in_pairs]
        cut += _cut(tokenizer, part, found.encodings)
    if empty := [text for text, row in zip(texts, rows, strict=True) if not row]:
        raise DataError(f"the tokenizer makes no token of {empty[0]!r}, one of {len(empty)} such rows; leave them out")
    return joined(rows, cut, segments=segments if in_pairs else None)


def _whole_or_cut(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int | None) -> Any:
    sides = [list(side) for side in zip(*texts, strict=True)]
    return tokenizer(*sides, truncation=max_length is not None, max_length=max_length, padding=False, verbose=False)


def _cut(tokenizer: Any, texts: Sequence[tuple[str, ...]], encodings: Sequence[Any]) -> list[int]:
    """How many tokens each text has lost."""
    lost = [0] * len(texts)
    long = [i for i, encoding in enumerate(encodings) if encoding.overflowing]
    if long:
        whole = _whole_or_cut(tokenizer, [texts[i] for i in long], None).input_ids
        for i, tokens in zip(long, whole, strict=True):
            lost[i] = len(tokens) - len(encodings[i].ids)
    return lost


def encode_stream(tokenizer: Any, passages: Sequence[Passage], context: int, count: Count = uncounted) -> Tokens:
    """Windows of context + 1 tokens side by side, each beginning with the last token of the one before.

    So every token but the very first is predicted once, from at most `context` tokens before it. No special token
    is added: the text is what it is.
    """
    pieces = list(_pieces("".join(passage.text for passage in passages)))
    rows = _numbers(tokenizer, pieces, PIECES, count)
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    starts = torch.arange(0, max(1, len(flat) - 1), context)
    ends = (starts + context + 1).clamp(max=len(flat))
    marked = torch.ones(len(flat), dtype=torch.bool)
    return Tokens(flat, starts, ends, marked, torch.zeros(len(starts), dtype=torch.int64))


def encode_lines(
    tokenizer: Any, passages: Sequence[Passage], context: int, count: Count = uncounted, *, score_prompts: bool
) -> Tokens:
    """Each passage a row: begin token, prompt, text, end token, where the tokenizer has them; cut at context + 1."""
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    sides = [passage.prompt for passage in passages] + [passage.text for passage in passages]
    numbers = _numbers(tokenizer, sides, 2 * TEXTS, count)
    prompts, texts = numbers[: len(passages)], numbers[len(passages) :]
    rows, marks, cut = [], [], []
    for prompt, text in zip(prompts, texts, strict=True):
        row = [*begin, *prompt, *text, *end]
        unscored = len(begin) + (0 if score_prompts else len(prompt))
        rows.append(row[: context + 1])
        marks.append(([False] * unscored + [True] * (len(row) - unscored))[: context + 1])
        cut.append(max(0, len(row) - context - 1))
    return joined(rows, cut, marks=marks)


def _numbers(tokenizer: Any, texts: list[str], at_once: int, count: Count) -> list[list[int]]:
    found: list[list[int]] = []
    for part in _counted(texts, at_once, count):
        found += tokenizer(part, add_special_tokens=False, verbose=False).input_ids
    return found


def _counted(rows: Sequence[Row], at_once: int, count: Count) -> Iterator[Sequence[Row]]:
    """The rows in parts; where there are several, `count` hears how many are done."""
    for start in range(0, len(rows), at_once):
        yield rows[start : start + at_once]
        if len(rows) > at_once:
            count(min(start + at_once, len(rows)), len(rows))


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end where a line does."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + PIECE)
        end = len(text) if line_end < 0 else line_end + 1
        yield text[start:end]
        start = end
