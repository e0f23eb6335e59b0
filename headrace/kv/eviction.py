"""Which cached block is worth least: the one that is least likely to be used again.

Owns: for each cached block its depth, uses and time of last use, the leaves of the prefix trees in queues by kind, and
a memory of the prefixes evicted last, as many as the pool has blocks: a prefix that comes back after its eviction is
a reuse too, and keeps its count of uses. Without it a prefix whose turn comes later than a pool's worth of other blocks
would look new each time.
All blocks have the same bytes, so value per byte is value, and all count as equally dear to compute: with what
attention adds late in a prompt, long prompts that do not come back would outlast short ones that do. The chance is
learned per kind (`kv.reuse`): how often the block has been used again (0, 1, more), whether anything ever continued it,
and whether it is early in its prompt; a block early in a prompt is shared by more of them.
Invariant: exactly the blocks that are cached and that no cached block continues are queued, so leaves go first, and
within a kind the least recently used goes first.
Called by the pool (`take`, `release`, `victim`) and the radix cache (`enter`, `leave`), on the engine thread.
Source: value per byte as in GreedyDual-Size-Frequency, Cherkasova 1998; the memory as in ARC, Megiddo and Modha 2003.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush

from headrace.kv.reuse import ReuseHistory

SHALLOW_TOKENS = 4096  # "early in a prompt"
_MANY_USES = 2
_KINDS = (_MANY_USES + 1) * 2 * 2
_HELD = -1
_SLACK = 64  # stale entries that a queue may hold besides as many as live ones

_Ghost = tuple[int, int, int]  # kind, last use, uses
_Entry = tuple[int, int, int]  # last use, minus the depth, block


class CostOrder:
    """Eviction order by value. Each call costs O(log n) per block; `victim` looks at one block per kind."""

    __slots__ = (
        *("_continued", "_depth", "_ghosts", "_history", "_now", "_num_children", "_num_queued"),
        *("_parent", "_prefix_id", "_queued_at", "_queues", "_shallow", "_used_at", "_uses"),
    )

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._history = ReuseHistory(_KINDS, num_blocks)
        self._shallow = max(SHALLOW_TOKENS // block_size, 1)
        self._now = 0  # blocks cached and prefixes taken so far
        self._depth = [0] * num_blocks
        self._parent: list[int | None] = [None] * num_blocks
        self._prefix_id = [0] * num_blocks
        self._ghosts: OrderedDict[int, _Ghost] = OrderedDict()  # by prefix, evicted first first
        self._num_children = [0] * num_blocks
        self._continued = bytearray(num_blocks)
        self._uses = [0] * num_blocks
        self._used_at = [0] * num_blocks
        self._queued_at = [_HELD] * num_blocks  # last use of a queued block
        self._queues: list[list[_Entry]] = [[] for _ in range(_KINDS)]
        self._num_queued = 0

    def enter(self, block: int, depth: int, parent: int | None, key: bytes) -> None:
        """Take note of a block that has joined a tree, at `depth` ≥ 1 below `parent`; somebody holds it.

        key  what tells it from its siblings, and without a parent from all others. Two prefixes of one hash would
             share their history, no more.
        """
        self._now += 1
        self._depth[block], self._parent[block] = depth, parent
        self._num_children[block] = self._uses[block] = self._continued[block] = 0
        self._used_at[block] = self._now
        above = 0
        if parent is not None:
            above = self._prefix_id[parent]
            self._num_children[parent] += 1
            self._continued[parent] = 1
        prefix_id = self._prefix_id[block] = hash((above, key))
        ghost = self._ghosts.pop(prefix_id, None)
        if ghost is None:
            self._history.note_block()
        else:
            kind, used_at, uses = ghost
            self._history.note_reuse(kind, self._now - used_at)
            self._uses[block] = uses + 1

    def leave(self, block: int, *, is_cached: bool) -> None:
        """Forget a leaf that has left its tree. `is_cached`: its parent is not held, and may be a leaf now."""
        self._unqueue(block)
        parent = self._parent[block]
        if parent is not None:
            self._num_children[parent] -= 1
            if is_cached and not self._num_children[parent]:
                self._queue(parent)

    def take(self, blocks: Iterable[int]) -> None:
        """Count the use of a prefix: its blocks are held from now on."""
        self._now += 1
        history, now, used_at = self._history, self._now, self._used_at
        for block in blocks:
            history.note_reuse(self._kind(block), now - used_at[block])
            self._uses[block] += 1
            used_at[block] = now
            self._unqueue(block)

    def release(self, block: int) -> None:
        """Let a block be evicted: nobody holds it any more."""
        self._used_at[block] = self._now
        if not self._num_children[block]:
            self._queue(block)

    def victim(self) -> int:
        """Return the queued block that is worth least, which is evicted now; the caller then calls `leave`."""
        now, chance = self._now, self._history.chance
        best, best_kind, least = None, 0, float("inf")
        for kind, queue in enumerate(self._queues):
            while queue and self._queued_at[queue[0][2]] != queue[0][0]:
                heappop(queue)
            if queue:
                used_at, _, block = queue[0]
                value = chance(kind, now - used_at)
                if value < least:
                    best, best_kind, least = block, kind, value
        if best is None:
            raise AssertionError("no cached block is a leaf")
        self._remember(best, best_kind)
        return best

    def queued(self) -> list[int]:
        """List the blocks that could be evicted next, in any order."""
        return [block for block, at in enumerate(self._queued_at) if at != _HELD]

    def _remember(self, block: int, kind: int) -> None:
        """Keep the prefix of an evicted block in mind; count the one that gives way to it as never used again."""
        ghosts = self._ghosts
        ghosts[self._prefix_id[block]] = (kind, self._used_at[block], self._uses[block])
        if len(ghosts) > len(self._depth):
            _, (old_kind, used_at, _) = ghosts.popitem(last=False)
            self._history.note_eviction(old_kind, self._now - used_at)

    def _kind(self, block: int) -> int:
        uses = min(self._uses[block], _MANY_USES)
        return (uses * 2 + self._continued[block]) * 2 + (self._depth[block] > self._shallow)

    def _queue(self, block: int) -> None:
        used_at = self._used_at[block]
        self._queued_at[block] = used_at
        self._num_queued += 1
        queue = self._queues[self._kind(block)]
        heappush(queue, (used_at, -self._depth[block], block))
        if len(queue) > 2 * self._num_queued + _SLACK:
            queue[:] = [entry for entry in queue if self._queued_at[entry[2]] == entry[0]]
            heapify(queue)

    def _unqueue(self, block: int) -> None:
        if self._queued_at[block] != _HELD:
            self._queued_at[block] = _HELD
            self._num_queued -= 1

    def check(self, cached: Sequence[int]) -> None:
        """Raise AssertionError unless the queues hold exactly the leaves among the cached blocks."""
        leaves = sorted(block for block in cached if not self._num_children[block])
        assert self.queued() == leaves, "the eviction queues and the cached leaves differ"
        assert self._num_queued == len(leaves), "the eviction queues are counted wrong"
        entries = {(used_at, block) for queue in self._queues for used_at, _, block in queue}
        assert all((self._queued_at[block], block) in entries for block in leaves), "a leaf is in no queue"
