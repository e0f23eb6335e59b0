"""Events out of bytes: the same ones, however the bytes are split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.upstream.sse_events import EventReader, EventTooLarge, SentEvent

STREAM = (
    b': hello\n\nevent: a\r\ndata: {"x": "\xc3\xa9"}\r\n\r\ndata:1\ndata: 2\n\n'
    b"id: 7\nretry: 10\ndata\n\nevent: end\ndata: [DONE]\n\n"
)
EVENTS = [SentEvent("a", '{"x": "é"}'.encode()), SentEvent("", b"1\n2"), SentEvent("end", b"[DONE]")]


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_splits_do_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader(1000)
    assert [e for a, b in pairwise(edges) for e in reader.feed(STREAM[a:b])] == EVENTS


def test_what_is_cut_off_at_the_end_is_no_event() -> None:
    assert list(EventReader(1000).feed(b'data: {"x": 1}\n')) == []


@pytest.mark.parametrize("giant", [b"x" * 101, b"data: " + b"y" * 60 + b"\ndata: " + b"y" * 60 + b"\n"])
def test_what_came_before_a_giant_is_told_first(giant: bytes) -> None:
    events = EventReader(100).feed(b"data: 1\n\n" + giant)
    assert next(events) == SentEvent("", b"1")
    with pytest.raises(EventTooLarge, match="100"):
        next(events)
