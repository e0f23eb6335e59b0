"""Block tables: which blocks each sequence holds, and when those it gives up may be used again.

Owns: `blocks`, `table` and `capacity` of every sequence, and the fence: blocks that a sequence has swapped for others
stay held until no step in flight reads them. Called by the scheduler and, for swapped duplicates, by `sched.prefixes`.
Invariant, checked by `check()`: each block is free in the pool, or held exactly as often as tables and fence name it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from headrace.kv import BlockPool
from headrace.sched.sequence import Sequence


class BlockTables:
    """Gives sequences blocks of one pool and takes them back."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._size = block_size
        self._last_step_id = -1
        self._retired: deque[tuple[int, list[int]]] = deque()  # blocks to free after the step of that id

    def assign(self, sequence: Sequence, blocks: list[int]) -> None:
        """Put blocks that the caller has taken for it at the end of a sequence's table."""
        sequence.blocks += blocks
        sequence.table = tuple(sequence.blocks)
        sequence.capacity = (len(sequence.blocks) + sequence.num_evicted) * self._size

    def release(self, sequence: Sequence) -> None:
        """Give all blocks of a sequence back to the pool; no step in flight may read them."""
        self._pool.free(sequence.blocks)
        sequence.blocks, sequence.table, sequence.capacity, sequence.num_evicted = [], (), 0, 0

    def evict(self, sequence: Sequence, num_published: int) -> None:
        """Give back the blocks that no token still to be computed attends to, those of the sinks apart.

            | sinks | evicted | window of the next token | room |

        All of the first `num_published` go at once, for the prefix tree has no path with a gap in its middle.
        """
        reach = sequence.reach
        assert reach is not None
        first = -(-reach.num_sinks // self._size)
        num_evictable = reach.num_evictable(sequence.num_computed, self._size)
        num_new = num_evictable - sequence.num_evicted
        if num_new <= 0 or first < num_published > first + num_evictable:
            return
        gone = sequence.blocks[first : first + num_new]
        del sequence.blocks[first : first + num_new]
        sequence.num_evicted += num_new
        sequence.table = tuple(sequence.blocks)
        self.retire(sequence, gone)

    def retire(self, sequence: Sequence, blocks: list[int]) -> None:
        """Free blocks that have left a sequence's table, once no step in flight reads them."""
        if sequence.num_in_flight:
            self._retired.append((self._last_step_id, blocks))
        else:
            self._pool.free(blocks)

    def note_launch(self, step_id: int) -> None:
        """Take note that the step of that id, the newest, reads tables from now on."""
        self._last_step_id = step_id

    def free_retired(self, step_id: int) -> None:
        """Free what has waited for the step of that id, or an older one, to end."""
        while self._retired and self._retired[0][0] <= step_id:
            self._pool.free(self._retired.popleft()[1])

    def check(self, holders: Iterable[Sequence], reserved: Iterable[int] = ()) -> None:
        """Raise AssertionError unless the pool's counts are those of the holders' tables, the fence and `reserved`."""
        self._pool.check()
        holds = Counter(block for sequence in holders for block in sequence.blocks)
        holds.update(block for _, blocks in self._retired for block in blocks)
        holds.update(reserved)
        assert len(holds) + self._pool.num_free == self._pool.num_blocks, "a block is held by nobody"
        assert all(self._pool.num_holders(block) == n for block, n in holds.items()), "a block has a holder too many"
