"""What a pool tells of its requests, in an engine's words."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import UpstreamRefused
from headrace.gateway.upstream import Observed
from headrace.obs import Metrics
from headrace.testing import VirtualClock
from tests.unit.gateway.upstream.scripted import (
    ScriptedServer,
    a_request,
    answer,
    chunk,
    event,
    fleet_of,
    play,
    status,
    stream,
)

USAGE = Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)


def observed(*deltas: Delta) -> tuple[Any, Observed]:
    """Begin a request, let it see `deltas` and end it; return the observer and what is observed."""
    observer = Metrics().observer("far")
    observed = Observed(observer, VirtualClock())
    life = observed.begin(a_request())
    assert observed.snapshot().num_running == 1
    for delta in deltas:
        life.see(delta)
    life.end()
    return observer, observed


def test_an_answer_is_counted_with_its_usage() -> None:
    observer, counts = observed(
        Delta(text="a"), Delta(text="b"), Delta(text="c", finish=FinishReason.STOP, usage=USAGE)
    )
    assert (observer.finished["stop"], observer.prompt_tokens, observer.cached_tokens) == (1, 9, 4)
    assert (observer.ttft.buckets()[-1], observer.itl.buckets()[-1]) == (("+Inf", 1), ("+Inf", 2))
    snapshot = counts.snapshot()
    assert (snapshot.num_running, snapshot.prompt_tokens, snapshot.generated_tokens) == (0, 5, 3)


def test_gaps_are_measured_between_words_of_one_choice() -> None:
    observer, _ = observed(
        Delta(index=0, text="a"),
        Delta(index=1, text="b"),
        Delta(index=0, reasoning="c"),
        Delta(index=1),
        Delta(index=1),
    )
    assert observer.itl.buckets()[-1] == ("+Inf", 1)


def test_a_reader_that_leaves_counts_as_abort_and_a_failure_as_error() -> None:
    async def run() -> None:
        broken = stream(chunk("Hel"), event({"error": {"message": "boom"}}))
        async with ScriptedServer([answer("Hel", "lo"), broken, answer("ok")]) as server:
            observer = Metrics().observer("far")
            counts = Observed(observer, MonotonicClock())
            pool = fleet_of(server.url).pool("m", counts)
            left = pool.generate(a_request())
            assert (await anext(left)).text == "Hel"
            await left.aclose()  # type: ignore[attr-defined]
            for _ in range(2):
                assert [delta async for delta in pool.generate(a_request())]
            assert {reason: count for reason, count in observer.finished.items() if count} == {
                "abort": 1, "error": 1, "stop": 1,
            }  # fmt: skip
            assert counts.snapshot().num_running == 0

    play(run())


def test_a_refusal_is_no_answer() -> None:
    async def run() -> None:
        async with ScriptedServer([status(422)]) as server:
            observer = Metrics().observer("far")
            counts = Observed(observer, MonotonicClock())
            with pytest.raises(UpstreamRefused):
                await anext(fleet_of(server.url).pool("m", counts).generate(a_request()))
            assert observer.refused == {"upstream_refused": 1}
            assert sum(observer.finished.values()) == 0
            assert counts.snapshot().num_running == 0

    play(run())
