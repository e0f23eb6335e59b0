"""Where the scheduler meets the places below the pool: what it gives them, what it gets back, and what it waits for.

Owns: which waiting sequence has asked for what, and which blocks are promised to preempted ones. Called by the
scheduler on the engine thread; the decisions about places are `kv.tiers`'.

    evicted from the pool ───────────────► saved to host memory, in the step that reuses the block
    shared a second time ────────────────► saved too, and from there sent to disk and Redis: reuse is proven
    waiting, and not in pool or memory ──► a search below; the sequence is passed over until it ends, at most as long
                                           as computing would take, or the longest wait: then it is computed, and the
                                           places that have not answered are noted
    admitted ────────────────────────────► blocks in host memory are loaded, join the prefix tree and count as computed
    preempted ───────────────────────────► swapped, if memory has room and loading back beats computing again: its
                                           blocks are held there until it runs again; else recomputed

A block goes below only if it is in the prefix tree: full, of a committed step, not failed. What is withdrawn from the
tree is forgotten below as well.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.core.request import SeqId
from headrace.core.step import BlockCopy
from headrace.kv import BlockPool, Node
from headrace.kv.tiers import RecomputeCost, Search, TierHierarchy
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.sequence import Sequence


class Load(NamedTuple):
    """What the places below the pool are asked for, and the seconds until the sequence goes on without."""

    places: tuple[str, ...]
    num_blocks: int
    left_s: float


class Tiering:
    """Moves prefixes between the pool and the places below it, as the scheduler plans."""

    def __init__(
        self, tiers: TierHierarchy, prefixes: PrefixSharing, pool: BlockPool, block_size: int, cost: RecomputeCost
    ) -> None:
        self.tiers = tiers
        tiers.weigh_against(cost)
        self._prefixes = prefixes
        self._pool = pool
        self._size = block_size
        self._now = 0.0
        self._searches: dict[SeqId, Search | None] = {}
        self._promised: dict[SeqId, list[bytes]] = {}
        self._owners: dict[bytes, SeqId] = {}  # of promised keys that have not been saved yet
        prefixes.cache.on_evict = self._demote
        prefixes.cache.on_withdraw = self._forget

    def begin(self, now: float) -> None:
        """Take in what has arrived. Called before a step is planned."""
        self._now = now
        self.tiers.poll(now)

    def is_pending(self, sequence: Sequence) -> bool:
        """Say whether a waiting sequence should wait for blocks from below; after `PrefixSharing.find`."""
        if sequence.seq_id not in self._searches:
            self._searches[sequence.seq_id] = self._search(sequence)
        search = self._searches[sequence.seq_id]
        return search is not None and self.tiers.is_pending(search, self._now)

    def waits_for(self, sequence: Sequence, now: float) -> Load | None:
        """Return what a waiting sequence waits for from below, None if for nothing. Changes nothing."""
        search = self._searches.get(sequence.seq_id)
        if search is None or not self.tiers.is_pending(search, now):
            return None
        return Load(self.tiers.shape.places, len(search.keys), search.deadline_s - now)

    @property
    def wait_s(self) -> float | None:
        """Return the seconds until the first search that is still waited for gives up; None if there is none."""
        now, is_pending = self._now, self.tiers.is_pending
        deadlines = [s.deadline_s for s in self._searches.values() if s is not None and is_pending(s, now)]
        return max(min(deadlines) - now, 0.0) if deadlines else None

    def restore(self, sequence: Sequence) -> list[int]:
        """Load what host memory has of an entering sequence beyond its shared blocks; return the new blocks, held."""
        node, tiers = sequence.node, self.tiers
        assert node is not None
        self._share_below(node)
        keys = self._keys(sequence, node)
        count = tiers.num_ready(keys)
        tiers.miss(len(keys) - count)
        if count and not tiers.load_pays(self._saves_s(node.depth, count), count):
            count = 0
        for key in keys[:count]:
            tiers.hold(key)  # making room in the pool may push other blocks into host memory
        blocks = self._pool.allocate(count)
        assert blocks is not None, "a sequence was let in without room for its blocks"
        if not node.depth:
            node = self._prefixes.cache.root(sequence.namespace)  # making room may have emptied the tree
        for key, block in zip(keys, blocks, strict=False):
            tiers.load(key, block, self._now)
            tiers.release(key)
            node = self._prefixes.cache.extend(node, self._prefixes.block_key(sequence, node.depth), block)
            assert node.block == block, "a block was loaded that the pool had"
            node.digest, node.is_saved = key, True
        if blocks:
            self._prefixes.advance(sequence, node)
        if (search := self._searches.get(sequence.seq_id)) is not None:
            sequence.late = tiers.give_up(search, self._now)
        self.leave(sequence)
        return blocks

    def preempt(self, sequence: Sequence) -> bool:
        """Promise a sequence about to be preempted that its blocks are kept; False if recomputing is cheaper."""
        node = sequence.node
        if node is None or node.is_dead or not node.depth or not self.tiers.can_hold(node.depth):
            return False
        if not self.tiers.swap_pays(self._saves_s(0, node.depth), node.depth):
            return False
        keys: list[bytes] = []
        at: Node | None = node
        while at is not None and at.depth:
            key = self.tiers.chain.of(at)
            if self.tiers.hold(key):
                keys.append(key)
            elif key not in self._owners:
                self._owners[key] = sequence.seq_id
                keys.append(key)
            at = at.parent
        self._promised[sequence.seq_id] = keys
        return True

    def leave(self, sequence: Sequence) -> None:
        """Forget what a sequence waited for or was promised: it has been admitted, or it has ended."""
        search = self._searches.pop(sequence.seq_id, None)
        if search is not None:
            self.tiers.end(search)
        for key in self._promised.pop(sequence.seq_id, ()):
            if self._owners.get(key) == sequence.seq_id:
                del self._owners[key]
            else:
                self.tiers.release(key)

    def take_copies(self, *, has_rows: bool) -> tuple[BlockCopy, ...]:
        """Return the copies of the step that is made now; none, and no step, if there are no rows either."""
        return self.tiers.take_copies() if has_rows or self.tiers.has_copies else ()

    def note_committed(self) -> None:
        """Take note that a step has run; once per step, in order."""
        self.tiers.note_committed()

    def save_all(self, now: float) -> None:
        """Save what the tree has and nobody has saved, prefixes first, as long as there is room: the engine ends."""
        self._now = now
        for node in self._prefixes.cache.walk():
            if node.depth and not node.is_saved:
                if not self._save(node, num_uses=1):
                    return
                self.tiers.hold(self.tiers.chain.of(node))  # a prefix is worth nothing without its beginning

    def _search(self, sequence: Sequence) -> Search | None:
        """Ask below for what neither pool nor host memory has of a new sequence."""
        node = sequence.node
        if node is None or sequence.num_preemptions or not self.tiers.has_places_below:
            return None
        keys = self._keys(sequence, node)
        first = self.tiers.num_ready(keys)
        depth = node.depth + first
        saves_s = [self._saves_s(depth + i, 1) for i in range(len(keys) - first)]
        return self.tiers.search(keys[first:], saves_s, self._now)

    def _keys(self, sequence: Sequence, node: Node) -> list[bytes]:
        """Return the keys of the blocks behind `node` that a sequence may share. Cost: about a microsecond each."""
        limit, chain = self._prefixes.limit(sequence), self.tiers.chain
        if node.depth >= limit:
            return []
        keys: list[bytes] = []
        key = chain.of(node)
        for depth in range(node.depth, limit):
            key = chain.next(key, self._prefixes.block_key(sequence, depth))
            keys.append(key)
        return keys

    def _saves_s(self, depth: int, count: int) -> float:
        """Return the seconds that computing `count` blocks behind the first `depth` takes."""
        return self.tiers.cost.recompute_s(depth * self._size, count * self._size)

    def keep(self, node: Node) -> None:
        """Save a prefix that is pinned: it is wanted again for certain."""
        self._share_below(node)

    def _share_below(self, node: Node) -> None:
        """Save blocks that are used a second time, so that they survive this process."""
        if not self.tiers.has_places_below:
            return
        path: list[Node] = []
        at: Node | None = node
        while at is not None and at.depth and not at.is_saved:
            path.append(at)
            at = at.parent
        for each in reversed(path):
            if not self._save(each, num_uses=1):
                return

    def _save(self, node: Node, num_uses: int) -> bool:
        """Save the block of a node whose ancestors are saved."""
        saves_s = self._saves_s(node.depth - 1, 1)
        node.is_saved = self.tiers.save(self.tiers.chain.of(node), node.block, saves_s, self._now, num_uses=num_uses)
        return node.is_saved

    def _demote(self, node: Node) -> None:
        """Save a block that the pool gives up."""
        key = self.tiers.chain.of(node)
        saves_s = self._saves_s(node.depth - 1, 1)
        is_saved = self.tiers.save(key, node.block, saves_s, self._now, num_uses=int(node.is_saved))
        if is_saved and key in self._owners and self.tiers.hold(key):
            del self._owners[key]

    def _forget(self, node: Node) -> None:
        """Drop below what is withdrawn from the tree; what has no name has never been there."""
        if node.digest is not None:
            self.tiers.forget(node.digest)

    def check(self) -> None:
        """Raise AssertionError unless searches and promises are those of waiting sequences."""
        self.tiers.check()
        assert all(seq_id in self._promised for seq_id in self._owners.values()), "a promise has lost its sequence"
