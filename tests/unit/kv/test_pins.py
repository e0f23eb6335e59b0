from __future__ import annotations

import pytest

from headrace.core.errors import InvalidRequest
from headrace.kv import BlockPool, Node, Pins, RadixCache, pack_tokens


class World:
    """A pool of 8 blocks of two tokens, half of which may be pinned."""

    def __init__(self) -> None:
        self.pool = BlockPool(8)
        self.cache = RadixCache(self.pool, 2)
        self.pins = Pins(self.pool)

    def plant(self, *tokens: int) -> Node:
        blocks = self.pool.allocate(len(tokens) // 2)
        assert blocks is not None
        node = self.cache.root("")
        for i, block in enumerate(blocks):
            node = self.cache.extend(node, pack_tokens(tokens[2 * i : 2 * i + 2]), block)
        self.pool.free(blocks)
        return node

    def is_cached(self, *tokens: int) -> bool:
        return self.cache.match(self.cache.root(""), pack_tokens(tokens), 9).depth * 2 == len(tokens)

    def check(self) -> None:
        self.pins.check()
        self.cache.check()
        self.pool.check()


@pytest.fixture
def world() -> World:
    return World()


def test_a_pinned_prefix_outlives_a_full_pool_until_its_time_is_up(world: World) -> None:
    world.plant(5, 6, 7, 8)
    assert world.pins.pin(world.plant(1, 2, 3, 4), 10.0)
    taken = world.pool.allocate(6)
    assert taken is not None
    assert world.pool.allocate(1) is None
    assert (world.is_cached(1, 2, 3, 4), world.is_cached(5, 6)) == (True, False)
    world.pins.expire(9.9)
    assert world.pins.num_blocks == 2
    world.pins.expire(10.0)
    assert (world.pins.num_blocks, world.pool.num_free) == (0, 2)
    world.check()


def test_pins_that_begin_alike_share_blocks_and_end_one_by_one(world: World) -> None:
    world.pins.pin(world.plant(1, 2, 3, 4), 5.0)
    node = world.cache.match(world.cache.root(""), pack_tokens([1, 2, 3, 4]), 1)
    world.pins.pin(node, 20.0)
    assert world.pins.num_blocks == 2
    world.check()
    world.pins.expire(5.0)
    assert list(world.pins.blocks()) == [node.block]
    world.check()


def test_pinning_again_makes_it_later_never_earlier(world: World) -> None:
    node = world.plant(1, 2)
    world.pins.pin(node, 10.0)
    world.pins.pin(node, 1.0)
    world.pins.expire(5.0)
    assert world.pins.num_blocks == 1
    world.pins.pin(node, 10.0)
    world.pins.expire(14.9)
    assert world.pins.num_blocks == 1
    world.pins.expire(15.0)
    assert world.pins.num_blocks == 0


def test_beyond_the_limit_the_pin_that_ends_first_goes(world: World) -> None:
    first, second = world.plant(1, 2, 3, 4), world.plant(5, 6, 7, 8)
    world.pins.pin(first, 1.0)
    world.pins.pin(second, 9.0)
    world.pins.pin(world.plant(9, 9), 5.0)
    assert set(world.pins.blocks()) >= set(second.path())
    assert not set(world.pins.blocks()) & set(first.path())
    world.check()
    with pytest.raises(InvalidRequest, match="takes 5 blocks; at most 4 of this server's 8 may be pinned"):
        world.pins.check_room(5)
    world.pins.check_room(4)


def test_what_is_not_in_the_tree_cannot_be_pinned(world: World) -> None:
    node = world.plant(1, 2)
    world.cache.withdraw(node)
    assert not world.pins.pin(node, 1.0)
    assert not world.pins.pin(world.cache.root(""), 1.0)
    assert not world.pins.give_up()
