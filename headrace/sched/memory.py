"""The memory of sequences: the pool, what they hold of it, what they share of it, and what is kept below it.

Owns nothing but the collaborators, of which prefix cache and places below may be absent: `tables` who holds what,
`prefixes` what is shared, `rents` who uses what had been resting, `beam_blocks` what searches have reserved, `tiering`
what is below. Whatever concerns more than one of them is here, in the order that they need. Called by the scheduler's
parts on the engine thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core.step import Row
from headrace.kv import BlockPool
from headrace.kv.tiers import RecomputeCost, TierHierarchy
from headrace.sched.beam_blocks import BeamBlocks
from headrace.sched.limits import SchedulerLimits
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.rents import Rents
from headrace.sched.sequence import Sequence
from headrace.sched.tables import BlockTables
from headrace.sched.tiering import Tiering


class Memory:
    """One pool and all that keeps account of its blocks."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        limits: SchedulerLimits,
        tiers: TierHierarchy | None,
        cost: RecomputeCost,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.tables = BlockTables(pool, block_size)
        order = limits.eviction_order(pool.num_blocks, block_size)
        self.prefixes = PrefixSharing(pool, block_size, self.tables.retire, order) if limits.prefix_cache else None
        self.rents = Rents(pool, block_size)
        self.beam_blocks = BeamBlocks(pool, block_size, self.tables, self.prefixes)
        self.tiering: Tiering | None = None
        if tiers is not None and self.prefixes is not None:
            self.tiering = Tiering(tiers, self.prefixes, pool, block_size, cost)

    def begin(self, now: float) -> None:
        """Let pins lapse and take in what has arrived from below. Called before a step is planned."""
        if self.prefixes is not None:
            self.prefixes.pins.expire(now)
        if self.tiering is not None:
            self.tiering.begin(now)

    def find(self, sequence: Sequence) -> list[int] | None:
        """Return the blocks that a waiting sequence may share; None if it should wait for more of them."""
        if self.prefixes is None:
            return []
        self.prefixes.find(sequence)
        if self.prefixes.is_being_filled(sequence):
            return None
        if self.tiering is not None and self.tiering.is_pending(sequence):
            return None
        assert sequence.node is not None
        return sequence.node.path()

    def enter(self, sequence: Sequence, shared: list[int], num_new: int) -> tuple[int, int]:
        """Give an entering sequence its shared blocks and new ones, loaded ones among these; there is room.

        Returns how many are shared, those that were loaded included, and how many are empty.
        """
        if self.prefixes is not None:
            self.prefixes.enter(sequence, shared)
            if self.tiering is not None:
                restored = self.tiering.restore(sequence)
                num_new -= len(restored)
                shared = shared + restored
        blocks = self.pool.allocate(num_new)
        assert blocks is not None
        self.tables.assign(sequence, shared + blocks)
        sequence.num_computed = len(shared) * self.block_size
        return len(shared), num_new

    def roll(self, sequence: Sequence) -> bool:
        """Take back what a sequence's next tokens do not see; give it what its prompt fills next, if that is free."""
        num_published = 0
        if self.prefixes is not None:
            num_published = self.prefixes.num_published(sequence)
            if sequence.num_computed >= sequence.num_seen:
                self.prefixes.leave(sequence)
        self.tables.evict(sequence, num_published)
        num_more = -(-(len(sequence.tokens) - sequence.capacity) // self.block_size)
        blocks = self.pool.allocate(max(min(num_more, sequence.max_blocks - len(sequence.blocks)), 1))
        if blocks is None:
            return False
        self.tables.assign(sequence, blocks)
        return True

    def take(self, sequence: Sequence) -> bool:
        """Take all blocks from a sequence; say whether what it computed is kept below: if not, it is lost."""
        is_kept = self.tiering is not None and self.tiering.preempt(sequence)
        if self.prefixes is not None:
            self.prefixes.leave(sequence)
        self.tables.release(sequence)
        sequence.num_computed = 0
        return is_kept

    def publish(self, sequence: Sequence, row: Row) -> None:
        """Put what a committed row has completed into the prefix cache."""
        num_verified = min(row.start + len(row.tokens), sequence.num_shareable)
        if self.prefixes is not None and num_verified >= sequence.next_publish:
            self.prefixes.publish(sequence, num_verified)
            if sequence.is_paused:
                self.prefixes.fall_silent(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """Take what a failed sequence has put into the prefix cache out of it."""
        if self.prefixes is not None:
            self.prefixes.withdraw(sequence)

    def leave(self, sequence: Sequence, *, has_served: bool) -> None:
        """Let an ended sequence share nothing any more; one that has served its caller leaves the pin it asked for."""
        if self.prefixes is not None:
            if sequence.pin_s and has_served:
                node = self.prefixes.pin(sequence)
                if node is not None and self.tiering is not None:
                    self.tiering.keep(node)  # below the pool, too
            self.prefixes.leave(sequence)
        if self.tiering is not None:
            self.tiering.leave(sequence)

    def check(self, holders: list[Sequence], fenced: Iterable[Sequence]) -> None:
        """Raise AssertionError unless the blocks are those of the running and paused, and of the ended in flight."""
        groups = {id(s.beams): s.beams for s in holders if s.beams is not None}
        reserved = [block for group in groups.values() for block in group.reserve]
        if self.prefixes is not None:
            reserved += self.prefixes.pins.blocks()
        self.tables.check([*holders, *fenced], reserved)
        self.beam_blocks.check(groups.values())
        if self.prefixes is not None:
            self.prefixes.check(holders)
        if self.tiering is not None:
            self.tiering.check()
