"""Pool of fixed-size KV blocks: which are free, which are kept for later, and how many hold each of the others.

Owns: reference counts, the free list and the order in which kept blocks are given up. Numbers only; the executor moves
the bytes. Called by the scheduler and the radix cache alone, on the engine thread.
Invariant: free + held + cached == num_blocks, checked by `check()`, which tests call after each step.
Order: free blocks first, last freed first taken, so that a quiet server touches few pages; then cached blocks, least
recently freed first. Sequences are freed from the tail and hold every block from their first to their last, so a
cached block goes before those that it continues: eviction takes leaves of the prefix tree without looking at it.
A watcher may bring an order of its own, which is then told of every use and release of a kept block.

One number per block tells its state: holders, 0 for free, or minus the number of the release that left it cached. So
to share or to free a long prefix is one pass over one list; what was released is queued as a whole, and an entry whose
number is no longer the block's is skipped when its turn comes.

             allocate                    free, not kept
    FREE ───────────────► HELD (refs ≥ 1) ─────────────► FREE
     ▲                     ▲        │ free, kept
     │ evict, when         │share   ▼
     └─ allocate runs dry ─┴──── CACHED (refs 0)

Source: PagedAttention, Kwon et al. 2023, §4.2; eviction from the tail as in RadixAttention, Zheng et al. 2024.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

_SLACK = 64  # stale entries that the queue may hold besides as many as there are blocks


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

    __slots__ = (
        *("_free", "_kept", "_num_queued", "_num_releases", "_on_evict", "_order", "_queue", "_since_ns", "_state"),
        *("moment_ns", "num_blocks", "num_cached", "num_evicted"),
    )

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV pool needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_cached = 0  # blocks that nobody holds and that are kept until their place is needed
        self.num_evicted = 0  # cached blocks given up since the start
        self.moment_ns = 0  # now, as the scheduler last said
        self._since_ns = [0] * num_blocks  # when a cached block became cached
        self._state = [0] * num_blocks  # see above
        self._free = list(range(num_blocks - 1, -1, -1))
        self._kept = bytearray(num_blocks)  # 1: becomes cached, not free, after its last holder
        self._num_releases = 0
        self._queue: deque[tuple[int, deque[int]]] = deque()  # number of the release, and its blocks: first goes first
        self._num_queued = 0
        self._on_evict: Callable[[int], None] | None = None
        self._order: EvictionOrder | None = None  # None: least recently freed

    @property
    def num_free(self) -> int:
        """Count the blocks that `allocate` could hand out now, cached ones included."""
        return len(self._free) + self.num_cached

    def watch_evictions(self, on_evict: Callable[[int], None], order: EvictionOrder | None = None) -> None:
        """Call `on_evict` with each cached block that is given up, before it is handed out. One watcher only.

        order  chooses the block instead of the least recently freed one
        """
        if self._on_evict is not None:
            raise ValueError("the pool's evictions are watched already; one cache per pool")
        self._on_evict, self._order = on_evict, order

    def allocate(self, n: int) -> list[int] | None:
        """Take `n` blocks, each with one holder; None, and nothing taken, if fewer are free or cached."""
        free, state = self._free, self._state
        if n > len(free):
            if n > len(free) + self.num_cached:
                return None
            self._evict(n - len(free))
        if n == 1:
            block = free.pop()
            state[block] = 1
            return [block]
        taken = free[len(free) - n :]
        del free[len(free) - n :]
        taken.reverse()
        for block in taken:
            state[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add one holder to each block; all must be held or cached already."""
        state, num_found = self._state, 0
        for index, block in enumerate(blocks):
            count = state[block]
            if count > 0:
                state[block] = count + 1
            elif count:
                state[block] = 1
                num_found += 1
            else:
                self.num_cached -= num_found
                self.free(blocks[:index])
                raise ValueError(f"block {block} is free and cannot be shared")
        self.num_cached -= num_found
        if self._order is not None:
            self._order.take(block for block in blocks if self._kept[block])

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one holder of each block, tail first; a block without holders becomes cached if kept, else free."""
        state, kept, free = self._state, self._kept, self._free
        self._num_releases += 1
        mark, moment_ns, since_ns = -self._num_releases, self.moment_ns, self._since_ns
        released: list[int] = []
        try:
            for block in reversed(blocks):
                count = state[block]
                if count == 1:
                    if kept[block]:
                        state[block] = mark
                        since_ns[block] = moment_ns
                        released.append(block)
                    else:
                        state[block] = 0
                        free.append(block)
                elif count > 1:
                    state[block] = count - 1
                else:
                    raise ValueError(f"block {block} is freed twice")
        finally:
            if released:
                self._note_cached(mark, released)

    def keep(self, block: int) -> None:
        """Let a held block become cached after its last holder."""
        if self._state[block] <= 0:
            raise ValueError(f"block {block} is not held and cannot be kept")
        self._kept[block] = 1

    def forget(self, block: int) -> None:
        """Take `keep` back: a cached block is free at once, a held one after its last holder."""
        self._kept[block] = 0
        if self._state[block] < 0:
            self._state[block] = 0
            self.num_cached -= 1
            self._free.append(block)

    def num_holders(self, block: int) -> int:
        """Count the holders of a block."""
        return max(self._state[block], 0)

    def resting(self, blocks: Iterable[int]) -> list[tuple[int, int]]:
        """Return those of `blocks` that are cached, each with the nanoseconds since it became so."""
        state, since_ns, now_ns = self._state, self._since_ns, self.moment_ns
        return [(block, now_ns - since_ns[block]) for block in blocks if state[block] < 0]

    def count_unheld(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that nobody holds."""
        state = self._state
        return len([block for block in blocks if state[block] <= 0])

    def count_sole(self, blocks: Iterable[int]) -> int:
        """Count those of `blocks` that have one holder, so that freeing them makes room."""
        state = self._state
        return len([block for block in blocks if state[block] == 1])

    def _note_cached(self, mark: int, released: list[int]) -> None:
        """Take note of blocks that have become cached, in the order in which they may go."""
        self.num_cached += len(released)
        if self._order is not None:
            for block in released:
                self._order.release(block)
            return
        self._queue.append((mark, deque(released)))
        self._num_queued += len(released)
        if self._num_queued > 2 * self.num_blocks + _SLACK:
            self._drop_stale()

    def _drop_stale(self) -> None:
        """Take what has been shared since out of the queue."""
        state = self._state
        live = [(mark, deque(block for block in blocks if state[block] == mark)) for mark, blocks in self._queue]
        self._queue = deque(entry for entry in live if entry[1])
        self._num_queued = self.num_cached

    def _evict(self, n: int) -> None:
        """Turn `n` cached blocks into free ones."""
        order = self._order
        for _ in range(n):
            block = self._next_cached() if order is None else order.victim()
            self._state[block] = self._kept[block] = 0
            self.num_cached -= 1
            if self._on_evict is not None:
                self._on_evict(block)
            self._free.append(block)
        self.num_evicted += n

    def _next_cached(self) -> int:
        """Take the block that was released longest ago, and is still cached, out of the queue."""
        queue, state = self._queue, self._state
        while True:
            mark, blocks = queue[0]
            while blocks:
                block = blocks.popleft()
                self._num_queued -= 1
                if state[block] == mark:
                    return block
            queue.popleft()

    def check(self) -> None:
        """Raise AssertionError unless every block is free once, cached once or held."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        assert all(0 <= block < self.num_blocks for block in free), "the free list names a block outside the pool"
        cached = [block for block, count in enumerate(self._state) if count < 0]
        held = sum(1 for count in self._state if count > 0)
        assert all(self._state[block] == 0 for block in free), "a free block has a holder, or is cached"
        assert all(self._kept[block] for block in cached), "a block is cached that is not kept"
        assert not any(self._kept[block] for block in free), "a free block is kept"
        assert self.num_cached == len(cached), "cached blocks are counted wrong"
        if self._order is None:
            live = [block for mark, blocks in self._queue for block in blocks if self._state[block] == mark]
            assert sorted(live) == cached, "a cached block is not queued once"
            assert self._num_queued == sum(len(blocks) for _, blocks in self._queue), "the queue is counted wrong"
        total = len(free) + held + len(cached)
        assert total == self.num_blocks, f"{len(free)} free + {held} held + {len(cached)} cached != {total}"
