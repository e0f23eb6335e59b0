"""Events out of bytes: the same ones, however the bytes are split."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.upstream.sse_events import EventReader

STREAM = (
    b': hello\n\nevent: a\r\ndata: {"x": "\xc3\xa9"}\r\n\r\ndata:1\ndata: 2\n\n'
    b"id: 7\nretry: 10\ndata\n\nevent: end\ndata: [DONE]\n\n"
)
EVENTS = ['{"x": "é"}'.encode(), b"1\n2", b"[DONE]"]
PLAIN = b'data: {"a": 1}\n\n: ping\n\ndata:2\n\n\n\ndata: 3\n\ndata: [DONE]\n\n'
PLAIN_EVENTS = [b'{"a": 1}', b"2", b"3", b"[DONE]"]


@pytest.mark.parametrize(("sent", "events"), [(STREAM, EVENTS), (PLAIN, PLAIN_EVENTS)], ids=["odd", "plain"])
@given(data=st.data())
def test_splits_do_not_matter(sent: bytes, events: list[bytes], data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(1, len(sent) - 1), max_size=12))
    edges = [0, *sorted(cuts), len(sent)]
    reader = EventReader(1000)
    assert [e for a, b in pairwise(edges) for e in reader.feed(sent[a:b])] == events


def test_whole_events_of_one_read_come_together() -> None:
    reader = EventReader(1000)
    pieces = [piece + b"\n\n" for piece in PLAIN.split(b"\n\n")[:-1]]
    for cut in range(len(pieces) + 1):
        assert reader.feed(b"".join(pieces[:cut])) + reader.feed(b"".join(pieces[cut:])) == PLAIN_EVENTS


def test_what_is_cut_off_at_the_end_is_no_event() -> None:
    assert list(EventReader(1000).feed(b'data: {"x": 1}\n')) == []


@pytest.mark.parametrize("giant", [b"x" * 101, b"data: " + b"y" * 60 + b"\ndata: " + b"y" * 60 + b"\n"])
def test_what_came_before_a_giant_is_told_first(giant: bytes) -> None:
    reader = EventReader(100)
    assert reader.feed(b"data: 1\n\n" + giant) == [b"1"]
    assert reader.excess is not None
    assert "100" in reader.excess


def test_a_giant_that_came_whole_is_too_large_as_well() -> None:
    reader = EventReader(100)
    assert reader.feed(b"data: 1\n\ndata: " + b"y" * 101 + b"\n\n") == [b"1"]
    assert reader.excess is not None
