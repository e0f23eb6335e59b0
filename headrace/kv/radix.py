"""Radix cache: which KV blocks hold which prefixes, so that nobody computes the same tokens twice.

Owns: one tree per namespace. An edge is one full block of token ids, a node the KV block computed for it; partial
blocks stay private. The tokens themselves are compared, so two prompts cannot be taken for each other.

Who continues a prefix first continues its run: nodes one below the other, their tokens end to end. So a look-up
compares whole runs at once and asks a dictionary only where prompts part; leaves are the ends of runs, which therefore
only grow and shrink at their ends.

    [a b c d e f]      one run: six nodes
         └─[x y]       parted behind c: a run of its own

Invariants, checked by `check()`: a block is in at most one node; whoever holds a node's block holds those of all its
ancestors, so blocks are evicted leaf first (see `kv.pool`); an evicted or withdrawn node is dead and never revived.
A namespace is opaque: who serves several tenants, models or adapters puts a salt of each into it, on the server side,
and a prefix of one is never found, nor its timing felt, by another.
Called by the scheduler alone, on the engine thread.
Source: RadixAttention, Zheng et al. 2024, §3.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

from headrace.kv.eviction import CostOrder
from headrace.kv.pool import BlockPool

_DEAD = -1
_ROOT = -2
TOKEN_BYTES = array("i").itemsize


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as the bytes that edges are compared by, `TOKEN_BYTES` each."""
    return array("i", tokens).tobytes()


class Node:
    """One cached block: the prefix that ends with it is the path from the root. Written by the cache only."""

    __slots__ = ("block", "children", "depth", "digest", "is_saved", "key", "parent", "run")

    def __init__(self, parent: Node | None, key: bytes, block: int, depth: int, run: Run | None) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.depth = depth  # blocks from the root to here; 0 is a root
        self.run = run  # the one it is part of; None for a root
        self.children: dict[bytes, Node] = {}
        self.digest: bytes | None = None  # its name outside this process, once somebody has asked (`kv.tiers.keys`)
        self.is_saved = False  # its bytes have been copied below the pool, and so have its ancestors'

    @property
    def is_dead(self) -> bool:
        """Say whether the node has left the tree."""
        return self.block == _DEAD

    def path(self) -> list[int]:
        """Return the blocks of the prefix, first to last. Cost: a copy per run."""
        blocks: list[int] = []
        node = self
        while (run := node.run) is not None:
            blocks[:0] = run.blocks[: node.depth - run.above.depth]
            node = run.above
        return blocks


class Run:
    """Nodes one below the other, with what they have end to end. `above` is the node that the first continues."""

    __slots__ = ("above", "blocks", "key", "nodes")

    def __init__(self, above: Node) -> None:
        self.above = above
        self.key = bytearray()
        self.blocks: list[int] = []
        self.nodes: list[Node] = []

    def num_equal(self, first: int, count: int, key: bytes, at: int, size: int) -> int:
        """Count the leading ones of `count` blocks of `size` bytes, from block `first` on, that `key` has from `at`."""
        own, start = self.key, first * size
        if own[start : start + size] != key[at : at + size]:
            return 0
        if own[start : start + count * size] == key[at : at + count * size]:
            return count
        least, most = 1, count - 1
        while least < most:
            middle = (least + most + 1) // 2
            if own[start + least * size : start + middle * size] == key[at + least * size : at + middle * size]:
                least = middle
            else:
                most = middle - 1
        return least


class RadixCache:
    """Prefix trees over the blocks of one pool. A match costs a comparison per run, an extension O(1) per block.

    order  says which block is evicted next; None: the least recently freed one
    """

    def __init__(self, pool: BlockPool, block_size: int, order: CostOrder | None = None) -> None:
        self._pool = pool
        self._key_bytes = block_size * TOKEN_BYTES
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}  # by block
        self.on_evict: Callable[[Node], None] | None = None  # told of a node before it goes, for want of room
        self.on_withdraw: Callable[[Node], None] | None = None  # told of a node whose block is not to be trusted
        self._order = order
        pool.watch_evictions(self._evict, order)

    def __len__(self) -> int:
        """Count the blocks in all trees."""
        return len(self._nodes)

    def root(self, namespace: str) -> Node:
        """Return the root of a namespace's tree; a new one joins the cache with its first child."""
        return self._roots.get(namespace) or Node(None, namespace.encode(), _ROOT, 0, None)

    def match(self, start: Node, key: bytes, limit: int) -> Node:
        """Follow `key`, the packed tokens from position 0, on from `start`; return the last node at depth ≤ limit."""
        size, node, depth = self._key_bytes, start, start.depth
        limit = min(limit, len(key) // size)
        while depth < limit:
            if (run := node.run) is not None:
                offset = depth - run.above.depth
                if most := min(len(run.nodes) - offset, limit - depth):
                    if count := run.num_equal(offset, most, key, depth * size, size):
                        node, depth = run.nodes[offset + count - 1], depth + count
                    if count == most:
                        continue
            child = node.children.get(key[depth * size : (depth + 1) * size])
            if child is None:
                break
            node, depth = child, depth + 1
        return node

    def extend(self, node: Node, key: bytes, block: int) -> Node:
        """Return the child of `node` along `key`, one packed block; a new one keeps `block`, which the caller holds.

        An older child may have another block: then the caller's is a duplicate and not kept.
        """
        child = node.children.get(key)
        if child is None:
            if block in self._nodes:
                raise ValueError(f"block {block} is in the tree already")
            self._pool.keep(block)
            if not node.depth:
                self._roots[node.key.decode()] = node
            run = node.run
            if run is None or run.nodes[-1] is not node:
                run = Run(node)
            child = node.children[key] = self._nodes[block] = Node(node, key, block, node.depth + 1, run)
            run.key += key
            run.blocks.append(block)
            run.nodes.append(child)
            if self._order is not None:
                parent = node.block if node.depth else None
                self._order.enter(block, child.depth, parent, key if node.depth else node.key + b"\0" + key)
        return child

    def withdraw(self, node: Node) -> None:
        """Take a node and all that continues it out of the tree: what it holds is not to be trusted."""
        if node.is_dead or not node.depth:
            return
        doomed = [node]
        for each in doomed:
            doomed += each.children.values()
        for each in reversed(doomed):
            block = each.block
            if self.on_withdraw is not None:
                self.on_withdraw(each)
            self._cut(each)
            self._pool.forget(block)

    def _evict(self, block: int) -> None:
        """Forget the node of a block that the pool gives up: always a leaf."""
        node = self._nodes[block]
        if node.children:
            raise AssertionError(f"block {block} is evicted before the blocks that continue it")
        if self.on_evict is not None:
            self.on_evict(node)
        self._cut(node)

    def _cut(self, node: Node) -> None:
        """Take a leaf out of the tree; a root without children goes too, so namespaces do not pile up."""
        parent, run = node.parent, node.run
        assert parent is not None
        assert run is not None
        assert run.nodes[-1] is node, "what has no children is the last of its run"
        del run.key[-self._key_bytes :], run.blocks[-1], run.nodes[-1]
        del parent.children[node.key]
        del self._nodes[node.block]
        if self._order is not None:
            is_cached = bool(parent.depth) and self._pool.num_holders(parent.block) == 0
            self._order.leave(node.block, is_cached=is_cached)
        node.block, node.parent, node.run = _DEAD, None, None
        if not parent.depth and not parent.children:
            del self._roots[parent.key.decode()]
            parent.block = _DEAD

    def walk(self) -> Iterator[Node]:
        """Yield the nodes of all trees, roots included, each before those that continue it."""
        todo = list(self._roots.values())
        while todo:
            node = todo.pop()
            todo += node.children.values()
            yield node

    def check(self) -> None:
        """Raise AssertionError unless trees and pool agree."""
        seen: set[int] = set()
        for node in self.walk():
            assert not node.is_dead, "a dead node is in the tree"
            for key, child in node.children.items():
                assert child.key == key, "a node is under another's key"
                assert child.parent is node, "a node has another's parent"
                assert child.depth == node.depth + 1, "a node is at the wrong depth"
                assert len(key) == self._key_bytes, "an edge is not one full block"
                self._check_run(child)
                holders = self._pool.num_holders(node.block) if node.depth else None
                assert holders is None or holders >= self._pool.num_holders(child.block), "a held block is orphaned"
            if node.depth:
                assert node.block not in seen, "a block is in two nodes"
                assert self._nodes.get(node.block) is node, "a node is not on record"
                seen.add(node.block)
        assert len(seen) == len(self._nodes), "a node on record is in no tree"

    def _check_run(self, node: Node) -> None:
        """Raise AssertionError unless a node is in its run where its depth says, behind its parent if it can be."""
        run = node.run
        assert run is not None, "a node is in no run"
        index = node.depth - run.above.depth - 1
        start, end = index * self._key_bytes, (index + 1) * self._key_bytes
        assert run.nodes[index] is node, "a node is in the wrong place of its run"
        assert run.blocks[index] == node.block, "a run has another block than its node"
        assert run.key[start:end] == node.key, "a run has other tokens than its node"
        assert node.parent is (run.nodes[index - 1] if index else run.above), "a run has a gap"
        assert len(run.nodes) == len(run.blocks) == len(run.key) // self._key_bytes, "a run is of two lengths"
