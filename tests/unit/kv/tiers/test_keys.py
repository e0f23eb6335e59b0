from __future__ import annotations

from headrace.kv import BlockPool, RadixCache, pack_tokens
from headrace.kv.tiers import KeyChain, derive_format, derive_secret

SECRET, FORMAT = derive_secret("s"), derive_format("model", 32)
TOKENS = pack_tokens([1, 2, 3, 4])


def test_a_key_depends_on_secret_format_namespace_prefix_and_tokens() -> None:
    chain = KeyChain(SECRET, FORMAT)
    first = chain.next(chain.root("a"), TOKENS)
    assert first == KeyChain(SECRET, FORMAT).next(chain.root("a"), TOKENS)
    others = {
        chain.next(chain.root("b"), TOKENS),
        chain.next(first, TOKENS),
        chain.next(chain.root("a"), pack_tokens([1, 2, 3, 5])),
        *(
            other.next(other.root("a"), TOKENS)
            for other in (KeyChain(derive_secret("t"), FORMAT), KeyChain(SECRET, derive_format("model", 16)))
        ),
    }
    assert len(others | {first}) == 6


def test_a_node_of_the_tree_has_the_key_of_its_path() -> None:
    pool = BlockPool(4)
    cache = RadixCache(pool, 2)
    blocks = pool.allocate(2)
    assert blocks is not None
    node = cache.extend(cache.root("n"), pack_tokens([1, 2]), blocks[0])
    node = cache.extend(node, pack_tokens([3, 4]), blocks[1])
    chain = KeyChain(SECRET, FORMAT)
    expected = chain.next(chain.next(chain.root("n"), pack_tokens([1, 2])), pack_tokens([3, 4]))
    assert chain.of(node) == expected == node.digest


def test_parts_of_a_format_do_not_run_into_each_other() -> None:
    assert derive_format("ab", "c") != derive_format("a", "bc")
