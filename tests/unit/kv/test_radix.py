from __future__ import annotations

import pytest

from headrace.kv import BlockPool, Node, RadixCache, pack_tokens

BLOCK = 2


def plant(pool: BlockPool, cache: RadixCache, tokens: list[int], namespace: str = "") -> list[int]:
    """Compute and publish a prompt of full blocks, then give it back; returns its blocks."""
    blocks = pool.allocate(len(tokens) // BLOCK)
    assert blocks is not None
    node = cache.root(namespace)
    for i, block in enumerate(blocks):
        node = cache.extend(node, pack_tokens(tokens[i * BLOCK : (i + 1) * BLOCK]), block)
    pool.free(blocks)
    cache.check()
    pool.check()
    return blocks


def find(cache: RadixCache, tokens: list[int], namespace: str = "") -> Node:
    return cache.match(cache.root(namespace), pack_tokens(tokens), 99)


def test_the_longest_prefix_of_full_blocks_is_found() -> None:
    pool = BlockPool(8)
    cache = RadixCache(pool, BLOCK)
    blocks = plant(pool, cache, [1, 2, 3, 4, 5, 6])
    assert find(cache, [1, 2, 3, 4, 9, 9]).path() == blocks[:2]
    assert find(cache, [1, 2, 3]).path() == blocks[:1]
    assert find(cache, [2, 1]).path() == []
    assert find(cache, [1, 2], "other").path() == []
    assert cache.match(cache.root(""), pack_tokens([1, 2, 3, 4, 5, 6]), 1).path() == blocks[:1]


def test_an_older_child_wins_over_a_duplicate() -> None:
    pool = BlockPool(4)
    cache = RadixCache(pool, BLOCK)
    (first,) = plant(pool, cache, [1, 2])
    mine = pool.allocate(1)
    assert mine is not None
    assert cache.extend(cache.root(""), pack_tokens([1, 2]), mine[0]).block == first
    pool.free(mine)
    assert (pool.num_free, pool.num_cached, len(cache)) == (4, 1, 1)


def test_eviction_takes_leaves_and_forgets_empty_namespaces() -> None:
    pool = BlockPool(4)
    cache = RadixCache(pool, BLOCK)
    plant(pool, cache, [1, 2, 3, 4, 5, 6], "a")
    leaf = find(cache, [1, 2, 3, 4, 5, 6], "a")
    held = pool.allocate(2)  # one free, one evicted
    assert leaf.is_dead
    assert find(cache, [1, 2, 3, 4, 5, 6], "a").depth == 2
    assert pool.allocate(2) is not None
    assert held is not None
    assert len(cache) == 0
    assert pool.num_evicted == 3
    cache.check()
    pool.check()


def test_what_is_withdrawn_is_gone_with_all_that_continues_it() -> None:
    pool = BlockPool(8)
    cache = RadixCache(pool, BLOCK)
    plant(pool, cache, [1, 2, 3, 4, 5, 6])
    cache.withdraw(find(cache, [1, 2, 3, 4]))
    assert find(cache, [1, 2, 3, 4, 5, 6]).depth == 1
    assert (pool.num_free, pool.num_cached) == (8, 1)
    cache.check()
    pool.check()


def test_a_block_has_one_node_and_a_pool_one_cache() -> None:
    pool = BlockPool(4)
    cache = RadixCache(pool, BLOCK)
    held = pool.allocate(1)
    assert held is not None
    node = cache.extend(cache.root(""), pack_tokens([1, 2]), held[0])
    with pytest.raises(ValueError, match="in the tree already"):
        cache.extend(node, pack_tokens([3, 4]), held[0])
    with pytest.raises(ValueError, match="one cache per pool"):
        RadixCache(pool, BLOCK)
    with pytest.raises(ValueError, match="not held and cannot be kept"):
        pool.keep(3)


@pytest.mark.parametrize("shared", range(9))
def test_prompts_that_part_anywhere_in_a_run_find_what_they_share(shared: int) -> None:
    """Also after the first of them has lost its end, and with a third that parts later from the second."""
    pool = BlockPool(32)
    cache = RadixCache(pool, BLOCK)
    first = list(range(100, 116))
    second = [*first[: shared * BLOCK], *range(200, 216 - shared * BLOCK)]
    third = [*second[:14], 300, 301]
    blocks = plant(pool, cache, first)
    for tokens in (second, third):
        node = find(cache, tokens)
        new = pool.allocate(8 - node.depth)
        assert new is not None
        for i in range(node.depth, 8):
            node = cache.extend(node, pack_tokens(tokens[i * BLOCK : (i + 1) * BLOCK]), new[i - 8])
        pool.free(new)
        cache.check()
    assert find(cache, second).path()[:shared] == blocks[:shared]
    assert [find(cache, tokens).depth for tokens in (first, second, third)] == [8, 8, 8]
    assert find(cache, [*second[:10], 0, 0]).depth == 5
    cache.withdraw(find(cache, first[:12]))
    assert find(cache, first).depth == 5
    cache.check()
    pool.check()
