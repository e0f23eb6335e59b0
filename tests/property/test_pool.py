"""The block pool against a dictionary of counts."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.kv import BlockPool

NUM_BLOCKS = 9


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share and give back blocks in any order; the model is a plain count per block."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.counts = dict.fromkeys(range(NUM_BLOCKS), 0)
        self.holders: list[list[int]] = []

    @rule(n=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, n: int) -> None:
        num_free = sum(count == 0 for count in self.counts.values())
        blocks = self.pool.allocate(n)
        assert (blocks is None) == (n > num_free)
        if blocks is not None:
            assert len(set(blocks)) == n
            for block in blocks:
                assert self.counts[block] == 0
                self.counts[block] = 1
            self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from(self.holders))
        self.pool.share(blocks)
        for block in blocks:
            self.counts[block] += 1
        self.holders.append(list(blocks))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        blocks = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.free(blocks)
        for block in blocks:
            self.counts[block] -= 1

    @rule(block=st.integers(0, NUM_BLOCKS - 1))
    def refuse_to_touch_a_free_block(self, block: int) -> None:
        if self.counts[block] == 0:
            with pytest.raises(ValueError, match="freed twice"):
                self.pool.free([block])
            with pytest.raises(ValueError, match="cannot be shared"):
                self.pool.share([block])

    @invariant()
    def counts_agree(self) -> None:
        self.pool.check()
        assert self.pool.num_free == sum(count == 0 for count in self.counts.values())


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
