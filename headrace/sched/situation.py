"""Where a live sequence stands, in numbers: what a waiting one lacks, what a running one has done.

Owns nothing and changes nothing that a decision depends on. Called on the engine thread, between steps, when somebody
asks; the order is the scheduler's own.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple

from headrace.core.request import SeqId
from headrace.core.why import RequestState, WaitReason
from headrace.kv import BlockPool
from headrace.kv.tiers import Late
from headrace.sched.beam_blocks import BeamBlocks
from headrace.sched.limits import SchedulerLimits
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.queue import WaitingQueue
from headrace.sched.sequence import Sequence, SequenceStatus
from headrace.sched.tiering import Load, Tiering


class Situation(NamedTuple):
    """One live sequence. The fields from `reason` on are those of a waiting one."""

    state: RequestState
    priority: int
    is_background: bool
    num_computed: int
    prompt_len: int
    num_output: int
    first_scheduled_s: float | None
    reason: WaitReason | None = None
    position: int | None = None
    num_waiting: int = 0
    num_running: int = 0
    num_places: int = 0
    num_needed: int = 0
    num_free: int = 0
    filler: SeqId | None = None
    tenant_ahead: float = 0.0
    num_beams: int = 1
    load: Load | None = None
    late: Late | None = None


def situation_of(
    sequence: Sequence,
    now: float,
    *,
    is_paused: bool,
    waiting: WaitingQueue,
    prefixes: PrefixSharing | None,
    tiering: Tiering | None,
    beam_blocks: BeamBlocks,
    pool: BlockPool,
    block_size: int,
    running: Items[Sequence],
    limits: SchedulerLimits,
) -> Situation:
    """Return how a live sequence stands; a beam that has no tokens yet stands as the first of its search."""
    if sequence.beams is not None and not sequence.tokens:
        sequence = sequence.beams.members[0]
    state = RequestState.RUNNING
    if is_paused:
        state = RequestState.PAUSED
    elif sequence.status is SequenceStatus.WAITING:
        state = RequestState.WAITING
    plain = Situation(
        state,
        sequence.priority,
        sequence.is_background,
        min(sequence.num_computed, sequence.prompt_len),
        sequence.prompt_len,
        sequence.num_output,
        sequence.first_scheduled_s,
        late=sequence.late,
    )
    if state is not RequestState.WAITING:
        return plain
    order = list(waiting.candidates(now, background=sequence.is_background))
    num_needed = -(-len(sequence.tokens) // block_size)
    if sequence.beams is not None:
        num_needed += beam_blocks.num_reserved(sequence)
    if prefixes is not None:
        num_needed -= prefixes.find(sequence)
    situation = plain._replace(
        position=order.index(sequence) + 1 if sequence in order else None,
        num_waiting=len(waiting),
        num_running=len(running),
        num_places=limits.max_num_seqs,
        num_needed=num_needed,
        num_free=pool.num_free,
        filler=None if prefixes is None else prefixes.filler_of(sequence),
        tenant_ahead=sequence.account.served - min(other.account.served for other in (*order, sequence)),
        num_beams=sequence.num_beams,
        load=None if tiering is None else tiering.waits_for(sequence, now),
    )
    return situation._replace(reason=_reason(situation, waiting, limits))


def _reason(situation: Situation, waiting: WaitingQueue, limits: SchedulerLimits) -> WaitReason:
    """Name what is lacking first, in the order in which the scheduler would stumble over it."""
    if situation.is_background and waiting.num_interactive:
        return WaitReason.BACKGROUND
    if situation.filler is not None:
        return WaitReason.PREFIX
    if situation.load is not None:
        return WaitReason.LOAD
    if situation.tenant_ahead >= limits.policy.fair_burst_tokens:
        return WaitReason.FAIRNESS
    lacks_blocks = situation.num_needed > situation.num_free
    if situation.num_beams > 1 and (lacks_blocks or situation.num_running + situation.num_beams > situation.num_places):
        return WaitReason.SEARCH
    if situation.num_running >= situation.num_places:
        return WaitReason.PLACES
    if lacks_blocks:
        return WaitReason.BLOCKS
    return WaitReason.TURN
