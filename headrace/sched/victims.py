"""Whom to preempt when the pool has run dry.

Owns nothing: a choice over the running sequences. Called by the scheduler.
Rule: background first, then the last to go first by priority; inside a class the least to compute again for each block
freed, after what stays in the prefix cache; among equals, the newest.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.kv import BlockPool
from headrace.sched.sequence import Sequence


def choose_victim(newest_first: Iterable[Sequence], pool: BlockPool, block_size: int) -> Sequence | None:
    """Return who should give its blocks back; None if nobody may.

    Not one that a step in flight reads, nor a beam, which has reserved all it will ever want. One whose blocks are all
    shared frees nothing, but gives way in the end: two that share with each other alone would else hold up everybody.
    """
    best: Sequence | None = None
    least = (False, 0, float("inf"))
    fallback: Sequence | None = None
    for sequence in newest_first:
        if sequence.num_in_flight or sequence.beams is not None:
            continue
        if not (num_freed := pool.count_sole(sequence.blocks)):
            fallback = fallback or sequence
            continue
        rank = (not sequence.is_background, -sequence.priority, num_to_recompute(sequence, block_size) / num_freed)
        if best is None or rank < least:
            best, least = sequence, rank
    return best or fallback


def num_to_recompute(sequence: Sequence, block_size: int) -> int:
    """Count the computed tokens that would be lost: those that are not in the prefix cache."""
    node = sequence.node
    num_kept = 0 if node is None or node.is_dead else node.depth * block_size
    return max(sequence.num_computed - num_kept, 0)
