"""Who has begun to use cached blocks in a step, and how long those had been resting.

Owns: the list of those users until the next step is planned. Called by the scheduler's parts on the engine thread;
costs nothing in steps that admit nobody from the cache.
Only a sequence's first admission counts: what comes back after a preemption was preempted by the server's own doing.
"""

from __future__ import annotations

from headrace.core.request import SeqId
from headrace.econ import Owed, share_rent
from headrace.kv import BlockPool


class Rents:
    """Notes what sequences owe for the blocks they find."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._users: list[tuple[int, list[int]]] = []
        self._dues: list[tuple[int, int]] = []  # block and nanoseconds, once each

    def note_use(self, seq_id: SeqId, blocks: list[int]) -> None:
        """Take note that a sequence is about to share these blocks."""
        if blocks:
            self._users.append((seq_id, blocks))
            self._dues += self._pool.resting(blocks)

    def begin(self) -> None:
        """Forget the step before."""
        if self._users:
            self._users, self._dues = [], []

    @property
    def of_step(self) -> tuple[Owed, ...]:
        """Return what the sequences that this step has admitted owe."""
        users, dues = self._users, self._dues
        if not dues:
            return ()
        parts = [sum(ns for _, ns in dues)] if len(users) == 1 else share_rent(dict(dues), users)
        return tuple(
            Owed(seq_id, part, len(blocks) * self._block_size)
            for (seq_id, blocks), part in zip(users, parts, strict=True)
            if part
        )
