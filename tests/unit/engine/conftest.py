"""An engine on the fake model, on a real event loop and a real engine thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.delta import Delta
from headrace.core.errors import HeadraceError
from headrace.core.request import Request, RequestId, SamplingParams, StopRules
from headrace.core.stats import RequestStats, StepStats
from headrace.core.step import Step
from headrace.econ import RentPolicy, RentTerms
from headrace.engine import AsyncEngine, Engine, StreamLimits
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import ByteTokenizer, UniformModel


class Notebook:
    """An observer that writes everything down."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.ttfts: list[float] = []
        self.gaps: list[float] = []
        self.finished: list[RequestStats] = []
        self.refused: list[HeadraceError] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def on_first_token(self, ttft_s: float) -> None:
        self.ttfts.append(ttft_s)

    def on_next_token(self, gap_s: float) -> None:
        self.gaps.append(gap_s)

    def on_finished(self, stats: RequestStats) -> None:
        self.finished.append(stats)

    def on_refused(self, error: HeadraceError) -> None:
        self.refused.append(error)


class Valve:
    """Lets steps through by number, so that a test can look at an engine that is busy."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._is_open = False
        self._num_let = 0
        self.num_begun = 0

    def let(self, num_steps: int) -> None:
        self._num_let += num_steps
        self._permits.release(num_steps)

    async def step(self, is_so: Callable[[], bool]) -> None:
        """Let steps through one by one until a fact holds; permits do not gather while the engine is held up."""
        async with asyncio.timeout(60):
            while not is_so():
                if self.num_begun > self._num_let:
                    self.let(1)
                await asyncio.sleep(0.001)

    def open(self) -> None:
        self._is_open = True
        self._permits.release()

    def __call__(self, step: Step) -> None:
        self.num_begun += not step.is_dry_run
        if not (step.is_dry_run or self._is_open):
            assert self._permits.acquire(timeout=60)


class Bench:
    """The parts of one running engine."""

    def __init__(self, **changes: Any) -> None:
        shape = {"num_blocks": 64, "block_size": 4, "vocab_size": 256} | changes.pop("model", {})
        stream_limits = StreamLimits(**changes.pop("streams", {}))
        rent = changes.pop("rent", "none")
        limits = {"max_num_seqs": 8, "max_step_tokens": 16, "max_context": 128, "max_waiting": 32} | changes
        self.model = UniformModel(**shape)
        self.pool = BlockPool(shape["num_blocks"])
        self.scheduler = Scheduler(self.pool, shape["block_size"], SchedulerLimits(**limits))
        self.clock = MonotonicClock()
        self.engine = Engine(self.scheduler, self.model, self.clock)
        self.notebook = Notebook()
        self.service = AsyncEngine(
            self.engine,
            ByteTokenizer(),
            self.clock,
            vocab_size=shape["vocab_size"],
            observer=self.notebook,
            limits=stream_limits,
            rent=RentTerms.of(RentPolicy(rent), 0.5, shape["num_blocks"]),
        )

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Give way until a fact holds that another thread brings about."""
        async with asyncio.timeout(60):
            while not is_so():
                await asyncio.sleep(0.001)

    async def collect(self, request: Request) -> list[Delta]:
        async with asyncio.timeout(60):
            return [delta async for delta in self.service.generate(request)]


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[Bench]:
    """An engine that is warm; stopped and checked for leaks at the end."""
    bench = Bench(**changes)
    await bench.service.start()
    try:
        yield bench
    finally:
        await bench.service.stop()
        bench.scheduler.check()
        assert bench.pool.num_free == bench.pool.num_blocks


@pytest.fixture
def ask() -> Callable[..., Request]:
    """Make a request; the keywords are those of Request, SamplingParams and StopRules."""
    count = itertools.count()

    def make(prompt: str = "water", **fields: Any) -> Request:
        stop = {"max_tokens": 12} | {k: fields.pop(k) for k in StopRules.__struct_fields__ if k in fields}
        sampling = {k: fields.pop(k) for k in SamplingParams.__struct_fields__ if k in fields}
        return Request(
            request_id=RequestId(fields.pop("request_id", None) or f"r{next(count)}"),
            model="m",
            prompt=tuple(prompt.encode()),
            sampling=SamplingParams(**sampling),
            stop=StopRules(**stop),
            arrival_s=MonotonicClock().now(),
            **fields,
        )

    return make


@pytest.fixture
def run() -> Callable[..., Any]:
    return running


@pytest.fixture
def valve() -> Valve:
    return Valve()
