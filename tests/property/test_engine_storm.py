"""Ten thousand requests that are given up at any moment, over the whole engine: nothing is left behind."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.delta import FinishReason
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.core.stats import RequestStats
from headrace.engine import AsyncEngine, Engine
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import ByteTokenizer, UniformModel

NUM_REQUESTS, NUM_CLIENTS, NUM_BLOCKS = 10_000, 200, 96


class Tally:
    """Counts how requests end."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.reasons: set[FinishReason] = set()

    def on_step(self, stats: object) -> None:
        pass

    def on_first_token(self, ttft_s: float) -> None:
        pass

    def on_next_token(self, gap_s: float) -> None:
        pass

    def on_refused(self, error: Exception) -> None:
        raise AssertionError(f"refused: {error}")

    def on_finished(self, stats: RequestStats) -> None:
        assert stats.request_id not in self.ends
        self.ends[stats.request_id] = len(stats.finishes)
        self.reasons.update(stats.finishes)


def ask(number: int, random: Random) -> Request:
    """A third of the prompts begin alike, so that blocks are shared when their holders go."""
    head = "a prefix that many share " if random.random() < 0.3 else f"{number} "
    return Request(
        request_id=RequestId(str(number)),
        model="m",
        prompt=tuple(f"{head}{number % 17}".encode()),
        sampling=SamplingParams(seed=number),
        stop=StopRules(max_tokens=random.randrange(1, 40)),
        n=2 if number % 50 == 0 else 1,
    )


async def client(service: AsyncEngine, numbers: range, ends: list[FinishReason]) -> None:
    """Ask one request after the other and leave at a random moment, before the first word or after the last."""
    random = Random(numbers.start)
    for number in numbers:
        stream = service.generate(ask(number, random))
        patience = random.choice([1, 1, 2, 5])
        if random.random() < 0.1:
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            patience = 0
        for _ in range(patience):
            delta = await anext(stream, None)
            if delta is None:
                break
            if delta.finish is not None:
                ends.append(delta.finish)
        if random.random() < 0.2 and service.abort(RequestId(str(number))):
            ends += [delta.finish async for delta in stream if delta.finish is not None]
        await stream.aclose()


@pytest.mark.parametrize("plans_ahead", [False, True])
def test_an_abort_storm_of_ten_thousand_requests_leaks_nothing(plans_ahead: bool) -> None:
    limits = SchedulerLimits(
        max_num_seqs=48, max_step_tokens=512, max_context=96, max_waiting=NUM_REQUESTS, plans_ahead=plans_ahead
    )
    pool = BlockPool(NUM_BLOCKS)
    scheduler = Scheduler(pool, 4, limits)
    model = UniformModel(num_blocks=NUM_BLOCKS, block_size=4, vocab_size=128)
    clock, tally = MonotonicClock(), Tally()
    engine = Engine(scheduler, model, clock)
    service = AsyncEngine(engine, ByteTokenizer(), clock, vocab_size=128, observer=tally)
    ends: list[FinishReason] = []

    async def storm() -> None:
        await service.start()
        share = NUM_REQUESTS // NUM_CLIENTS
        async with asyncio.timeout(120):
            await asyncio.gather(
                *(client(service, range(i * share, (i + 1) * share), ends) for i in range(NUM_CLIENTS))
            )
            while scheduler.has_work:  # the last aborts are on their way to the engine thread
                await asyncio.sleep(0.001)
        await service.stop()

    asyncio.run(storm())
    scheduler.check()
    assert pool.num_free == NUM_BLOCKS
    assert model.num_pending == 0
    assert not service._streams
    assert not service._by_request
    assert not service._memory._preemptions
    assert len(tally.ends) == NUM_REQUESTS
    # How many readers see their own abort depends on who is quicker; that both ends come about does not.
    assert tally.reasons == {FinishReason.LENGTH, FinishReason.ABORT}
    assert set(ends) <= tally.reasons
    assert engine.dead.exception() is None
