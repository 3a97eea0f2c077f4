"""Batches of text: epochs are exact, lengths are those of all seeds, tokens come from a cache that may be torn."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from experiments.data.batching import evaluation_order, padded_length, training_order
from experiments.data.encoding import encode_lines, encode_stream, encode_texts
from experiments.data.passages import Passage
from experiments.data.reading import DataError
from experiments.data.tokens import Tokens, cached_tokens, joined
from experiments.user_cache import read_only


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 9), count=st.integers(1, 300), seed=st.integers(0, 3))
def test_every_row_is_seen_once_an_epoch_whatever_the_sizes(rows: int, count: int, seed: int) -> None:
    lengths = torch.randint(1, 60, (count,), generator=torch.Generator().manual_seed(seed))
    batches = list(islice(training_order(lengths, rows, seed), 3 * count // rows))
    assert all(len(places) == rows and int(lengths[places].max()) <= longest for places, longest in batches)
    order = torch.cat([places for places, _ in batches]) if batches else torch.empty(0)
    for epoch in range(len(order) // count):
        assert sorted(order[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_all_seeds_have_one_length_at_each_step_and_rows_of_their_own() -> None:
    lengths = torch.randint(1, 60, (700,), generator=torch.Generator().manual_seed(0))
    found = [list(islice(training_order(lengths, 8, seed), 200)) for seed in (0, 1, 0)]
    assert [longest for _, longest in found[0]] == [longest for _, longest in found[1]]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found[0], found[2], strict=True))
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(found[0], found[1], strict=True))


def test_rows_of_like_length_go_together_so_that_little_is_padding() -> None:
    lengths = torch.randint(1, 60, (2061,), generator=torch.Generator().manual_seed(0))  # not whole batches
    batches = list(islice(training_order(lengths, 32, 0), 193))  # three epochs
    padded = sum(32 * padded_length(longest) for _, longest in batches)
    assert padded < 1.3 * 3 * int(lengths.sum())
    assert len({longest for _, longest in batches[:16]}) > 2  # short and long ones come in turn


def test_with_a_spare_place_the_rows_of_a_step_are_all_padded_or_none_whatever_the_seed() -> None:
    lengths = torch.cat([torch.full((128,), 16), torch.arange(9, 17).repeat(32), torch.full((64,), 21)])
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for seed in (0, 1):
        for places, longest in islice(training_order(lengths, 8, seed, spare=1), 3 * len(lengths) // 8):
            unpadded = lengths[places] == padded_length(longest)
            assert unpadded.all() or not unpadded.any()
            found[bool(unpadded.any())].add(padded_length(longest))
    assert found == {True: {16}, False: {16, 24}}
    steps = [list(islice(training_order(lengths, 8, 0, spare=spare), 60)) for spare in (0, 1)]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(*steps, strict=True))


def test_an_evaluation_sees_every_row_once() -> None:
    lengths = torch.tensor([5, 3, 9, 3, 1])
    batches = list(evaluation_order(lengths, 2))
    assert sorted(torch.cat([places for places, _ in batches]).tolist()) == [0, 1, 2, 3, 4]
    assert [longest for _, longest in batches] == [3, 5, 9]


def test_padding_goes_to_a_multiple_of_eight_and_hides_what_it_adds() -> None:
    marks = [[True, False, True], [True], [True, True]]
    tokens = joined([[5, 6, 7], [8], [9, 10]], [False] * 3, marks=marks)
    batch = tokens.padded(torch.tensor([2, 0]), padded_length(3), 1)
    assert batch["input_ids"].tolist() == [[9, 10] + [1] * 6, [5, 6, 7] + [1] * 5]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3]
    assert batch["marked"].tolist()[1] == [True, False, True] + [False] * 5


def three_rows() -> Tokens:
    return joined([[1, 2], [3], [4, 5, 6]], [0, 7, 0])


def test_tokens_are_cached_by_what_they_depend_on_and_a_torn_file_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path)
    built = []

    def build() -> Tokens:
        built.append(1)
        return three_rows()

    cached_tokens(build, text="a", tokenizer="t")
    again = cached_tokens(build, text="a", tokenizer="t")
    assert len(built) == 1
    assert torch.equal(again.flat, three_rows().flat)
    assert again.cut.tolist() == [0, 7, 0]
    assert again.truncated.tolist() == [False, True, False]
    cached_tokens(build, text="a", tokenizer="other")
    assert len(built) == 2
    for spoil in (lambda b: b[: len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""):
        (file,) = (f for f in (tmp_path / "tokens").iterdir() if f.stat().st_mtime_ns == newest(tmp_path))
        file.write_bytes(spoil(file.read_bytes()))
        assert torch.equal(cached_tokens(build, text="a", tokenizer="other").flat, three_rows().flat)
    assert len(built) == 5


def test_a_cache_that_is_full_costs_time_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("experiments.data.tokens.save_file", full)
    assert torch.equal(cached_tokens(three_rows, text="a").flat, three_rows().flat)
    assert not list((tmp_path / "tokens").iterdir())


def test_tokens_are_not_cached_while_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path)
    with read_only():
        assert torch.equal(cached_tokens(three_rows, text="a").flat, three_rows().flat)
    assert not list(tmp_path.iterdir())


def newest(folder: Path) -> int:
    return max(file.stat().st_mtime_ns for file in (folder / "tokens").iterdir())


class Characters:
    """A tokenizer whose tokens are characters."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, texts: list[str], **_: object) -> "Characters":
        self.input_ids = [[ord(letter) for letter in text] for text in texts]
        return self


def test_a_text_of_which_the_tokenizer_makes_no_token_is_refused() -> None:
    inner = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    inner.pre_tokenizer = Split("-", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert encode_texts(tokenizer, [("a-a",), ("a",)], 8).lengths.tolist() == [2, 1]
    with pytest.raises(
        DataError, match=r"the tokenizer makes no token of \('--',\), one of 2 such rows; leave them out"
    ):
        encode_texts(tokenizer, [("a-a",), ("--",), ("-",)], 8)


def words_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    inner.pre_tokenizer = Split(" ", "removed")
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_the_tokens_that_each_text_has_lost_are_counted_of_pairs_too() -> None:
    assert encode_texts(words_tokenizer(), [("a a",), ("a " * 20,), ("a",)], 8).cut.tolist() == [0, 12, 0]
    assert encode_texts(words_tokenizer(), [("a a", "a"), ("a " * 9, "a " * 6)], 8).cut.tolist() == [0, 7]


def test_texts_in_parts_are_the_same_tokens_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("a " * (1 + i % 5),) for i in range(10)]
    whole, counted = encode_texts(words_tokenizer(), texts, 4), []
    monkeypatch.setattr("experiments.data.encoding.TEXTS", 4)
    parts = encode_texts(words_tokenizer(), texts, 4, lambda *at: counted.append(at))
    assert (parts.flat.tolist(), parts.ends.tolist(), parts.cut.tolist()) == (
        whole.flat.tolist(), whole.ends.tolist(), whole.cut.tolist(),
    )  # fmt: skip
    assert counted == [(4, 10), (8, 10), (10, 10)]


def test_windows_predict_every_token_of_a_stream_once() -> None:
    text = "".join(chr(65 + i % 50) for i in range(1000))
    tokens = encode_stream(Characters(), [Passage(text)], 64)
    predicted = [int(t) for a, b in zip(tokens.starts, tokens.ends, strict=True) for t in tokens.flat[a + 1 : b]]
    assert predicted == [ord(letter) for letter in text[1:]]
    assert int(tokens.lengths.max()) == 65


def test_a_line_scores_its_reference_alone_and_one_that_is_cut_says_so() -> None:
    lines = [Passage("xyz", "ab"), Passage("y" * 40, "ab")]
    tokens = encode_lines(Characters(), lines, 16, score_prompts=False)
    assert tokens.flat[:7].tolist() == [1, *b"abxyz", 2]
    assert tokens.marked[:7].tolist() == [False] * 3 + [True] * 4
    assert tokens.lengths.tolist() == [7, 17]
    assert tokens.truncated.tolist() == [False, True]
    assert tokens.cut.tolist() == [0, 27]
    assert encode_lines(Characters(), lines, 16, score_prompts=True).marked[:7].tolist() == [False] + [True] * 6


def test_what_is_scored_is_marked_and_has_a_token_before_it() -> None:
    rows = [[5, 6, 7], [8], [9, 10], [], [11, 12]]
    marks = [[True, False, True], [True], [True, True], [], [True, False]]
    assert joined(rows, [False] * 5, marks=marks).scored.tolist() == [1, 0, 1, 0, 0]
    stream = encode_stream(Characters(), [Passage("abcdefghij")], 8)
    assert stream.scored.tolist() == [8, 1]
