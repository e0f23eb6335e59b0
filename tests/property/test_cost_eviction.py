"""The radix cache under the cost order: the machine of the LRU cache, with the queues checked against the tree."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import invariant

from headrace.kv import BlockPool, CostOrder, Pins, RadixCache
from tests.property.test_radix import BLOCK, NUM_BLOCKS, RadixMachine


class CostRadixMachine(RadixMachine):
    """Publish, share, free, evict by value, pin and withdraw in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.order = CostOrder(NUM_BLOCKS, BLOCK)
        self.cache = RadixCache(self.pool, BLOCK, self.order)
        self.pins = Pins(self.pool)

    @invariant()
    def exactly_the_leaves_are_queued(self) -> None:
        self.order.check([block for block in self.stored if self.is_cached(block)])

    def is_cached(self, block: int) -> bool:
        return block in self.cache._nodes and self.pool.num_holders(block) == 0


CostRadixMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestCostRadix = CostRadixMachine.TestCase
