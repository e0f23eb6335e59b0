"""The order of eviction by value, through the pool and the cache it works for."""

from __future__ import annotations

from headrace.kv import BlockPool, CostOrder, RadixCache, pack_tokens

BLOCK = 4


class Cache:
    """A pool and a cache that serve one prompt after the other; a prompt is a list of blocks' names."""

    def __init__(self, num_blocks: int, order: CostOrder | None) -> None:
        self.pool = BlockPool(num_blocks)
        self.cache = RadixCache(self.pool, BLOCK, order)

    def serve(self, names: list[int]) -> int:
        """Return how many blocks were found."""
        tokens = [name for name in names for _ in range(BLOCK)]
        node = self.cache.match(self.cache.root(""), pack_tokens(tokens), len(names))
        shared = node.path()
        self.pool.share(shared)
        blocks = self.pool.allocate(len(names) - len(shared))
        assert blocks is not None
        for depth, block in enumerate(blocks, len(shared)):
            node = self.cache.extend(node, pack_tokens([names[depth]] * BLOCK), block)
        self.pool.free([*shared, *blocks])
        self.pool.check()
        self.cache.check()
        return len(shared)


def scan_hits(order: CostOrder | None, num_blocks: int) -> int:
    """A prefix of six blocks comes back after every third prompt that never comes back."""
    cache = Cache(num_blocks, order)
    hits = 0
    for turn in range(1500):
        hits += cache.serve([1, 2, 3, 4, 5, 6] if turn % 4 == 0 else list(range(turn * 10, turn * 10 + 6)))
    return hits


def test_a_prefix_that_comes_back_outlives_prompts_that_do_not() -> None:
    num_blocks = 16
    assert scan_hits(None, num_blocks) == 0
    assert scan_hits(CostOrder(num_blocks, BLOCK), num_blocks) > 0.8 * 6 * 1500 / 4


def test_without_experience_the_least_recently_used_leaf_goes_first() -> None:
    order = CostOrder(9, BLOCK)
    cache = Cache(9, order)
    for names in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        cache.serve(names)
    assert cache.serve([10, 11]) == 0
    assert cache.serve([1]) == 1  # lost its two last blocks
    assert cache.serve([4, 5, 6]) == 3


def test_a_block_far_into_a_prompt_is_no_dearer_than_others() -> None:
    order = CostOrder(4, 4096)
    order.enter(0, 1, None, b"a")
    order.enter(1, 2, 0, b"b")
    order.release(1)
    order.release(0)
    order.enter(2, 1, None, b"c")
    order.release(2)
    assert order.queued() == [1, 2]
    assert order.victim() == 1


def test_a_prefix_that_comes_back_after_its_eviction_is_known() -> None:
    """Found never, for the pool is too small; remembered, the first of them stays."""
    cache = Cache(8, CostOrder(8, BLOCK))
    hits = [cache.serve([name, name + 100]) for _ in range(600) for name in (1, 2, 3, 4, 5)]
    plain = Cache(8, None)
    assert sum(plain.serve([name, name + 100]) for _ in range(600) for name in (1, 2, 3, 4, 5)) == 0
    assert sum(hits[-500:]) > 0.25 * 2 * 500


def test_queues_do_not_grow_with_use() -> None:
    order = CostOrder(8, BLOCK)
    cache = Cache(8, order)
    for turn in range(5000):
        cache.serve([1, 2, turn % 3])
    assert sum(len(queue) for queue in order._queues) < 12 * (2 * 8 + 64)
    assert len(order._ghosts) <= 8
