"""The same answer cold, warm, from host memory, from disk, from Redis and swapped, on both executors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from headrace.core.clock import MonotonicClock
from headrace.core.protocols import Executor, Transport
from headrace.core.request import SamplingParams, SeqId
from headrace.executor import ReferenceExecutor, block_bytes
from headrace.executor.native import NativeExecutor, kv_block_bytes
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.kv.transfer import DiskTransport, FrameCodec, HostPool, Mover, RedisTransport
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing import FixedCost
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.parity.native_drive import NATIVE_PROBLEM
from tests.redis_server import RedisServer, has_redis, running_redis

BLOCK = 16
SYSTEM = [(37 * i + 11) % 256 for i in range(70)]
PROMPTS = [[*SYSTEM, 1, 2], [*SYSTEM[:40], 3], [*range(100, 160)], [*range(60)]]
SECRET, FORMAT = b"s" * 32, b"f" * 16
BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(bool(NATIVE_PROBLEM), reason="no library"))]


class Served(NamedTuple):
    answers: list[list[int]]
    num_ram_hits: int
    num_below_hits: int
    num_swaps: int
    num_corrupt: int


class Server:
    """Scheduler, executor and tiers over one checkpoint; each `serve` is a new process as far as they can tell."""

    def __init__(self, path: Path, backend: str) -> None:
        self.path = path
        self.backend = backend
        checkpoint = open_checkpoint(path)
        layers = build_program(checkpoint.config).cache_layers
        checkpoint.close()
        if backend == "native":
            self.block_bytes = kv_block_bytes(layers, block_size=BLOCK)
        else:
            self.block_bytes = block_bytes(layers, block_size=BLOCK)

    def serve(
        self,
        *,
        num_blocks: int = 64,
        num_rows: int = 1,
        num_slots: int = 0,
        place: Callable[[], Transport] | None = None,
        rounds: int = 1,
    ) -> Served:
        clock, host = MonotonicClock(), HostPool(max(num_slots, 1), self.block_bytes)
        codec = FrameCodec(SECRET, FORMAT, self.block_bytes)
        movers = [] if place is None else [Mover("m", place(), codec, host, clock)]
        # Computing takes for ever, so loading always pays: where a block comes from must not depend on the clock.
        chain, cost = KeyChain(SECRET, FORMAT), FixedCost(60.0)
        tiers = TierHierarchy(num_slots, self.block_bytes, chain, Places(movers), wait_s=60.0, cost=cost)
        executor = self._executor(num_blocks, host)
        limits = SchedulerLimits(max_num_seqs=num_rows, max_step_tokens=64, max_context=144, max_waiting=99)
        scheduler = Scheduler(BlockPool(num_blocks), BLOCK, limits, tiers if num_slots else None)
        outputs: dict[int, list[int]] = {}
        for turn in range(rounds):
            for number, prompt in enumerate(PROMPTS):
                sampling = SamplingParams(temperature=0.8, seed=number)
                scheduler.submit(Sequence(SeqId(10 * turn + number), prompt, sampling, max_tokens=36))
            while scheduler.has_work:
                step = scheduler.schedule(clock.now())
                for mover in movers:
                    mover.work_off()
                if step is None:
                    assert scheduler.wait_s is not None
                    continue
                for event in scheduler.commit(step, executor.launch(step).result(), clock.now()):
                    if event.sample is not None:
                        outputs.setdefault(event.seq_id, []).append(event.sample.token_id)
                scheduler.check()
        if (step := scheduler.save_all(clock.now())) is not None:
            executor.launch(step).result()
        tiers.stop(clock, 10.0)
        executor.shutdown()
        ram, *below = tiers.stats()
        last = [outputs[10 * (rounds - 1) + number] for number in range(len(PROMPTS))]
        return Served(
            last,
            ram.num_hits,
            sum(tier.num_hits for tier in below),
            scheduler.totals.num_swaps,
            sum(tier.num_corrupt for tier in below),
        )

    def _executor(self, num_blocks: int, host: HostPool) -> Executor:
        checkpoint = open_checkpoint(self.path)
        program = build_program(checkpoint.config)
        try:
            if self.backend == "native":
                return NativeExecutor(
                    program, checkpoint, num_blocks=num_blocks, block_size=BLOCK, threads=2, host=host
                )
            return ReferenceExecutor(program, checkpoint, num_blocks=num_blocks, block_size=BLOCK, host=host)
        finally:
            checkpoint.close()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@contextmanager
def redis_or_skip() -> Iterator[RedisServer]:
    if not has_redis():
        pytest.skip("no redis-server on this machine")
    with running_redis() as server:
        yield server


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_answers_do_not_depend_on_where_blocks_come_from(family: Family, backend: str, tmp_path: Path) -> None:
    server = Server(write_checkpoint(tmp_path / "model", family), backend)
    cold = server.serve()
    warm = server.serve(rounds=2)
    from_memory = server.serve(num_blocks=10, num_slots=40, rounds=2)
    swapped = server.serve(num_blocks=14, num_rows=4, num_slots=40, rounds=2)

    def disk() -> Transport:
        return DiskTransport(tmp_path / "kv", 1 << 30, MonotonicClock())

    to_disk = server.serve(num_slots=30, place=disk)
    from_disk = server.serve(num_slots=30, place=disk)
    for served in (warm, from_memory, swapped, to_disk, from_disk):
        assert served.answers == cold.answers
    assert from_memory.num_ram_hits > 0
    assert swapped.num_swaps > 0
    assert (to_disk.num_below_hits, from_disk.num_below_hits > 0) == (0, True)


def test_redis_gives_back_what_was_computed_and_a_damaged_block_is_computed_again(backend: str, tmp_path: Path) -> None:
    server = Server(write_checkpoint(tmp_path / "model", "llama"), backend)
    cold = server.serve()
    with redis_or_skip() as redis:
        server.serve(num_slots=30, place=lambda: RedisTransport(redis.url))
        warm = server.serve(num_slots=30, place=lambda: RedisTransport(redis.url))
        assert warm.num_below_hits > 0
        assert warm.answers == cold.answers
        spoil(redis)
        damaged = server.serve(num_slots=30, place=lambda: RedisTransport(redis.url))
        assert damaged.num_corrupt > 0
        assert damaged.answers == cold.answers


def spoil(server: RedisServer) -> None:
    """Flip one bit in the middle of every value."""
    import redis

    client = redis.Redis(port=server.port)
    keys = client.keys("headrace:kv:*")
    assert keys
    for key in keys:
        value = bytearray(client.get(key))
        value[len(value) // 2] ^= 16
        client.set(key, bytes(value))
    client.close()
