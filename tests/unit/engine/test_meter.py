"""The engine's time is somebody's, to the nanosecond."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.request import BeamParams, SamplingParams, SeqId
from headrace.core.stats import EngineTime
from headrace.core.step import Row
from headrace.econ import StepCosts
from headrace.engine.meter import StepMeter

Make = Callable[..., Any]


def row(seq_id: int, count: int = 1, start: int = 8, again: int = 0) -> Row:
    return Row(SeqId(seq_id), start, [1] * count, (0,), SamplingParams(), num_again=again)


def parts(time: EngineTime) -> int:
    return time.loading_ns + time.requests_ns + time.recomputed_ns + time.abandoned_ns + time.idle_ns


def test_each_span_has_one_account() -> None:
    meter = StepMeter(10.0, StepCosts)
    meter.note_ready(12.0)
    meter.open(range(0, 1))
    meter.open(range(1, 3))
    meter.on_step([row(0), row(1), row(2)], 12.5, 12.8)
    assert meter.close(range(0, 1)) == 100_000_000
    meter.on_step([row(0), row(1)], 12.8, 13.0)
    assert meter.close(range(1, 3)) == 300_000_000
    meter.on_step([row(7, 4, 0, again=4)], 13.0, 13.5)
    assert meter.time() == EngineTime(
        total_ns=3_500_000_000,
        loading_ns=2_000_000_000,
        requests_ns=400_000_000,
        recomputed_ns=500_000_000,
        abandoned_ns=100_000_000,
        idle_ns=500_000_000,
    )


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 5), st.lists(st.integers(0, 5), unique=True, max_size=6), st.booleans())
    )
)
def test_the_accounts_add_up_whatever_happens(spans: list[tuple[float, float, list[int], bool]]) -> None:
    meter, now, handed_out = StepMeter(3.25, StepCosts), 3.25, 0
    meter.open(range(0, 3))
    is_open = True
    for gap, length, members, closes in spans:
        if gap > 4:
            meter.note_idle(now + gap / 2)
        meter.on_step([row(m, 1 + m, 0, again=m // 2) for m in members], now + gap, now + gap + length)
        now += gap + length
        if closes and is_open:
            handed_out, is_open = meter.close(range(0, 3)), False
        assert parts(meter.time()) == meter.time().total_ns
    assert meter.time().requests_ns == (meter.read(0) if is_open else handed_out)


def test_a_served_load_with_searches_disconnects_and_preemptions_adds_up(run: Make, ask: Make) -> None:
    async def main() -> None:
        chance = random.Random(4)
        async with run(model={"num_blocks": 24}, max_context=60, max_waiting=500) as bench:
            charged: list[int] = []

            async def one(index: int) -> None:
                fields = {"beam": BeamParams(width=3)} if index % 9 == 0 else {"n": 1 + index % 3}
                stream = bench.service.generate(ask("a" * (1 + index % 17), max_tokens=12, **fields))
                leaves_after = chance.randint(1, 6) if index % 4 == 0 else None
                async for delta in stream:
                    if delta.usage is not None:
                        charged.append(delta.usage.engine_ns)
                    if leaves_after is not None and (leaves_after := leaves_after - 1) == 0:
                        break
                await stream.aclose()

            await asyncio.gather(*(one(index) for index in range(60)))
            time = bench.service.time()
            assert parts(time) == time.total_ns
            assert min(charged) > 0
            assert sum(charged) < time.requests_ns
            assert bench.service.snapshot().num_preemptions > 0

    asyncio.run(main())


def test_a_requests_time_is_told_apart_by_prompt_and_answer() -> None:
    meter = StepMeter(0.0, lambda: StepCosts(shared=0, per_prompt_token=1, per_decode_token=1))
    meter.open(range(0, 1))
    meter.open(range(1, 2))
    meter.on_step([row(0, 8, 0), row(1)], 0.0, 0.9)
    meter.on_step([row(0), row(1)], 0.9, 1.1)
    assert (meter.read_prompt(0), meter.read(0)) == (800_000_000, 900_000_000)
    assert (meter.read_prompt(1), meter.read(1)) == (0, 200_000_000)
