"""What a stream says token by token."""

from __future__ import annotations

import pytest

from headrace.testing import ByteTokenizer
from headrace.text import Piece, TextStream
from headrace.text.stop_matcher import StopMatcher


def push_all(stream: TextStream, text: str) -> list[Piece]:
    return [stream.push(byte) for byte in text.encode()]


def test_half_a_character_is_never_shown() -> None:
    stream = TextStream(ByteTokenizer())
    assert [piece.text for piece in push_all(stream, "é🦙")] == ["", "é", "", "", "", "🦙"]
    assert stream.finish() == ""


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    stream = TextStream(ByteTokenizer())
    assert [stream.push(byte).text for byte in "🦙".encode()[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""


def test_a_stop_string_may_span_tokens_and_is_reported_once() -> None:
    stream = TextStream(ByteTokenizer(), stop_strings=["STOP"])
    pieces = push_all(stream, "a STOP b")
    assert "".join(piece.text for piece in pieces) == "a "
    assert [piece.stop_match for piece in pieces if piece.stop_match] == ["STOP"]
    assert stream.finish() == ""


def test_text_that_turns_out_to_be_no_stop_string_comes_out() -> None:
    stream = TextStream(ByteTokenizer(), stop_strings=["STOP"])
    assert [piece.text for piece in push_all(stream, "STOX")] == ["", "", "", "STOX"]


def test_held_back_text_comes_out_at_the_end() -> None:
    stream = TextStream(ByteTokenizer(), stop_strings=["STOP"])
    push_all(stream, "aSTO")
    assert stream.finish() == "STO"


def test_the_stop_text_can_be_kept() -> None:
    stream = TextStream(ByteTokenizer(), stop_strings=["."], include_stop_text=True)
    assert "".join(piece.text for piece in push_all(stream, "Yes. No.")) == "Yes."


def test_special_tokens_show_only_when_asked_for() -> None:
    hidden, shown = TextStream(ByteTokenizer()), TextStream(ByteTokenizer(), skip_special=False)
    assert (hidden.push(257).text, shown.push(257).text) == ("", "<eos>")


def test_a_special_token_that_is_shown_can_stop_the_text() -> None:
    stream = TextStream(ByteTokenizer(), skip_special=False, stop_strings=["<eos>"])
    assert stream.push(257) == Piece("", "<eos>")


def test_only_the_very_first_space_is_taken_away() -> None:
    stream = TextStream(ByteTokenizer(), strip_first_space=True)
    assert "".join(piece.text for piece in push_all(stream, "  a b")) == " a b"
    assert "".join(piece.text for piece in push_all(TextStream(ByteTokenizer()), " a")) == " a"


def test_empty_stop_strings_stop_nothing() -> None:
    assert "".join(piece.text for piece in push_all(TextStream(ByteTokenizer(), stop_strings=["", ""]), "abc")) == "abc"


@pytest.mark.parametrize(
    ("stops", "text", "released", "match"),
    [
        (["b", "ab"], "xab", "x", "ab"),  # both end together: the longest
        (["abcd", "bc"], "abcd", "a", "bc"),  # the one that ends first
        (["aab"], "aaab", "a", "aab"),  # falls back inside itself
        (["abab", "ba"], "aba", "a", "ba"),
    ],
)
def test_the_match_that_ends_first_wins_then_the_longest(
    stops: list[str], text: str, released: str, match: str
) -> None:
    assert StopMatcher(stops).feed(text) == (released, match)


def test_the_longest_possible_beginning_is_held() -> None:
    matcher = StopMatcher(["aba", "bb"])
    assert matcher.feed("xab").released == "x"
    assert matcher.held == "ab"
    assert matcher.flush() == "ab"
