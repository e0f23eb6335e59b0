"""Any mix of failures, readers that leave and passing time: each answer is one upstream's, whole or ended once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import HeadraceError, UpstreamFailed
from headrace.core.request import Request
from headrace.core.upstream_settings import FailoverSettings, UpstreamSettings
from headrace.core.upstream_status import BreakerState
from headrace.gateway.upstream.breaker import Breaker
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.keys import KeyRing
from headrace.gateway.upstream.member import Member
from headrace.gateway.upstream.pool import Pool
from headrace.gateway.upstream.reported import ReportedCosts
from headrace.gateway.upstream.retries import RetryAccount
from headrace.testing import VirtualClock
from tests.unit.gateway.upstream.scripted import a_request

POLICY = FailoverSettings(retry_s=8.0, backoff_s=0.5, retry_ratio=0.2, breaker_min_calls=3, breaker_open_s=5.0)
ENDINGS: list[Kind | None] = [None, None, None, *(kind for kind in Kind if kind is not Kind.BUSY)]

# One attempt: how many deltas come, and how it ends.
attempts = st.tuples(st.integers(0, 3), st.sampled_from(ENDINGS))


class Planned:
    """An answer of a number of deltas, in reads of one or two, that ends as planned."""

    def __init__(self, mark: str, num_deltas: int, ending: Kind | None, told: list[str]) -> None:
        self._mark, self._num_left, self._ending, self._told = mark, num_deltas, ending, told
        self._whole = mark * (num_deltas + 1)
        self.has_ended = self.is_closed = False

    async def more(self) -> list[Delta]:
        assert not self.is_closed
        if self._num_left == 0:
            self.has_ended = True
            if self._ending is not None:
                raise Failure(self._ending, UpstreamFailed("planned"), 1.0 if self._ending is Kind.THROTTLED else None)
            self._told.append(self._whole)
            usage = Usage(prompt_tokens=1, completion_tokens=2)
            return [Delta(text=self._mark, finish=FinishReason.STOP, usage=usage)]
        num_read = min(2, self._num_left)
        self._num_left -= num_read
        return [Delta(text=self._mark)] * num_read

    def close(self) -> None:
        self.is_closed = True


class Fickle:
    """An adapter whose attempts go as planned; each says its own name, so that a mix of two would show."""

    def __init__(self, name: str, plan: list[tuple[int, Kind | None]], told: list[str]) -> None:
        self._name, self._plan, self._told = name, plan, told
        self.answers: list[Planned] = []
        self.costs = ReportedCosts(name, "note")

    @property
    def num_attempts(self) -> int:
        return len(self.answers)

    async def ask(self, request: Request, model: str, secret: str | None) -> Planned:
        num_deltas, ending = self._plan[self.num_attempts % len(self._plan)]
        answer = Planned(f"[{self._name}{self.num_attempts}]", num_deltas, ending, self._told)
        self.answers.append(answer)
        return answer

    async def count(self, request: Request, model: str, secret: str | None) -> int:
        raise NotImplementedError

    async def detokenize(self, token_ids: Sequence[int], model: str, secret: str | None) -> str:
        raise NotImplementedError


@settings(max_examples=150, deadline=None)
@given(
    plans=st.lists(st.lists(attempts, min_size=1, max_size=6), min_size=1, max_size=3),
    readers=st.lists(st.tuples(st.integers(1, 6), st.floats(0, 4)), min_size=1, max_size=12),
    seed=st.integers(0, 9),
)
def test_each_answer_is_one_attempts_own(
    plans: list[list[tuple[int, Kind | None]]], readers: list[tuple[int, float]], seed: int
) -> None:
    clock = VirtualClock()
    told: list[str] = []
    adapters = [Fickle("abc"[i], plan, told) for i, plan in enumerate(plans)]
    members = [
        Member(
            f"u{i}",
            UpstreamSettings(url="http://h", models={"m": "m"}),
            adapter,
            KeyRing(["env:K"], lambda place: place, clock),
            Breaker(POLICY, clock),
            clock,
        )
        for i, adapter in enumerate(adapters)
    ]

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)

    pool = Pool(members, POLICY, RetryAccount(POLICY.retry_ratio), clock, random=Random(seed), sleep=sleep)

    async def read(patience: int) -> None:
        """Take up to `patience` deltas, then leave."""
        start_s = clock.now()
        answer: Any = pool.generate(a_request())
        deltas: list[Delta] = []
        try:
            while len(deltas) < patience and (delta := await anext(answer, None)) is not None:
                deltas.append(delta)
        except HeadraceError:
            assert not deltas, "a failure after the first delta is an ending, not an exception"
            assert clock.now() - start_s <= POLICY.retry_s
        finally:
            await answer.aclose()
        text = "".join(delta.text for delta in deltas)
        mark = text[: text.find("]") + 1]
        assert text == mark * (len(text) // len(mark)) if mark else text == ""
        endings = [delta.finish for delta in deltas if delta.finish is not None]
        was_read_to_the_end = 0 < len(deltas) < patience
        assert len(endings) == 1 if was_read_to_the_end else len(endings) <= 1
        if endings:
            assert deltas[-1].finish is not None
            assert deltas[-1].usage is not None
        if endings == [FinishReason.STOP]:
            assert text in told

    async def run() -> None:
        for patience, pause_s in readers:
            before = sum(adapter.num_attempts for adapter in adapters)
            left_alone = [i for i, m in enumerate(members) if m.status().breaker is BreakerState.OPEN]
            counts = [adapter.num_attempts for adapter in adapters]
            start_s = clock.now()
            await read(patience)
            if clock.now() == start_s:
                assert all(adapters[i].num_attempts == counts[i] for i in left_alone)
            assert sum(adapter.num_attempts for adapter in adapters) - before <= 30
            clock.advance(pause_s)
        retries = sum(member.status().retries for member in members)
        assert retries <= 10 + POLICY.retry_ratio * len(readers)
        for member, adapter in zip(members, adapters, strict=True):
            status = member.status()
            assert status.in_flight == 0
            assert sum(status.outcomes.values()) == adapter.num_attempts
            assert all(answer.is_closed for answer in adapter.answers)

    asyncio.run(run())
