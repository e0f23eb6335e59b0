"""The places below the pool, driven by hand: what is saved, found, fetched, held and forgotten, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.step import BlockCopy, CopyKind
from headrace.kv.tiers import KeyChain, Places, Search, TierHierarchy
from headrace.kv.transfer import DiskTransport, Drop, FrameCodec, HostPool, Mover
from headrace.testing import FixedCost, VirtualClock

KEYS = [bytes([number]) * 20 for number in range(6)]


class World:
    def __init__(self, path: Path, *, num_slots: int = 8, num_places: int = 1, bytes_per_s: float = 500e6) -> None:
        self.clock = VirtualClock()
        self.host = HostPool(num_slots, 16)
        codec = FrameCodec(b"s" * 32, b"f" * 16, 16)
        self.movers = [
            Mover(
                f"m{i}",
                DiskTransport(path / f"m{i}", 1 << 20, self.clock),
                codec,
                self.host,
                self.clock,
                bytes_per_s=bytes_per_s,
            )
            for i in range(num_places)
        ]
        chain = KeyChain(b"s" * 32, b"f" * 16)
        self.tiers = TierHierarchy(num_slots, 16, chain, Places(self.movers), copy_s=0.1, cost=FixedCost(1e-4))

    def step(self) -> tuple[BlockCopy, ...]:
        """Plan a step with what is to be copied, and run it: the bytes of block b are b."""
        copies = self.tiers.take_copies()
        for copy in copies:
            if copy.kind is CopyKind.SAVE:
                self.host.slot(copy.target)[:] = bytes([copy.source]) * 16
        self.tiers.note_committed()
        self.tiers.check()
        return copies

    def work(self) -> None:
        for mover in self.movers:
            mover.work_off()
        self.tiers.poll(self.clock.now())
        self.tiers.check()

    def keep(self, *blocks: int) -> None:
        """Have blocks on all places, and nothing in host memory any more."""
        for block in blocks:
            assert self.tiers.save(KEYS[block], block, 1.0, self.clock.now(), num_uses=1)
        self.step()
        self.work()
        for block in blocks:
            self.tiers.host.drop(KEYS[block])

    def search(self, *numbers: int) -> Search:
        search = self.tiers.search([KEYS[n] for n in numbers], [1.0] * len(numbers), self.clock.now())
        assert search is not None
        return search

    def found(self, *numbers: int) -> list[int]:
        """Which blocks are ready, and right."""
        ready = [n for n in numbers if self.tiers.num_ready([KEYS[n]])]
        for n in ready:
            entry = self.tiers.host.get(KEYS[n])
            assert entry is not None
            assert bytes(self.host.slot(entry.slot)) == bytes([n]) * 16
        return ready


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_block_evicted_once_stays_in_memory_and_one_used_again_goes_below(world: World) -> None:
    world.tiers.save(KEYS[0], 0, 1.0, 0.0)
    world.tiers.save(KEYS[1], 1, 1.0, 0.0, num_uses=1)
    assert [copy.source for copy in world.step()] == [0, 1]
    world.work()
    assert world.movers[0].stats().num_stored == 1
    world.tiers.load(KEYS[0], 5, 0.0)
    assert world.step() == (BlockCopy(CopyKind.LOAD, 0, 5),)
    world.work()
    assert world.movers[0].stats().num_stored == 2
    assert not world.tiers.save(KEYS[0], 0, 1.0, 0.0) or not world.step(), "it is there already"


def test_nothing_is_sent_below_before_the_step_that_saves_it_has_run(world: World) -> None:
    world.tiers.save(KEYS[0], 0, 1.0, 0.0, num_uses=1)
    first = world.tiers.take_copies()
    world.tiers.save(KEYS[1], 1, 1.0, 0.0, num_uses=1)
    second = world.tiers.take_copies()
    for number, copies in enumerate((first, second)):
        for copy in copies:
            world.host.slot(copy.target)[:] = bytes([copy.source]) * 16
        world.tiers.note_committed()
        world.work()
        assert world.movers[0].stats().num_stored == number + 1
    world.tiers.host.drop(KEYS[0])
    world.tiers.host.drop(KEYS[1])
    world.search(0, 1)
    world.work()
    world.work()
    assert world.found(0, 1) == [0, 1]


def test_a_search_brings_the_leading_blocks_and_holds_them(world: World) -> None:
    world.keep(0, 1, 3)
    search = world.search(0, 1, 2, 3)
    assert world.tiers.is_pending(search, world.clock.now())
    world.work()
    assert world.found(0, 1) == []
    world.work()
    assert not world.tiers.is_pending(search, world.clock.now())
    assert world.found(0, 1, 2, 3) == [0, 1]
    assert world.tiers.host.num_held == 2
    world.tiers.end(search)
    assert world.tiers.host.num_held == 0


def test_two_searches_for_the_same_blocks_share_one_fetch(world: World) -> None:
    world.keep(0, 1, 2)
    first, second = world.search(0, 1), world.search(0, 1, 2)
    world.work()
    assert first.tickets.keys() < second.tickets.keys(), "the second waits for the first's fetch and for its own"
    world.work()
    assert world.found(0, 1, 2) == [0, 1, 2]
    assert world.movers[0].stats().num_hits == 3
    world.tiers.end(first)
    assert world.tiers.host.num_held == 3
    world.tiers.end(second)
    assert world.tiers.host.num_held == 0


def test_what_the_nearest_place_lacks_comes_from_the_next(tmp_path: Path) -> None:
    world = World(tmp_path, num_places=2)
    world.keep(0, 1, 2, 3)
    world.movers[0].submit(Drop(KEYS[2]))
    world.work()
    search = world.search(0, 1, 2, 3)
    world.work()
    world.work()
    assert world.found(0, 1, 2, 3) == [0, 1, 2, 3]
    assert [mover.stats().num_hits for mover in world.movers] == [2, 2]
    world.tiers.end(search)


def test_a_search_that_takes_longer_than_computing_is_given_up_and_what_arrives_is_kept(world: World) -> None:
    world.keep(0)
    search = world.search(0)
    world.work()
    assert search.deadline_s == world.clock.now() + 1.0
    world.clock.advance(1.5)
    assert not world.tiers.is_pending(search, world.clock.now())
    world.tiers.end(search)
    world.work()
    assert world.found(0) == [0]
    assert world.tiers.host.num_held == 0


def test_loading_that_is_slower_than_computing_is_left_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.keep(0)
    assert world.tiers.search([KEYS[0]], [1e-9], 0.0) is None, "not even the question pays"
    slow = World(tmp_path, bytes_per_s=100.0)
    slow.keep(1, 2, 3)
    search = slow.search(1, 2, 3)
    slow.work()
    assert search.is_over, "computing three blocks takes 3 s, loading them 4.3 s"
    assert slow.movers[0].stats().num_skipped == 3
    assert world.tiers.load_pays(1.0, 9)
    assert not world.tiers.load_pays(1.0, 11)
    assert world.tiers.swap_pays(1.0, 4)
    assert not world.tiers.swap_pays(1.0, 6)


def test_a_forgotten_block_is_gone_everywhere(world: World) -> None:
    world.keep(0)
    world.tiers.save(KEYS[0], 0, 1.0, 0.0)
    world.step()
    world.tiers.forget(KEYS[0])
    assert world.tiers.num_ready(KEYS) == 0
    search = world.search(0)
    world.work()
    assert search.found == {0: 0}


def test_a_block_forgotten_while_it_is_fetched_or_stored_is_never_shown(world: World) -> None:
    world.keep(0)
    world.search(0)
    world.work()
    world.tiers.forget(KEYS[0])
    world.work()
    assert world.found(0) == []
    world.tiers.save(KEYS[1], 1, 1.0, 0.0, num_uses=1)
    world.step()
    world.tiers.forget(KEYS[1])
    assert world.tiers.num_ready([KEYS[1]]) == 0
    assert not world.tiers.save(KEYS[1], 1, 1.0, 0.0), "the slot is still read"
    world.work()
    assert KEYS[1] not in world.tiers.host
    search = world.search(1)
    world.work()
    assert search.found == {0: 0}


def test_searches_hold_at_most_half_of_the_slots(tmp_path: Path) -> None:
    world = World(tmp_path, num_slots=6)
    world.keep(0, 1, 2, 3, 4)
    world.search(0, 1, 2, 3, 4)
    world.work()
    world.work()
    assert world.found(0, 1, 2, 3, 4) == [0, 1, 2]
    assert not world.tiers.can_hold(1)


def test_what_was_saved_is_sent_below_at_the_end(world: World) -> None:
    for number in range(5):
        world.tiers.save(KEYS[number], number, 1.0, 0.0, num_uses=1)
    world.tiers.take_copies()
    world.tiers.stop(world.clock, 1.0)
    assert world.movers[0].stats().num_stored == 5


def test_nobody_waits_longer_than_the_longest_wait_and_who_did_not_answer_is_counted(tmp_path: Path) -> None:
    world = World(tmp_path, num_places=2)
    search = world.tiers.search(KEYS, [60.0] * len(KEYS), 10.0)
    assert search is not None
    assert world.tiers.is_pending(search, 14.9)
    assert not world.tiers.is_pending(search, 15.1)
    world.movers[1].work_off()
    world.tiers.poll(15.1)
    assert world.tiers.give_up(search, 15.1) == (("m0",), pytest.approx(5.1))
    world.tiers.end(search)
    assert [stats.num_late for stats in world.tiers.stats()] == [0, 1, 0]
    assert world.tiers.give_up(search, 16.0) is None, "it is over"
    world.work()  # what comes too late disturbs nobody
