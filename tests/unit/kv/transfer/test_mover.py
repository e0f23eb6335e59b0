from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from headrace.kv.transfer import (
    DiskTransport,
    Drop,
    Fetch,
    Fetched,
    FrameCodec,
    HostPool,
    Locate,
    Located,
    Mover,
    RedisTransport,
    Store,
    Stored,
)
from headrace.testing import VirtualClock
from tests.redis_server import has_redis, running_redis

KEYS = tuple(bytes([number]) * 20 for number in range(4))
CODEC = FrameCodec(b"s" * 32, b"f" * 16, 16)


class World:
    """A mover over a directory, driven by hand, and what it delivered."""

    def __init__(self, path: Path, max_bytes: int = 1 << 20) -> None:
        self.clock = VirtualClock()
        self.host = HostPool(8, 16)
        self.path = path / "kv"
        self.mover = Mover("disk", DiskTransport(self.path, max_bytes, self.clock), CODEC, self.host, self.clock)
        self.results: list[object] = []
        self.mover.deliver = self.results.append

    def do(self, *jobs: Locate | Fetch | Store | Drop) -> list[object]:
        for job in jobs:
            self.mover.submit(job)
        self.mover.work_off()
        done, self.results[:] = list(self.results), []
        return done

    def fill(self, count: int) -> None:
        for slot in range(count):
            self.host.slot(slot)[:] = bytes([slot + 1]) * 16
        assert self.do(*(Store(KEYS[slot], slot, 1.0) for slot in range(count))) == [
            Stored(KEYS[slot], True) for slot in range(count)
        ]

    def file(self, number: int) -> Path:
        (found,) = self.path.glob(f"*/{KEYS[number].hex()}.kv")
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_blocks_stored_are_located_and_fetched_into_other_slots(world: World) -> None:
    world.fill(3)
    assert world.do(Locate(7, KEYS)) == [Located(7, 3)]
    assert world.do(Fetch(8, KEYS[:3], (5, 6, 7))) == [Fetched(8, 3)]
    assert [bytes(world.host.slot(slot)) for slot in (5, 6, 7)] == [bytes([n]) * 16 for n in (1, 2, 3)]
    stats = world.mover.stats()
    assert (stats.num_hits, stats.num_misses, stats.num_stored, stats.num_corrupt) == (3, 1, 3, 0)
    assert stats.stored_bytes == 3 * CODEC.frame_bytes == stats.read_bytes == stats.written_bytes


def test_a_damaged_block_ends_the_fetch_and_is_thrown_away(world: World) -> None:
    world.fill(3)
    content = bytearray(world.file(1).read_bytes())
    content[-1] ^= 1
    world.file(1).write_bytes(content)
    assert world.do(Fetch(1, KEYS[:3], (5, 6, 7))) == [Fetched(1, 1)]
    assert world.mover.stats().num_corrupt == 1
    assert world.do(Locate(2, KEYS[1:])) == [Located(2, 0)]
    assert world.mover.is_up, "a damaged block is no failure of the place"


@pytest.mark.parametrize("num_bytes", [0, 1, CODEC.frame_bytes - 1])
def test_a_truncated_file_is_no_block_and_is_thrown_away(world: World, num_bytes: int) -> None:
    world.fill(1)
    world.file(0).write_bytes(world.file(0).read_bytes()[:num_bytes])
    assert world.do(Fetch(1, KEYS[:1], (5,))) == [Fetched(1, 0)]
    assert world.mover.stats().num_corrupt == 1
    assert world.do(Locate(2, KEYS[:1])) == [Located(2, 0)]


def test_what_is_waited_for_goes_before_what_is_not(world: World) -> None:
    jobs = [Store(KEYS[0], 0, 1.0), Drop(KEYS[3]), Locate(1, KEYS[:1])]
    assert world.do(*jobs) == [Located(1, 0), Stored(KEYS[0], True)]


def test_stores_in_line_are_bounded(world: World) -> None:
    taken = [world.mover.submit(Store(KEYS[0], 0, 1.0)) for _ in range(200)]
    assert 1 < sum(taken) < 200
    assert not world.mover.has_room
    assert world.mover.stats().num_dropped == 200 - sum(taken)
    assert len(world.do()) == sum(taken)


def test_a_failing_place_is_left_alone_longer_each_time_and_then_found_again(world: World) -> None:
    world.path.write_text("no directory")
    waits = []
    for _ in range(8):
        assert world.do(Locate(1, KEYS)) == [Located(1, 0)]
        assert not world.mover.is_up
        started = world.clock.now()
        while not world.mover.is_up:
            world.clock.advance(0.5)
        waits.append(world.clock.now() - started)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert not world.mover.stats().is_up
    world.path.unlink()
    world.fill(1)
    assert world.mover.stats().is_up
    assert world.mover.stats().num_errors == 8


def test_a_place_left_alone_is_not_touched(world: World) -> None:
    world.path.write_text("no directory")
    world.do(Locate(1, KEYS))
    world.path.unlink()
    assert world.do(Store(KEYS[0], 0, 1.0), Fetch(2, KEYS, (1, 2, 3, 4))) == [Fetched(2, 0), Stored(KEYS[0], False)]
    assert not world.path.exists()
    assert world.mover.stats().num_errors == 1


def test_a_full_disk_costs_the_block_and_is_read_as_before(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.fill(1)

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        for _ in range(3):
            assert world.do(Store(KEYS[1], 1, 1.0)) == [Stored(KEYS[1], False)]
            assert world.do(Store(KEYS[1], 1, 1.0), Fetch(1, KEYS[:1], (5,)))[0] == Fetched(1, 1)
            assert world.mover.is_up
            assert (world.mover.stats().is_up, world.mover.stats().is_full) == (False, True)
            world.clock.advance(60.0)
    assert [path.suffix for path in world.path.glob("*/*")] == [".kv"]
    assert (world.mover.stats().num_errors, world.mover.stats().num_dropped) == (3, 3)
    world.fill(2)
    assert (world.mover.stats().is_up, world.mover.stats().is_full) == (True, False)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "KV tier 'disk' is full (No space left on device); it is read, and nothing new is stored"
    ]


def test_fetching_takes_as_long_as_was_measured(world: World) -> None:
    mover = Mover("m", DiskTransport(world.path, 1 << 20, world.clock), CODEC, world.host, world.clock, latency_s=1.0)
    assert mover.predict_s(4) == pytest.approx(1.0 + 4 * CODEC.frame_bytes / 500e6)


@pytest.mark.skipif(not has_redis(), reason="no redis-server on this machine")
def test_on_its_thread_a_server_killed_midway_costs_blocks_and_nothing_else() -> None:
    clock, host = VirtualClock(), HostPool(8, 16)
    arrived = threading.Semaphore(0)
    results: list[object] = []

    def deliver(result: object) -> None:
        results.append(result)
        arrived.release()

    with running_redis() as server:
        mover = Mover("redis", RedisTransport(server.url), CODEC, host, clock)
        mover.deliver = deliver
        mover.start()
        try:
            for jobs, expected in (
                ([Store(KEYS[0], 0, 1.0), Store(KEYS[1], 1, 1.0)], [Stored(KEYS[0], True), Stored(KEYS[1], True)]),
                ([Fetch(1, KEYS[:2], (4, 5))], [Fetched(1, 2)]),
            ):
                for job in jobs:
                    mover.submit(job)
                    assert arrived.acquire(timeout=10)
                assert results == expected
                results.clear()
            server.kill()
            mover.submit(Fetch(2, KEYS[:2], (6, 7)))
            assert arrived.acquire(timeout=10)
            assert results == [Fetched(2, 0)]
            assert not mover.stats().is_up
            server.start()
            clock.advance(1.0)
            mover.submit(Locate(3, KEYS))
            assert arrived.acquire(timeout=10)
            assert results[1:] == [Located(3, 0)]
            assert mover.stats().is_up
        finally:
            mover.stop(10.0)


class Slow(DiskTransport):
    """A directory whose calls take their time; `during` is called in the middle of each."""

    def __init__(self, path: Path, clock: VirtualClock) -> None:
        super().__init__(path, 1 << 20, clock)
        self.clock = clock
        self.seconds = 0.0
        self.during: Callable[[], None] = lambda: None

    def has(self, keys: Sequence[bytes]) -> int:
        self.clock.advance(self.seconds)
        self.during()
        return super().has(keys)


def test_a_call_that_hangs_takes_the_place_down_and_it_is_tried_again_later(tmp_path: Path) -> None:
    clock, up = VirtualClock(), []
    disk = Slow(tmp_path / "kv", clock)
    mover = Mover("disk", disk, CODEC, HostPool(8, 16), clock, limit_s=5.0)
    results: list[object] = []
    mover.deliver = results.append
    disk.during = lambda: up.append((mover.is_up, mover.stats().is_up, mover.stats().silent_s))
    for seconds in (4.0, 6.0):
        disk.seconds = seconds
        mover.submit(Locate(1, KEYS))
        mover.work_off()
    assert up == [(True, True, 0.0), (False, False, 6.0)]  # while the call lasted
    assert mover.stats().silent_s == 0.0
    assert not mover.is_up
    assert mover.stats().num_errors == 1
    mover.submit(Locate(2, KEYS))
    mover.work_off()
    assert len(up) == 2, "a place that is left alone was asked"
    disk.seconds = 0.0
    clock.advance(1.1)
    assert mover.is_up
    mover.submit(Locate(3, KEYS))
    mover.work_off()
    assert up[2:] == [(True, False, 0.0)]
    assert (mover.is_up, mover.stats().is_up) == (True, True)
    assert results == [Located(1, 0), Located(1, 0), Located(2, 0), Located(3, 0)]


def test_a_place_that_is_not_there_is_down_before_it_is_asked_for_anything(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("a file")
    mover = Mover(
        "disk", DiskTransport(tmp_path / "kv", 1 << 20, VirtualClock()), CODEC, HostPool(8, 16), VirtualClock()
    )
    mover.start()
    mover.stop(20.0)  # what is in line is worked off first
    assert not mover.stats().is_up
    assert mover.stats().num_errors == 1
