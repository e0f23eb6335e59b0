"""Radix cache and pool against a dictionary of prefixes: publish, share, free, evict and withdraw in any order."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.kv import BlockPool, Pins, RadixCache, pack_tokens

NUM_BLOCKS, BLOCK = 10, 2
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=9)


class RadixMachine(RuleBasedStateMachine):
    """Holders publish prompts; `stored` says what the bytes of each block would be."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.cache = RadixCache(self.pool, BLOCK)
        self.pins = Pins(self.pool)
        self.now_s = 0.0
        self.holders: list[list[int]] = []
        self.stored: dict[int, tuple[str, tuple[int, ...]]] = {}

    @rule(tokens=prompts, namespace=st.sampled_from(["a", "b"]))
    def serve(self, tokens: list[int], namespace: str) -> None:
        """Share what is cached, compute the rest, publish all."""
        num_full = len(tokens) // BLOCK
        node = self.cache.match(self.cache.root(namespace), pack_tokens(tokens), num_full)
        shared = node.path()
        for i, block in enumerate(shared):
            assert self.stored[block] == (namespace, tuple(tokens[: (i + 1) * BLOCK])), "a hit holds other tokens"
        if num_full - len(shared) + self.pool.count_unheld(shared) > self.pool.num_free:
            return
        self.pool.share(shared)
        new = self.pool.allocate(num_full - len(shared))
        assert new is not None
        for i, block in enumerate(new, len(shared)):
            self.stored[block] = (namespace, tuple(tokens[: (i + 1) * BLOCK]))
            if not node.depth:
                node = self.cache.root(namespace)
            node = self.cache.extend(node, pack_tokens(tokens[i * BLOCK : (i + 1) * BLOCK]), block)
        self.holders.append(shared + new)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.pool.free(self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1))))

    @rule(tokens=prompts, namespace=st.sampled_from(["a", "b"]))
    def withdraw(self, tokens: list[int], namespace: str) -> None:
        node = self.cache.match(self.cache.root(namespace), pack_tokens(tokens), len(tokens))
        self.cache.withdraw(node)

    @rule(tokens=prompts, namespace=st.sampled_from(["a", "b"]), for_s=st.integers(1, 9))
    def pin(self, tokens: list[int], namespace: str, for_s: int) -> None:
        node = self.cache.match(self.cache.root(namespace), pack_tokens(tokens), len(tokens))
        if self.pins.pin(node, float(for_s)):
            assert set(node.path()) <= set(self.pins.blocks())

    @rule(passed_s=st.integers(0, 9))
    def let_time_pass(self, passed_s: int) -> None:
        self.now_s += passed_s
        self.pins.expire(self.now_s)

    @rule()
    def give_up(self) -> None:
        num_before = self.pins.num_blocks
        assert self.pins.give_up() == (num_before > 0)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.pool.check()
        self.cache.check()
        self.pins.check()
        held = {block for blocks in self.holders for block in blocks} | set(self.pins.blocks())
        assert self.pool.num_free == NUM_BLOCKS - len(held)


RadixMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestRadix = RadixMachine.TestCase
