"""Where a request's time was: the parts are the whole, whoever served it and however it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.clock import MonotonicClock
from headrace.core.delta import Delta
from headrace.core.request import Request
from headrace.core.settings import GatewaySettings
from headrace.gateway import Gateway
from headrace.gateway.ledger import Charge, Course, Stopwatch, settlements
from headrace.gateway.store import Row
from headrace.testing import VirtualClock
from tests.unit.gateway.ledger.test_ledger import FOREVER, PRICES, Books, ask, books

_PARTS = ("admission_ns", "queue_ns", "prefill_ns", "decode_ns", "upstream_ns", "reading_ns")
_S = 10**9
seconds = st.floats(0, 50)


def total(course: Course) -> int:
    return sum(getattr(course, part) for part in _PARTS)


def charge(**times: float | None) -> Charge:
    return Charge(5, None, engine="e", **times)  # type: ignore[arg-type]


def walk(clock: VirtualClock) -> Stopwatch:
    clock.advance(10.0)
    watch = Stopwatch(clock, 9.5)
    clock.advance(0.5)
    watch.grant()
    return watch


def test_an_engine_of_ours_has_a_queue_a_prefill_and_a_decode() -> None:
    clock = VirtualClock()
    watch = walk(clock)
    clock.advance(10.0)
    course = watch.course(
        charge(first_scheduled_s=12.0, first_token_s=15.0, finished_s=19.0, paused_s=1.0), is_remote=False
    )
    assert [getattr(course, part) for part in _PARTS] == [1 * _S, int(1.5 * _S), 3 * _S, 3 * _S, 0, int(2.5 * _S)]
    assert course.ttft_ns == int(5.5 * _S)
    assert total(course) == 11 * _S


def test_a_request_that_was_never_scheduled_has_waited_only() -> None:
    clock = VirtualClock()
    watch = walk(clock)
    clock.advance(3.0)
    course = watch.course(charge(finished_s=12.0), is_remote=False)
    assert (course.queue_ns, course.prefill_ns, course.decode_ns, course.ttft_ns) == (3 * _S, 0, 0, None)


def test_a_remote_answer_is_the_upstreams_time_and_its_readers() -> None:
    clock = VirtualClock()
    watch = walk(clock)
    clock.advance(2.0)
    watch.hand_over(has_words=True)
    clock.advance(4.0)
    watch.come_back()
    clock.advance(1.0)
    course = watch.course(None, is_remote=True)
    assert [getattr(course, part) for part in _PARTS] == [1 * _S, 0, 0, 0, 3 * _S, 4 * _S]
    assert course.ttft_ns == 3 * _S


@given(
    st.lists(seconds, min_size=4, max_size=4),
    st.tuples(*(st.none() | seconds for _ in range(3))),
    seconds,
    st.booleans(),
    st.booleans(),
)
def test_the_parts_are_the_time_from_arrival_to_the_end_whatever_is_told(
    waits: list[float], marks: tuple[float | None, ...], paused_s: float, is_remote: bool, is_charged: bool
) -> None:
    clock = VirtualClock()
    clock.advance(1.0 + waits[0])
    watch = Stopwatch(clock, 0.5)
    clock.advance(waits[1])
    watch.grant()
    watch.hand_over(has_words=True)
    clock.advance(waits[2])
    watch.come_back()
    clock.advance(waits[3])
    found = charge(first_scheduled_s=marks[0], first_token_s=marks[1], finished_s=marks[2], paused_s=paused_s)
    course = watch.course(found if is_charged else None, is_remote=is_remote)
    assert total(course) == round(clock.now() * _S) - round(0.5 * _S)
    assert min(getattr(course, part) for part in _PARTS) >= 0


async def _rows(found: Books) -> list[Row]:
    await found.gateway.close()
    return [row async for page in settlements(found.database, 0, FOREVER) for row in page]


def test_the_ledger_says_of_a_served_request_how_it_went(url: str) -> None:
    async def main() -> None:
        async with books(url, GatewaySettings(prices=PRICES, usd_per_hour="1")) as found:
            front = found.gateway.front(found.engine)
            began_s = MonotonicClock().now()
            asked = ask(4, max_tokens=9)
            deltas = [delta async for delta in front.generate(asked)]
            took_ns = (MonotonicClock().now() - began_s) * _S
            (row,) = await _rows(found)
            assert isinstance(deltas[-1], Delta)
            assert sum(int(str(row[part])) for part in _PARTS) <= took_ns + 10**8
            assert 0 < int(str(row["ttft_ns"])) <= sum(int(str(row[part])) for part in _PARTS)
            assert 0 < int(str(row["prompt_ns"])) < int(str(row["engine_ns"]))
            assert row["upstream_ns"] == 0
            assert (row["is_stream"], row["is_repeatable"], row["most_output"]) == (0, 0, 9)
            assert str(row["engine"]).startswith("eng-")
            tokens = len(asked.prompt), deltas[-1].usage.completion_tokens if deltas[-1].usage else 0
            assert (row["cached_nano"], row["output_nano"]) == (0, tokens[1] * 400)
            assert int(str(row["cost_nano"])) == tokens[0] * 100 + tokens[1] * 400

    asyncio.run(main())


def test_equal_requests_have_equal_digests_over_restarts_and_none_if_they_are_switched_off(url: str) -> None:
    class Silent:
        async def generate(self, request: Request) -> AsyncIterator[Delta]:
            yield Delta(text="x")

    async def serve(found: Books, settings: GatewaySettings, *asked: Request) -> None:
        gateway = Gateway(url, settings, MonotonicClock())
        await gateway.open()
        front = gateway.front(Silent())
        for each in asked:
            async for _ in front.generate(each):
                pass
        await gateway.close()

    async def main() -> None:
        async with books(url, GatewaySettings()) as found:
            await serve(found, GatewaySettings(), ask(1), ask(2))
            await serve(found, GatewaySettings(), ask(1))
            await serve(found, GatewaySettings(digests=False), ask(1))
            first, other, again, silent = [row["request_digest"] for row in await _rows(found)]
            assert first == again is not None
            assert first != other
            assert silent is None

    asyncio.run(main())
