"""Replies as they are read: deltas in batches, and nothing after a failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.core.delta import FinishReason
from headrace.gateway.upstream.failure import Failure
from headrace.gateway.upstream.openai_events import OpenAIEvents
from headrace.gateway.upstream.replies import Answer
from headrace.gateway.upstream.reported import ReportedCosts
from tests.unit.gateway.upstream.scripted import DONE, USAGE, chunk, event


class Read:
    """A reply whose reads of the network are known."""

    status, is_event_stream = 200, True

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.closings: list[bool] = []

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self, *, is_read: bool = False) -> None:
        self.closings.append(is_read)


def answer_of(reply: Any) -> Answer:
    return Answer("u", reply, OpenAIEvents("u", 1), ReportedCosts("u", "note"), 4096)


REST = (chunk("lo"), chunk(finish="stop"), USAGE, DONE)  # what a server may say after its nonsense


@pytest.mark.parametrize(
    "nonsense",
    [b"data: {garbage\n\n", event({"error": {"message": "x"}}), b"data: " + b"y" * 5000 + b"\n\n", b"y" * 5000],
    ids=["garbage", "error", "giant event", "giant line"],
)
@pytest.mark.parametrize("same_read", [True, False])
def test_words_before_a_failure_come_first_and_nothing_comes_after_it(nonsense: bytes, same_read: bool) -> None:
    async def run() -> None:
        first = chunk("Hel") + nonsense
        reply = Read(first + b"".join(REST)) if same_read else Read(first, *REST)
        answer = answer_of(reply)
        assert [delta.text for delta in await answer.more()] == ["Hel"]
        for _ in range(2):
            with pytest.raises(Failure):
                await answer.more()
        answer.close()
        assert (answer.has_ended, reply.closings) == (False, [False])

    asyncio.run(run())


def test_what_one_read_brings_comes_together_and_the_end_closes_the_reply() -> None:
    async def run() -> None:
        reply = Read(chunk("a") + chunk("b"), b": ping\n\n", chunk("c")[:9], chunk("c")[9:] + b"".join(REST))
        answer = answer_of(reply)
        batches = [await answer.more() for _ in range(3)]
        assert [[delta.text for delta in batch] for batch in batches] == [["a", "b"], ["c", "lo", ""], []]
        assert batches[1][-1].finish is FinishReason.STOP
        assert batches[1][-1].usage is not None
        assert (answer.has_ended, reply.closings) == (True, [True])

    asyncio.run(run())
