"""Engines as they serve, threads and all, with searches, swaps and places that fail: their logs run again the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.protocols import Transport
from headrace.core.request import BeamParams, Request, RequestId, SamplingParams, StopRules, WantedReach
from headrace.engine import AsyncEngine, Engine
from headrace.engine.decision_log import DecisionLog
from headrace.engine.recording import RecordingScheduler
from headrace.executor import ReferenceExecutor, block_bytes
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.kv.transfer import DiskTransport, FrameCodec, HostPool, Mover
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.sched import SchedulerLimits
from headrace.sim.log_files import read_log
from headrace.sim.replay import ReplayReport, replay
from headrace.testing import ByteTokenizer
from headrace.testing.checkpoints import write_checkpoint
from headrace.testing.faults import FaultyTransport, TransportFault

BLOCK = 8
SECRET, FORMAT = b"s" * 32, b"f" * 16
SYSTEM = tuple((37 * i + 11) % 256 for i in range(50))


class Lived(NamedTuple):
    """What an engine did, and what its log says when it is run again."""

    report: ReplayReport
    num_swaps: int
    num_ram_hits: int
    num_below_hits: int
    num_errors: int


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")
    return path


def live(
    model: Path,
    log_path: Path,
    requests: list[Request],
    *,
    num_blocks: int,
    num_slots: int = 0,
    place: Transport | None = None,
    together: int = 99,
) -> Lived:
    """Serve requests, so many at a time; stop in good order."""
    clock = MonotonicClock()
    checkpoint = open_checkpoint(model)
    program = build_program(checkpoint.config)
    size = block_bytes(program.cache_layers, block_size=BLOCK)
    host = HostPool(max(num_slots, 1), size)
    executor = ReferenceExecutor(program, checkpoint, num_blocks=num_blocks, block_size=BLOCK, host=host)
    checkpoint.close()
    movers = [] if place is None else [Mover("disk", place, FrameCodec(SECRET, FORMAT, size), host, clock)]
    tiers = None
    if num_slots:
        tiers = TierHierarchy(num_slots, size, KeyChain(SECRET, FORMAT), Places(movers))
    limits = SchedulerLimits(max_num_seqs=6, max_step_tokens=48, max_context=128, max_waiting=99)
    shape = None if tiers is None else tiers.shape
    log = DecisionLog(
        log_path, 64 << 20, num_blocks=num_blocks, block_size=BLOCK, limits=limits, version="1", tiers=shape
    )
    scheduler = RecordingScheduler(BlockPool(num_blocks), BLOCK, limits, log.note, tiers)
    service = AsyncEngine(Engine(scheduler, executor, clock, tiers), ByteTokenizer(), clock, vocab_size=256)

    async def answer(request: Request, places: asyncio.Semaphore) -> None:
        async with places:
            async for _ in service.generate(request):
                pass

    async def serve() -> None:
        await service.start()
        places = asyncio.Semaphore(together)
        async with asyncio.timeout(60):
            await asyncio.gather(*(answer(request, places) for request in requests))
        await service.stop()

    asyncio.run(serve())
    below = tiers.stats() if tiers is not None else ()
    return Lived(
        replay(read_log(log_path)),
        scheduler.totals.num_swaps,
        below[0].num_hits if below else 0,
        sum(tier.num_hits for tier in below[1:]),
        sum(tier.num_errors + tier.num_corrupt for tier in below[1:]),
    )


def request(*tail: int, max_tokens: int = 30, **fields: Any) -> Request:
    return Request(
        request_id=RequestId(f"r{tail}"),
        model="m",
        prompt=(*SYSTEM, *tail),
        sampling=SamplingParams(temperature=0.8, seed=sum(tail)),
        stop=StopRules(max_tokens=max_tokens, stop_token_ids=frozenset({2})),
        **fields,
    )


def assert_same(lived: Lived) -> None:
    assert lived.report.deviation is None
    assert lived.report.is_complete


@pytest.mark.parametrize("num_slots", [0, 60])
def test_searches_beside_drawn_answers_run_again(model: Path, tmp_path: Path, num_slots: int) -> None:
    searches = [request(n, beam=BeamParams(width=3), n=2, max_tokens=20) for n in range(3)]
    drawn = [request(9, n=3), *(request(n, pin_s=0.1) for n in range(4))]
    windowed = request(5, reach=WantedReach(window=20), max_tokens=60)
    lived = live(model, tmp_path / "log", [*searches, *drawn, windowed], num_blocks=60, num_slots=num_slots)
    assert_same(lived)
    assert lived.report.sequences == 3 * 3 + 3 + 4 + 1
    assert sum(lived.report.ends.values()) == 3 * 2 + 3 + 4 + 1


def test_swaps_to_host_memory_run_again(model: Path, tmp_path: Path) -> None:
    requests = [request(*range(n, n + 12), max_tokens=60) for n in range(0, 72, 12)]
    lived = live(model, tmp_path / "log", requests, num_blocks=36, num_slots=100)
    assert_same(lived)
    assert lived.num_swaps > 0
    assert lived.num_ram_hits > 0


def test_blocks_that_come_from_a_disk_come_again_in_the_replay_which_has_none(model: Path, tmp_path: Path) -> None:
    def disk() -> Transport:
        return DiskTransport(tmp_path / "kv", 1 << 30, MonotonicClock())

    requests = [request(n, max_tokens=4) for n in range(3)]
    first = live(model, tmp_path / "1", requests, num_blocks=60, num_slots=40, place=disk(), together=1)
    second = live(model, tmp_path / "2", requests, num_blocks=60, num_slots=40, place=disk(), together=1)
    assert_same(first)
    assert_same(second)
    assert second.num_below_hits > 0


FAILING: list[tuple[str, Callable[[str, int], TransportFault | None]]] = [
    ("every third call fails", lambda call, n: TransportFault(kind="raise") if n % 3 == 2 else None),
    ("what is read is damaged", lambda call, n: TransportFault(kind="flip") if call == "get" else None),
    ("it cannot store", lambda call, n: TransportFault(kind="raise") if call == "put" else None),
]


@pytest.mark.parametrize("plan", [plan for _, plan in FAILING], ids=[name for name, _ in FAILING])
def test_a_place_that_fails_fails_the_same_way_in_the_replay(
    model: Path, tmp_path: Path, plan: Callable[[str, int], TransportFault | None]
) -> None:
    def disk(calls: Callable[[str], TransportFault | None]) -> Transport:
        return FaultyTransport(DiskTransport(tmp_path / "kv", 1 << 30, MonotonicClock()), calls)

    requests = [request(n, max_tokens=8) for n in range(4)]
    numbers = count()
    live(model, tmp_path / "1", requests, num_blocks=30, num_slots=20, place=disk(lambda call: None), together=2)
    failing = disk(lambda call: plan(call, next(numbers)))
    lived = live(model, tmp_path / "2", requests, num_blocks=30, num_slots=20, place=failing, together=2)
    assert_same(lived)
    assert lived.num_errors > 0
