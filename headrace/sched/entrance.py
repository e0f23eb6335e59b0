"""The entrance: waiting sequences become running ones while a step has budget, places and blocks for them.

Owns: the counts of what the prefix cache was asked for and had. Called by the scheduler once per step and class.
At admission a sequence shares the blocks that the prefix cache has of it and gets new ones for the rest of its tokens;
from then on one block at a time. The beams of a search enter with their leader.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.sched.budget import StepBudget, StepPlan
from headrace.sched.charges import Charges
from headrace.sched.decisions import Admitted, Decisions
from headrace.sched.door import Door
from headrace.sched.limits import SchedulerTotals
from headrace.sched.memory import Memory
from headrace.sched.planner import Planner
from headrace.sched.room import Room
from headrace.sched.roster import Roster
from headrace.sched.sequence import Sequence, SequenceStatus


class Entrance:
    """Lets sequences in."""

    def __init__(
        self,
        roster: Roster,
        memory: Memory,
        room: Room,
        budget: StepBudget,
        planner: Planner,
        charges: Charges,
        door: Door,
        decisions: Decisions,
        totals: SchedulerTotals,
    ) -> None:
        self._roster = roster
        self._memory = memory
        self._room = room
        self._budget = budget
        self._planner = planner
        self._charges = charges
        self._door = door
        self._decisions = decisions
        self._totals = totals

    def admit(self, candidates: Iterable[Sequence], plan: StepPlan, now: float) -> None:
        """Move waiting sequences into the step while budget, places and blocks last."""
        block_size = self._memory.block_size
        for sequence in candidates:
            if (shared := self._memory.find(sequence)) is None:
                continue
            room = self._budget.chunk_room(plan.shape, plan.budget, len(shared) * block_size)
            if room <= 0 or not self._enter(sequence, shared, now):
                return
            self._planner.add_chunk(sequence, plan)
            if not plan.budget:
                return

    def _enter(self, sequence: Sequence, shared: list[int], now: float) -> bool:
        """Make a waiting sequence a running one, with the shared blocks and new ones; False if there is no room."""
        memory, roster = self._memory, self._roster
        most = min(sequence.max_blocks, memory.pool.num_blocks - len(shared))
        num_new = min(-(-len(sequence.tokens) // memory.block_size) - len(shared), most)
        num_reserved = 0 if sequence.beams is None else memory.beam_blocks.num_reserved(sequence)
        if not self._room.make(sequence, shared, num_new + num_reserved):
            return False
        if sequence.first_scheduled_s is None:
            memory.rents.note_use(sequence.seq_id, shared)
        num_shared, num_new = memory.enter(sequence, shared, num_new)
        roster.waiting.remove(sequence)
        sequence.status = SequenceStatus.RUNNING
        if (group := sequence.beams) is None:
            roster.run(sequence)
        else:
            memory.beam_blocks.enter(group)
            roster.run(sequence, group.members[1:])
        self._decisions.note(Admitted(sequence.seq_id, num_shared, num_new))
        self._door.note_admission(now)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
            self._book_hit(sequence)
            self._charges.begin(sequence)
        return True

    def _book_hit(self, sequence: Sequence) -> None:
        """Count what the cache was asked for and what it had."""
        if self._memory.prefixes is not None:
            sequence.num_cached = min(sequence.num_computed, sequence.prompt_len)
            self._totals.prefix_queries += sequence.prompt_len
            self._totals.prefix_hits += sequence.num_cached
