"""What faults do to those they hit, and do not do to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.core.delta import Delta, FinishReason
from headrace.core.errors import EngineDead
from headrace.core.health import HealthState
from headrace.core.request import Request, RequestId, SamplingParams, SeqId, StopRules
from headrace.core.step import Step
from headrace.engine import AsyncEngine, Engine
from headrace.engine.health import HealthJudge, HealthLimits
from headrace.kv import BlockPool
from headrace.kv.transfer import DiskTransport, Fetch, Fetched, FrameCodec, HostPool, Mover, Store
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import ByteTokenizer, UniformModel, VirtualClock, next_token
from headrace.testing.faults import FaultyExecutor, FaultyTransport, StepFault, TransportFault

VOCAB, BLOCK, NUM_BLOCKS = 128, 4, 64


class Bench:
    """An engine whose executor fails by plan, on a clock that stands still."""

    def __init__(self, plan: Callable[[Step], StepFault | None]) -> None:
        self.slept: list[float] = []
        model = UniformModel(num_blocks=NUM_BLOCKS, block_size=BLOCK, vocab_size=VOCAB)
        self.executor = FaultyExecutor(model, plan, self.slept.append)
        self.pool = BlockPool(NUM_BLOCKS)
        limits = SchedulerLimits(max_num_seqs=4, max_step_tokens=32, max_context=64, max_waiting=99)
        self.scheduler = Scheduler(self.pool, BLOCK, limits)
        self.clock = VirtualClock()
        engine = Engine(self.scheduler, self.executor, self.clock)
        self.service = AsyncEngine(engine, ByteTokenizer(), self.clock, vocab_size=VOCAB)

    async def read(self, request: Request) -> list[Delta]:
        async with asyncio.timeout(60):
            return [delta async for delta in self.service.generate(request)]

    async def read_all(self, count: int) -> list[list[Delta]]:
        await self.service.start()
        return list(await asyncio.gather(*(self.read(ask(number)) for number in range(count))))

    def check_clean(self) -> None:
        self.scheduler.check()
        assert self.pool.num_free == NUM_BLOCKS


def ask(number: int) -> Request:
    return Request(
        request_id=RequestId(f"r{number}"),
        model="m",
        prompt=tuple(f"prompt {number}".encode()),
        sampling=SamplingParams(seed=number),
        stop=StopRules(max_tokens=6),
    )


def answer(number: int) -> list[int]:
    request = ask(number)
    tokens = list(request.prompt)
    for _ in range(6):
        tokens.append(next_token(tokens, request.sampling, VOCAB))
    return tokens[len(request.prompt) :]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


def once(fault: StepFault, num_rows: int) -> Callable[[Step], StepFault | None]:
    """A plan that strikes the first step of so many rows."""
    left = [fault]
    return lambda step: left.pop() if left and len(step.rows) >= num_rows else None


def test_one_failing_row_fails_nobody_else() -> None:
    async def story() -> None:
        bench = Bench(once(StepFault(kind="nan", seq_ids=frozenset({SeqId(1)})), 3))
        answers = await bench.read_all(4)
        assert [deltas[-1].finish for deltas in answers].count(FinishReason.ERROR) == 1
        assert answers[1][-1].error == "injected: the logits are not finite"
        for number in (0, 2, 3):
            assert tokens_of(answers[number]) == answer(number)
        await bench.service.stop()
        bench.check_clean()

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["raise_launch", "raise", "short"])
def test_a_failing_executor_ends_each_request_exactly_once(kind: Any) -> None:
    async def story() -> None:
        bench = Bench(once(StepFault(kind=kind), 4))
        answers = await bench.read_all(7)
        for number, deltas in enumerate(answers):
            assert [delta.finish for delta in deltas if delta.finish] == [FinishReason.ERROR]
            assert "the engine failed" in (deltas[-1].error or "")
            assert tokens_of(deltas) == answer(number)[: len(tokens_of(deltas))]
        with pytest.raises(EngineDead):
            await bench.service.wait_dead()
        with pytest.raises(EngineDead):
            await bench.read(ask(9))
        bench.check_clean()

    asyncio.run(story())


def test_a_slow_step_changes_nothing_but_time() -> None:
    async def story() -> None:
        bench = Bench(lambda step: StepFault(kind="delay", seconds=0.25))
        assert [tokens_of(deltas) for deltas in await bench.read_all(3)] == [answer(number) for number in range(3)]
        assert set(bench.slept) == {0.25}
        await bench.service.stop()
        bench.check_clean()

    asyncio.run(story())


def test_a_hanging_step_is_noticed_and_the_request_in_it_is_named() -> None:
    async def story() -> None:
        bench = Bench(once(StepFault(kind="hang"), 1))
        judge = HealthJudge(HealthLimits(stall_s=10, stuck_s=30, exit_s=20), bench.clock)
        await bench.service.start()
        reading = asyncio.ensure_future(bench.read(ask(0)))
        async with asyncio.timeout(60):
            while bench.service.snapshot().phase != "execute":
                await asyncio.sleep(0.001)
        assert judge.judge(bench.service.facts()).state is HealthState.READY
        bench.clock.advance(40)
        health = judge.judge(bench.service.facts())
        assert health.state is HealthState.STALLED
        assert [stuck.request_id for stuck in health.stuck] == ["r0"]
        bench.executor.release()
        assert tokens_of(await reading) == answer(0)
        assert judge.judge(bench.service.facts()).state is HealthState.READY
        await bench.service.stop()
        bench.check_clean()

    asyncio.run(story())


KEYS = tuple(bytes([number]) * 20 for number in range(3))


@pytest.mark.parametrize("kind", ["raise", "flip", "cut", "delay"])
def test_a_failing_place_costs_a_block_and_never_gives_a_wrong_one(kind: Any, tmp_path: Path) -> None:
    clock, host = VirtualClock(), HostPool(8, 16)
    faults: dict[str, TransportFault] = {}
    place = FaultyTransport(DiskTransport(tmp_path / "kv", 1 << 20, clock), faults.get, clock.advance)
    mover = Mover("disk", place, FrameCodec(b"s" * 32, b"f" * 16, 16), host, clock)
    results: list[object] = []
    mover.deliver = results.append
    for slot, key in enumerate(KEYS):
        host.slot(slot)[:] = bytes([slot + 1]) * 16
        mover.submit(Store(key, slot, 1.0))
    mover.work_off()
    results.clear()
    faults["get"] = TransportFault(kind=kind, seconds=0.01)
    mover.submit(Fetch(1, KEYS, (5, 6, 7)))
    mover.work_off()
    (fetched,) = results
    assert fetched == Fetched(1, 3 if kind == "delay" else 0)
    if kind == "delay":
        assert [bytes(host.slot(slot)) for slot in (5, 6, 7)] == [bytes([n]) * 16 for n in (1, 2, 3)]


def test_a_hanging_place_goes_on_when_it_is_closed(tmp_path: Path) -> None:
    import threading

    place = FaultyTransport(
        DiskTransport(tmp_path / "kv", 1 << 20, VirtualClock()), lambda call: TransportFault(kind="hang")
    )
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(place.has(KEYS)))
    thread.start()
    assert not found
    place.close()
    thread.join(10)
    assert found == [0]
