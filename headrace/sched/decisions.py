"""What the scheduler decided while it planned a step, in words that can be kept, told and compared.

Owns: the decisions of the step planned last, one list per plan. Written by the scheduler's parts as they decide; read
by the decision log and by whoever answers why a request waits. Rows are not repeated here: the step has them.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from headrace.core.request import SeqId
from headrace.kv import BlockPool
from headrace.sched.sequence import Sequence
from headrace.sched.victims import num_to_recompute


class PreemptReason(StrEnum):
    """Why a running sequence gave its blocks back."""

    GROWTH = "growth"  # one that is older, or of a class above, needed a block and none was free
    PLACE = "place"  # background work, or a paused sequence, gave its place or blocks to one that came in


class Admitted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="admit"):
    """A waiting sequence has got its blocks: `num_shared` from the prefix cache, `num_new` of its own."""

    seq_id: SeqId
    num_shared: int
    num_new: int


class Preempted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="preempt"):
    """A running sequence has given its blocks back for another one.

    num_freed  blocks that became free
    num_lost   computed tokens that neither its blocks nor the prefix cache keep: the cost
    """

    seq_id: SeqId
    by: SeqId
    reason: PreemptReason
    num_freed: int
    num_lost: int

    @classmethod
    def of(cls, victim: Sequence, to: Sequence, reason: PreemptReason, pool: BlockPool, block_size: int) -> Preempted:
        """Work out what preempting a running sequence comes to, before it is done."""
        num_freed = pool.count_sole(victim.blocks)
        return cls(victim.seq_id, to.seq_id, reason, num_freed, num_to_recompute(victim, block_size))


Decision = Admitted | Preempted


class Decisions:
    """What was decided for the step planned last, in order."""

    def __init__(self) -> None:
        self.of_step: list[Decision] = []

    def begin(self) -> None:
        """Start anew; whoever has the list of the step before keeps it."""
        self.of_step = []

    def note(self, decision: Decision) -> None:
        """Add a decision."""
        self.of_step.append(decision)
