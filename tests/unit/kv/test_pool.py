from __future__ import annotations

import pytest

from headrace.kv import BlockPool


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(4)
    held = pool.allocate(3)
    assert held is not None
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    assert pool.allocate(0) == []
    pool.check()


def test_a_shared_block_is_free_after_its_last_holder() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.share(blocks)
    pool.free(blocks)
    assert pool.num_free == 0
    pool.free(blocks)
    assert pool.num_free == 2
    pool.check()


def test_the_head_of_a_freed_sequence_is_taken_again_first() -> None:
    pool = BlockPool(8)
    blocks = pool.allocate(3)
    assert blocks is not None
    pool.free(blocks)
    assert pool.allocate(3) == blocks


def test_freeing_twice_is_refused() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(ValueError, match=f"block {blocks[0]} is freed twice"):
        pool.free(blocks)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(blocks)


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)


def test_a_refused_share_takes_nothing() -> None:
    pool = BlockPool(4)
    kept = pool.allocate(2)
    assert kept is not None
    for block in kept:
        pool.keep(block)
    pool.free(kept[1:])
    with pytest.raises(ValueError, match="block 2 is free and cannot be shared"):
        pool.share([*kept, 2])
    assert [pool.num_holders(block) for block in kept] == [1, 0]
    assert pool.num_cached == 1
    pool.check()


def test_the_queue_of_cached_blocks_forgets_what_was_shared_since() -> None:
    """Each use leaves a stale entry behind; the oldest release still goes first after they have been dropped."""
    pool = BlockPool(4)
    blocks = pool.allocate(4)
    assert blocks is not None
    for block in blocks:
        pool.keep(block)
    pool.watch_evictions(lambda block: None)
    pool.free(blocks)
    for _ in range(100):
        for pair in (blocks[:2], blocks[2:]):
            pool.share(pair)
            pool.free(pair)
            pool.check()
    assert sum(len(entry) for _, entry in pool._queue) <= 2 * 4 + 64
    assert [pool.allocate(1) for _ in range(4)] == [[block] for block in (1, 0, 3, 2)]
