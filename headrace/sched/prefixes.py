"""Prefix sharing: what a sequence finds in the radix cache, what it puts there, and who waits for whom.

Owns: the cache, and the record of running prompts whose next block others may wait for. Called by the scheduler.
Rules: only full blocks; only tokens of committed steps that did not fail; a sequence always computes its last token
itself, since somebody has to make the logits. A block that another sequence has published first is swapped for the
published one, so each prefix is in memory once.

    tokens:  | in the cache: shared | computed by committed steps: published | in flight | to compute |
             0                      ^ num_cached                             ^ node      ^ num_computed

In-batch dedupe: a waiting sequence whose next block a running one is about to publish waits for it, at most
`_MOST_DEFERRALS` steps; the running one is never held up by that, so somebody always gets on.
Source: waiting for a prefix that is being filled, as SGLang's in-batch prefix caching and TensorRT-LLM do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from headrace.core.request import SeqId
from headrace.kv import BlockPool, CostOrder, Node, Pins, RadixCache, pack_tokens
from headrace.kv.radix import TOKEN_BYTES
from headrace.sched.sequence import Sequence

_MOST_DEFERRALS = 512
_NEVER = sys.maxsize


class PrefixSharing:
    """Finds and publishes prefixes. `retire` takes blocks that a step in flight of their sequence may still read."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        retire: Callable[[Sequence, list[int]], None],
        order: CostOrder | None = None,
    ) -> None:
        self.cache = RadixCache(pool, block_size, order)
        self.pins = Pins(pool)
        self._pool = pool
        self._size = block_size
        self._retire = retire
        self._filling: dict[Node | str, list[Sequence]] = {}

    def find(self, sequence: Sequence) -> int:
        """Return how many blocks a waiting sequence could share now. Cost: what has changed since the last call."""
        node, limit = sequence.node, self.limit(sequence)
        if node is None or not 0 < node.depth <= limit or node.is_dead:
            node = self.cache.root(sequence.namespace)
        depth = -1
        while depth < node.depth < limit:
            depth = node.depth
            if (depth + 1) * self._size <= sequence.prompt_len:
                node = self.cache.match(node, sequence.prompt_key, limit)
            else:
                node = node.children.get(self.block_key(sequence, depth), node)
        sequence.node = node
        return node.depth

    def is_being_filled(self, sequence: Sequence) -> bool:
        """Say whether a running sequence is computing the block that this waiting one needs next; after `find`.

        Nobody waits for background work, which may stand still, but other background work.
        """
        if self.filler_of(sequence) is None:
            return False
        sequence.num_deferrals += 1
        return True

    def filler_of(self, sequence: Sequence) -> SeqId | None:
        """Return who is computing the block that a waiting sequence needs next, if it waits for that; after `find`."""
        node = sequence.node
        if node is None or not self._filling or sequence.num_deferrals >= _MOST_DEFERRALS:
            return None
        depth = node.depth
        fillers = self._filling.get(node if depth else sequence.namespace)
        if not fillers or depth >= self.limit(sequence):
            return None
        key = self.block_key(sequence, depth)
        for filler in fillers:
            if (sequence.is_background or not filler.is_background) and self.block_key(filler, depth) == key:
                return filler.seq_id
        return None

    def enter(self, sequence: Sequence, shared: list[int]) -> None:
        """Take the shared blocks, the path that `find` led to, for a sequence that is being admitted."""
        node = sequence.node
        assert node is not None
        self._pool.share(shared)
        sequence.num_shared = node.depth
        sequence.next_publish = (node.depth + 1) * self._size
        self._announce(sequence, node)

    def advance(self, sequence: Sequence, node: Node) -> None:
        """Let a sequence that has just entered share the prefix up to `node`, further than was found at first."""
        self._silence(sequence)
        sequence.node = node
        sequence.num_shared = node.depth
        sequence.next_publish = (node.depth + 1) * self._size
        self._announce(sequence, node)

    def publish(self, sequence: Sequence, num_verified: int) -> None:
        """Put the full blocks among the first `num_verified` tokens into the cache; swap duplicates."""
        node = sequence.node
        assert node is not None
        if not node.depth:
            node = self.cache.root(sequence.namespace)
        elif node.is_dead:
            self._silence(sequence)
            sequence.next_publish = _NEVER  # what it continues was withdrawn
            return
        duplicates: list[int] = []
        blocks = sequence.blocks
        for depth in range(node.depth, num_verified // self._size):
            node = self.cache.extend(node, self.block_key(sequence, depth), blocks[depth])
            if node.block != blocks[depth]:
                duplicates.append(blocks[depth])
                self._pool.share([node.block])
                blocks[depth] = node.block
        sequence.next_publish = (node.depth + 1) * self._size
        if duplicates:
            sequence.table = tuple(blocks)
            self._retire(sequence, duplicates)
        if sequence.filling is not None:
            self._silence(sequence)
        sequence.node = node
        self._announce(sequence, node)

    def leave(self, sequence: Sequence) -> None:
        """Forget a sequence that gives its blocks back, or some of them. What it has published stays in the cache."""
        self._silence(sequence)
        sequence.next_publish = _NEVER

    def stand_by(self, sequence: Sequence) -> None:
        """Give a sequence without blocks its place at the root, until it follows another."""
        sequence.node = self.cache.root(sequence.namespace)

    def follow(self, sequence: Sequence, other: Sequence) -> None:
        """Put a sequence where `other` is, whose full blocks it has come to share."""
        self._silence(sequence)
        sequence.node = other.node
        sequence.num_shared = other.num_shared
        sequence.next_publish = other.next_publish

    def fall_silent(self, sequence: Sequence) -> None:
        """Let nobody wait for a sequence that does not get on."""
        self._silence(sequence)

    def pin(self, sequence: Sequence) -> Node | None:
        """Hold the prompt of a sequence that ends, for as long as it asked; return its last node, None if it cannot."""
        node, most = sequence.node, sequence.prompt_len // self._size
        while node is not None and (node.depth > most or (node.is_dead and sequence.num_evicted)):
            node = node.parent
        return node if node is not None and self.pins.pin(node, sequence.pin_s) else None

    def num_published(self, sequence: Sequence) -> int:
        """Return how many blocks from the first on a running sequence has in the cache."""
        node = sequence.node
        return 0 if node is None or node.is_dead else node.depth

    def withdraw(self, sequence: Sequence) -> None:
        """Take back all that a failed sequence has published itself; its numbers were wrong from somewhere on."""
        node, above = sequence.node, sequence.num_shared
        while node is not None and node.depth > above + 1:
            node = node.parent
        if node is not None and node.depth == above + 1:
            self.cache.withdraw(node)

    def _announce(self, sequence: Sequence, node: Node) -> None:
        """Let others wait for the next block, if its tokens are known and it is not the sequence's last."""
        if (node.depth + 1) * self._size <= len(sequence.tokens):
            place = sequence.filling = node if node.depth else sequence.namespace
            self._filling.setdefault(place, []).append(sequence)

    def _silence(self, sequence: Sequence) -> None:
        place = sequence.filling
        if place is not None:
            sequence.filling = None
            fillers = self._filling[place]
            fillers.remove(sequence)
            if not fillers:
                del self._filling[place]

    def limit(self, sequence: Sequence) -> int:
        """Return the blocks that may be shared: not the last token's, and none whose log probabilities are wanted."""
        most = min(len(sequence.tokens) - 1, sequence.num_shareable)
        if sequence.num_score_top is not None and sequence.num_scored < sequence.prompt_len - 1:
            most = min(most, sequence.num_scored)
        return most // self._size

    def block_key(self, sequence: Sequence, depth: int) -> bytes:
        """Return the packed tokens of one full block."""
        start, end = depth * self._size, (depth + 1) * self._size
        if end <= sequence.prompt_len:
            return sequence.prompt_key[start * TOKEN_BYTES : end * TOKEN_BYTES]
        return pack_tokens(sequence.tokens[start:end])

    def check(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless the tree and the running sequences agree."""
        self.cache.check()
        self.pins.check()
        for sequence in running:
            node = sequence.node
            assert node is not None, "a running sequence has no place in the tree"
            if not node.is_dead and not sequence.num_evicted:
                assert node.path() == sequence.blocks[: node.depth], "a sequence's table leaves the tree's path"
                assert node.depth * self._size <= sequence.num_computed, "a block is published before it is computed"
        fillers = [sequence for group in self._filling.values() for sequence in group]
        assert all(sequence in running for sequence in fillers), "a sequence that does not run is waited for"
