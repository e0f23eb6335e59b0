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
from headrace.econ import Owed, RentPolicy, RentTerms, StepCosts
from headrace.engine.meter import StepMeter

Make = Callable[..., Any]


def row(seq_id: int, count: int = 1, start: int = 8, again: int = 0) -> Row:
    return Row(SeqId(seq_id), start, [1] * count, (0,), SamplingParams(), num_again=again)


def parts(time: EngineTime) -> int:
    own = (time.loading_ns, time.requests_ns, time.recomputed_ns, time.abandoned_ns, time.idle_ns, time.cached_ns)
    assert min(own) >= 0
    return sum(own)


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
        st.tuples(
            *(st.floats(0, 5), st.floats(0, 5), st.lists(st.integers(0, 5), unique=True, max_size=6), st.booleans()),
            *(st.integers(0, 7), st.integers(0, 10**11)),
        )
    ),
    st.sampled_from(RentPolicy),
)
def test_the_accounts_add_up_whatever_happens(
    spans: list[tuple[float, float, list[int], bool, int, int]], policy: RentPolicy
) -> None:
    meter, now, handed_out = StepMeter(3.25, StepCosts, terms=RentTerms.of(policy, 0.3, 7)), 3.25, 0
    meter.open(range(0, 3))
    is_open = True
    for gap, length, members, closes, num_cached, owed in spans:
        if gap > 4:
            meter.note_idle(now + gap / 2)
        rows = [row(m, 1 + m, 0, again=m // 2) for m in members]
        debts = [Owed(m, owed, 10**6) for m in members]
        meter.on_step(rows, now + gap, now + gap + length, num_cached, debts)
        meter.note_cached(num_cached // 2)
        now += gap + length
        if closes and is_open:
            handed_out, is_open = meter.close(range(0, 3)), False
        assert parts(meter.time()) == meter.time().total_ns
    assert meter.time().requests_ns == (meter.read(0) if is_open else handed_out)


def test_the_next_user_of_a_cached_prefix_pays_for_the_time_it_rested() -> None:
    meter = StepMeter(0.0, StepCosts, terms=RentTerms.of(RentPolicy.FULL, 0.5, 10))
    meter.open(range(0, 1))
    meter.open(range(1, 2))
    meter.note_cached(4)
    meter.on_step([row(0), row(1)], 10.0, 11.0, 2, [Owed(0, 2 * 10 * 10**9, 32)])
    # 4 of 10 blocks rested 10 s, then 2 of them 1 s, and half of the machine is memory.
    assert meter.time().idle_ns == 8 * 10**9
    assert meter.read_rent(0) == 10**9
    assert meter.time().cached_ns == 2 * 10**9 + 10**8 - 10**9
    assert (meter.read(0), meter.read(1)) == (450_000_000 + 10**9, 450_000_000)


def test_rent_is_at_most_what_computing_the_tokens_again_would_take() -> None:
    costs = StepCosts(per_prompt_token=1_000_000, per_pair=1_000)
    meter = StepMeter(0.0, lambda: costs, terms=RentTerms.of(RentPolicy.CAPPED, 1.0, 10))
    meter.open(range(0, 1))
    meter.note_cached(10)
    meter.on_step([row(0)], 3600.0, 3600.1, 0, [Owed(0, 10 * 3600 * 10**9, 100)])
    assert meter.read_rent(0) == 100 * 1_000 + 100 * 100 // 2
    assert meter.time().cached_ns == 3600 * 10**9 - meter.read_rent(0)


def test_one_that_has_left_pays_no_rent() -> None:
    meter = StepMeter(0.0, StepCosts, terms=RentTerms.of(RentPolicy.FULL, 1.0, 10))
    meter.note_cached(10)
    meter.on_step([row(0)], 5.0, 6.0, 0, [Owed(0, 50 * 10**9, 100)])
    assert (meter.time().rent_ns, meter.time().cached_ns) == (0, 5 * 10**9)


def test_a_served_hit_pays_rent(run: Make, ask: Make) -> None:
    async def main() -> None:
        async with run(rent="full") as bench:

            async def rents(*prompts: str) -> list[int]:
                told: list[int] = []
                bench.service.bill_to(lambda stats: told.append(stats.rent_ns))

                async def one(prompt: str) -> None:
                    async for _ in bench.service.generate(ask(prompt, max_tokens=2)):
                        pass

                await asyncio.gather(*map(one, prompts))
                return told

            assert await rents("a" * 40 + "b") == [0]
            (alone,) = await rents("a" * 40 + "c")
            both = await rents("a" * 40 + "d", "a" * 40 + "e")
            time = bench.service.time()
            assert alone > 0
            assert max(both) > 0  # both, if one step admits both
            assert time.rent_ns == alone + sum(both)
            assert time.cached_ns > 0
            assert parts(time) == time.total_ns

    asyncio.run(main())


def test_a_served_load_with_searches_disconnects_and_preemptions_adds_up(run: Make, ask: Make) -> None:
    async def main() -> None:
        chance = random.Random(4)
        async with run(model={"num_blocks": 24}, max_context=60, max_waiting=500, rent="full") as bench:
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
