"""A stream's text does not depend on how it arrived, and is the whole text cut at the first stop string."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.model import open_checkpoint
from headrace.testing import ByteTokenizer
from headrace.text import TextStream, Tokenizer, load_tokenizer

LETTERS = "ab<|é🦙 "
texts = st.text(LETTERS, max_size=40)
stop_sets = st.lists(st.text(LETTERS, max_size=5), max_size=4)


class Chunks:
    """A tokenizer whose token i is the i-th chunk of bytes."""

    special_ids = frozenset[int]()

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        self.chunks = [data[start:end] for start, end in itertools.pairwise(ends)]

    def token_bytes(self, token_id: int) -> bytes:
        return self.chunks[token_id]

    def decode(self, ids: object, *, skip_special: bool = True) -> str:
        raise AssertionError("no chunk is special")


def cut_at_first_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Read character by character; among the stop strings that end together the longest counts."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


def run(stream: TextStream, ids: list[int]) -> list[str]:
    pieces = [stream.push(i) for i in ids]
    assert [piece.stop_match for piece in pieces if piece.stop_match] in ([], [stream.stop_match])
    return [*(piece.text for piece in pieces), stream.finish()]


@settings(max_examples=500)
@given(texts, st.lists(st.integers(0, 80)), stop_sets, st.booleans())
def test_any_chunking_gives_the_text_cut_at_the_first_stop(
    text: str, cuts: list[int], stops: list[str], include: bool
) -> None:
    chunks = Chunks(text.encode(), cuts)
    stream = TextStream(chunks, stop_strings=stops, include_stop_text=include)
    pieces = run(stream, list(range(len(chunks.chunks))))
    assert ("".join(pieces), stream.stop_match) == cut_at_first_stop(text, stops, include)


@settings(max_examples=500)
@given(st.binary(max_size=40), st.lists(st.integers(0, 40)))
def test_bytes_that_are_no_utf8_turn_into_replacement_characters_as_in_the_whole(data: bytes, cuts: list[int]) -> None:
    chunks = Chunks(data, cuts)
    pieces = run(TextStream(chunks), list(range(len(chunks.chunks))))
    assert "".join(pieces) == data.decode("utf-8", "replace")


@given(texts, stop_sets)
def test_only_what_may_still_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, stop_strings=stops)
    shown = ""
    for end in range(1, len(text) + 1):
        for token_id in tokenizer.encode(text[end - 1], add_special=False):
            shown += stream.push(token_id).text
        if stream.stop_match is not None:
            return
        held = text[len(shown) : end]
        assert text.startswith(shown)
        assert not held or any(len(held) < len(stop) and stop.startswith(held) for stop in stops)
        longer = [text[k:end] for k in range(len(shown))]
        assert not any(len(rest) < len(stop) and stop.startswith(rest) for rest in longer for stop in stops)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(smollm2_path).text_files)


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=40), skip_special=st.booleans())
def test_streamed_tokens_of_a_real_vocabulary_give_the_decoded_text(
    smollm2: Tokenizer, ids: list[int], skip_special: bool
) -> None:
    pieces = run(TextStream(smollm2, skip_special=skip_special), ids)
    assert "".join(pieces) == smollm2.decode(ids, skip_special=skip_special)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40), data=st.data())
def test_a_stop_string_taken_from_the_text_ends_it_before_itself(
    smollm2: Tokenizer, text: str, data: st.DataObject
) -> None:
    text = smollm2.decode(smollm2.encode(text + "end", add_special=False), skip_special=False)  # it lacks some bytes
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : data.draw(st.integers(start + 1, len(text)))]
    stream = TextStream(smollm2, skip_special=False, stop_strings=[stop])
    pieces = run(stream, smollm2.encode(text, add_special=False))
    assert "".join(pieces) == text[: text.index(stop)]
    assert stream.stop_match == stop
