"""`TierCopies`: the bytes of KV blocks on their way to host slots and back, beside the steps that compute.

Owns: a ring of device buffers of one block each. Called by `executor.cuda.executor` in front of a step's rows.

    save    compute: block → ring   │ copy: ring → slot       the block may be written again at once
    load    copy: slot → ring       │ compute: ring → block   the slot is read while the step before still computes

The short copies within the device keep their place among the step's work, so a block's bytes are those of its place in
the list; the long ones over the bus wait for nothing but their buffer of the ring, and what they bring.
Invariant: a buffer of the ring is filled again only after it was emptied, and emptied only after it was filled; slots
are written and read in the order of the list, by one queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import assert_never

import torch

from headrace.core.step import BlockCopy, CopyKind
from headrace.executor.cuda.queues import Mark, Queue, Queues

_RING_BYTES = 64 << 20
_MOST_BUFFERS = 32


class TierCopies:
    """Carries out a step's copies for a pool [blocks, block bytes] of uint8."""

    def __init__(
        self,
        pool: torch.Tensor,
        queues: Queues,
        slot: Callable[[int], torch.Tensor],
        *,
        most_buffers: int = _MOST_BUFFERS,
    ) -> None:
        """`slot` gives the bytes of a host slot; the ring is made when it is first needed."""
        self._most_buffers = most_buffers
        self._pool = pool
        self._queues = queues
        self._slot = slot
        self._ring: torch.Tensor | None = None
        self._emptied: list[Mark | None] = []
        self._next = 0

    def run(self, copies: Sequence[BlockCopy]) -> Mark | None:
        """Queue copies in order. Returns the mark after which the host may read and write their slots, if any."""
        last: Mark | None = None
        for kind, group in groupby(copies, key=lambda copy: copy.kind):
            pairs = [(copy.source, copy.target) for copy in group]
            if kind is CopyKind.DUPLICATE:
                for source, target in pairs:
                    self._queues.run(Queue.COMPUTE, partial(self._pool[target].copy_, self._pool[source]))
                continue
            ring = self._ring_of_blocks()
            for first in range(0, len(pairs), len(ring)):
                some = pairs[first : first + len(ring)]
                match kind:
                    case CopyKind.SAVE:
                        last = self._save(ring, some)
                    case CopyKind.LOAD:
                        last = self._load(ring, some)
                    case _:
                        assert_never(kind)
        return last

    def _save(self, ring: torch.Tensor, pairs: list[tuple[int, int]]) -> Mark:
        queues, buffers = self._queues, self._take(Queue.COMPUTE, len(pairs))
        for (block, _), at in zip(pairs, buffers, strict=True):
            queues.run(Queue.COMPUTE, partial(ring[at].copy_, self._pool[block]))
        queues.wait(Queue.COPY, queues.mark(Queue.COMPUTE))
        for (_, slot), at in zip(pairs, buffers, strict=True):
            queues.run(Queue.COPY, partial(self._slot(slot).copy_, ring[at], non_blocking=True))
        return self._empty(Queue.COPY, buffers)

    def _load(self, ring: torch.Tensor, pairs: list[tuple[int, int]]) -> Mark:
        queues, buffers = self._queues, self._take(Queue.COPY, len(pairs))
        for (slot, _), at in zip(pairs, buffers, strict=True):
            queues.run(Queue.COPY, partial(ring[at].copy_, self._slot(slot), non_blocking=True))
        queues.wait(Queue.COMPUTE, queues.mark(Queue.COPY))
        for (_, block), at in zip(pairs, buffers, strict=True):
            queues.run(Queue.COMPUTE, partial(self._pool[block].copy_, ring[at]))
        return self._empty(Queue.COMPUTE, buffers)

    def _take(self, queue: Queue, count: int) -> list[int]:
        """Return the next buffers of the ring; the queue waits until they are empty."""
        taken = [(self._next + i) % len(self._emptied) for i in range(count)]
        self._next = (self._next + count) % len(self._emptied)
        for mark in {id(mark): mark for at in taken if (mark := self._emptied[at]) is not None}.values():
            self._queues.wait(queue, mark)
        return taken

    def _empty(self, queue: Queue, buffers: list[int]) -> Mark:
        mark = self._queues.mark(queue)
        for at in buffers:
            self._emptied[at] = mark
        return mark

    def _ring_of_blocks(self) -> torch.Tensor:
        if self._ring is None:
            size = self._pool.shape[1]
            count = max(min(_RING_BYTES // size, self._most_buffers), 2)
            self._ring = torch.empty((count, size), dtype=torch.uint8, device=self._pool.device)
            self._emptied = [None] * count
            # Its memory may have been another tensor's, which the compute queue still reads.
            self._queues.wait(Queue.COPY, self._queues.mark(Queue.COMPUTE))
        return self._ring
