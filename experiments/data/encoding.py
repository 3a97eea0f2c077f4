"""Texts into tokens: labelled texts with special tokens, windows of a stream, prompts with references."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from experiments.data.passages import Passage
from experiments.data.reading import DataError
from experiments.data.tokens import Tokens, joined

PIECE = 1 << 16  # characters of a stream that are tokenised at once, to the end of their line


def encode_texts(tokenizer: Any, texts: Sequence[tuple[str, ...]], max_length: int) -> Tokens:
    """Texts, or pairs of texts, with the tokenizer's special tokens; the longer of a pair is cut first.

    Raises: DataError for a text of which the tokenizer makes no token.
    """
    sides: list[list[str]] = [list(side) for side in zip(*texts, strict=True)]
    found = tokenizer(*sides, truncation=True, max_length=max_length, padding=False, verbose=False)
    if empty := [text for text, row in zip(texts, found.input_ids, strict=True) if not row]:
        raise DataError(f"the tokenizer makes no token of {empty[0]!r}, one of {len(empty)} such rows; leave them out")
    segments = [encoding.type_ids for encoding in found.encodings] if len(sides) > 1 else None
    return joined(found.input_ids, [bool(encoding.overflowing) for encoding in found.encodings], segments=segments)


def encode_stream(tokenizer: Any, passages: Sequence[Passage], context: int) -> Tokens:
    """Windows of context + 1 tokens side by side, each beginning with the last token of the one before.

    So every token but the very first is predicted once, from at most `context` tokens before it. No special token
    is added: the text is what it is.
    """
    pieces = list(_pieces("".join(passage.text for passage in passages)))
    rows = _numbers(tokenizer, pieces)
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    starts = torch.arange(0, max(1, len(flat) - 1), context)
    ends = (starts + context + 1).clamp(max=len(flat))
    marked = torch.ones(len(flat), dtype=torch.bool)
    return Tokens(flat, starts, ends, marked, torch.zeros(len(starts), dtype=torch.bool))


def encode_lines(tokenizer: Any, passages: Sequence[Passage], context: int, *, score_prompts: bool) -> Tokens:
    """Each passage a row: begin token, prompt, text, end token, where the tokenizer has them; cut at context + 1."""
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    prompts = _numbers(tokenizer, [passage.prompt for passage in passages])
    texts = _numbers(tokenizer, [passage.text for passage in passages])
    rows, marks, truncated = [], [], []
    for prompt, text in zip(prompts, texts, strict=True):
        row = [*begin, *prompt, *text, *end]
        unscored = len(begin) + (0 if score_prompts else len(prompt))
        rows.append(row[: context + 1])
        marks.append(([False] * unscored + [True] * (len(row) - unscored))[: context + 1])
        truncated.append(len(row) > context + 1)
    return joined(rows, truncated, marks=marks)


def _numbers(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return found


def _pieces(text: str) -> Iterator[str]:
    """The text in parts that end where a line does."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + PIECE)
        end = len(text) if line_end < 0 else line_end + 1
        yield text[start:end]
        start = end
