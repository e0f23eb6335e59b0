"""Pool of fixed-size KV blocks: which are free, which are kept for later, and how many hold each of the others.

Owns: reference counts, the free list and the order in which kept blocks are given up. Numbers only; the executor moves
the bytes. Called by the scheduler and the radix cache alone, on the engine thread.
Invariant: free + held + cached == num_blocks, checked by `check()`, which tests call after each step.
Order: free blocks first, last freed first taken, so that a quiet server touches few pages; then cached blocks, least
recently freed first. Sequences are freed from the tail and hold every block from their first to their last, so a
cached block goes before those that it continues: eviction takes leaves of the prefix tree without looking at it.
A watcher may bring an order of its own, which is then told of every use and release of a kept block.

             allocate                    free, not kept
    FREE ───────────────► HELD (refs ≥ 1) ─────────────► FREE
     ▲                     ▲        │ free, kept
     │ evict, when         │share   ▼
     └─ allocate runs dry ─┴──── CACHED (refs 0)

Source: PagedAttention, Kwon et al. 2023, §4.2; eviction from the tail as in RadixAttention, Zheng et al. 2024.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol


class EvictionOrder(Protocol):
    """Says which cached block is given up next; sees kept blocks only."""

    def take(self, blocks: Iterable[int]) -> None:
        """Each of `blocks` has one more holder."""
        ...

    def release(self, block: int) -> None:
        """A block has become cached."""
        ...

    def victim(self) -> int:
        """Return the cached block to give up now."""
        ...


class BlockPool:
    """Hands out block numbers 0 … num_blocks-1. Each call costs O(1) per block."""

    __slots__ = ("_cached", "_free", "_kept", "_on_evict", "_order", "_refs", "num_blocks", "num_evicted")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV pool needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_evicted = 0  # cached blocks given up since the start
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._kept = bytearray(num_blocks)  # 1: becomes cached, not free, after its last holder
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._on_evict: Callable[[int], None] | None = None
        self._order: EvictionOrder | None = None  # None: least recently freed

    @property
    def num_free(self) -> int:
        """Count the blocks that `allocate` could hand out now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Count the blocks that nobody holds and that are kept until their place is needed."""
        return len(self._cached)

    def watch_evictions(self, on_evict: Callable[[int], None], order: EvictionOrder | None = None) -> None:
        """Call `on_evict` with each cached block that is given up, before it is handed out. One watcher only.

        order  chooses the block instead of the least recently freed one
        """
        if self._on_evict is not None:
            raise ValueError("the pool's evictions are watched already; one cache per pool")
        self._on_evict, self._order = on_evict, order

    def allocate(self, n: int) -> list[int] | None:
        """Take `n` blocks, each with one holder; None, and nothing taken, if fewer are free or cached."""
        free, refs = self._free, self._refs
        if n > len(free):
            if n > len(free) + len(self._cached):
                return None
            self._evict(n - len(free))
        if n == 1:
            block = free.pop()
            refs[block] = 1
            return [block]
        taken = free[len(free) - n :]
        del free[len(free) - n :]
        taken.reverse()
        for block in taken:
            refs[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add one holder to each block; all must be held or cached already."""
        refs, kept = self._refs, self._kept
        for block in blocks:
            if refs[block] == 0 and not kept[block]:
                raise ValueError(f"block {block} is free and cannot be shared")
        for block in blocks:
            if refs[block] == 0:
                del self._cached[block]
            refs[block] += 1
        if self._order is not None:
            self._order.take(block for block in blocks if kept[block])

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one holder of each block, tail first; a block without holders becomes cached if kept, else free."""
        refs, free, kept, order = self._refs, self._free, self._kept, self._order
        for block in reversed(blocks):
            count = refs[block]
            if count == 0:
                raise ValueError(f"block {block} is freed twice")
            refs[block] = count - 1
            if count == 1:
                if kept[block]:
                    self._cached[block] = None
                    if order is not None:
                        order.release(block)
                else:
                    free.append(block)

    def keep(self, block: int) -> None:
        """Let a held block become cached after its last holder."""
        if self._refs[block] == 0:
            raise ValueError(f"block {block} is not held and cannot be kept")
        self._kept[block] = 1

    def forget(self, block: int) -> None:
        """Take `keep` back: a cached block is free at once, a held one after its last holder."""
        self._kept[block] = 0
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def num_holders(self, block: int) -> int:
        """Count the holders of a block."""
        return self._refs[block]

    def count_unheld(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that nobody holds."""
        refs = self._refs
        return sum(1 for block in blocks if refs[block] == 0)

    def count_sole(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that have one holder, so that freeing them makes room."""
        refs = self._refs
        return sum(1 for block in blocks if refs[block] == 1)

    def _evict(self, n: int) -> None:
        """Turn `n` cached blocks into free ones."""
        order = self._order
        for _ in range(n):
            if order is None:
                block, _ = self._cached.popitem(last=False)
            else:
                block = order.victim()
                del self._cached[block]
            self._kept[block] = 0
            if self._on_evict is not None:
                self._on_evict(block)
            self._free.append(block)
        self.num_evicted += n

    def check(self) -> None:
        """Raise AssertionError unless every block is free once, cached once or held."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        assert all(0 <= block < self.num_blocks for block in free), "the free list names a block outside the pool"
        held = sum(1 for count in self._refs if count > 0)
        assert not free & set(self._cached), "a block is free and cached"
        assert all(self._refs[block] == 0 for block in free), "a free block has a holder"
        assert all(self._refs[block] == 0 and self._kept[block] for block in self._cached), "a cached block is held"
        assert not any(self._kept[block] for block in free), "a free block is kept"
        total = len(free) + held + len(self._cached)
        assert total == self.num_blocks, f"{len(free)} free + {held} held + {len(self._cached)} cached != {total}"
