"""What a pool tells of its requests, in an engine's words."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import Overloaded
from headrace.gateway.upstream import ObservedUpstream
from headrace.obs import Metrics
from headrace.testing import VirtualClock
from tests.unit.api.test_chat import Scripted
from tests.unit.gateway.upstream.scripted import a_request

USAGE = Usage(prompt_tokens=9, completion_tokens=3, cached_tokens=4)


def observed(*deltas: Delta, error: Exception | None = None, take: int = 99) -> tuple[Any, ObservedUpstream]:
    """Read up to `take` deltas of a request, then leave; return the observer and the upstream."""
    metrics = Metrics()
    observer = metrics.observer("far")
    upstream = ObservedUpstream(Scripted(*deltas, error=error), observer, VirtualClock())

    async def run() -> None:
        answer = upstream.generate(a_request())
        for _ in range(take):
            if await anext(answer, None) is None:
                break
        await answer.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    return observer, upstream


def test_an_answer_is_counted_with_its_usage() -> None:
    observer, upstream = observed(
        Delta(text="a"), Delta(text="b"), Delta(text="c", finish=FinishReason.STOP, usage=USAGE)
    )
    assert (observer.finished["stop"], observer.prompt_tokens, observer.cached_tokens) == (1, 9, 4)
    assert (observer.ttft.buckets()[-1], observer.itl.buckets()[-1]) == (("+Inf", 1), ("+Inf", 2))
    snapshot = upstream.snapshot()
    assert (snapshot.num_running, snapshot.prompt_tokens, snapshot.generated_tokens) == (0, 5, 3)


def test_a_reader_that_leaves_counts_as_abort() -> None:
    observer, upstream = observed(Delta(text="a"), Delta(text="b"), take=1)
    assert observer.finished["abort"] == 1
    assert upstream.snapshot().num_running == 0


def test_a_refusal_is_no_answer() -> None:
    with pytest.raises(Overloaded):
        observed(error=Overloaded("full", retry_after_s=1.0))
    metrics = Metrics()
    observer = metrics.observer("far")
    upstream = ObservedUpstream(Scripted(error=Overloaded("full", retry_after_s=1.0)), observer, VirtualClock())

    async def run() -> None:
        with pytest.raises(Overloaded):
            await anext(upstream.generate(a_request()))

    asyncio.run(run())
    assert observer.refused == {"overloaded": 1}
    assert sum(observer.finished.values()) == 0
