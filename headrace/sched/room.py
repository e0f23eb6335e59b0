"""Room for sequences: who gets blocks and a place, and who gives them up for it.

Owns: whether the last sequence that wanted to enter lacked blocks, and the counts of preemptions and swaps. Called by
the scheduler and its planner; any thread may read `is_full`.
In the order in which they give way: what is free, paused sequences, background ones, newer ones (for growth alone),
pins. A preempted sequence waits at the head of its class; what it computed is kept below, or lost.
Invariant: the oldest running sequence is never preempted but for a class above it, so that somebody always gets on.
Source: preemption by recompute or swap is Kwon et al. 2023, §4.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from headrace.sched.decisions import Decisions, Preempted, PreemptReason
from headrace.sched.forecast import OutputForecast
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.memory import Memory
from headrace.sched.roster import Roster
from headrace.sched.sequence import Sequence, SequenceStatus
from headrace.sched.victims import choose_victim


class Room:
    """Makes room in memory and among the running sequences."""

    def __init__(
        self,
        limits: SchedulerLimits,
        roster: Roster,
        memory: Memory,
        forecast: OutputForecast,
        decisions: Decisions,
        totals: SchedulerTotals,
    ) -> None:
        self._limits = limits
        self._roster = roster
        self._memory = memory
        self._pool = memory.pool
        self._forecast = forecast
        self._decisions = decisions
        self._totals = totals
        self.is_full = False  # the last one that was refused a place lacked blocks

    def grow(self, sequence: Sequence, running: list[Sequence], index: int) -> bool:
        """Give a running sequence one more block, preempting background and newer ones (from `index`) if need be."""
        memory = self._memory
        if sequence.beams is not None:
            memory.beam_blocks.grow(sequence)
            return True
        if sequence.reach is not None and memory.roll(sequence):
            return True
        while (blocks := self._pool.allocate(1)) is None:
            if self._evict_paused(sequence, PreemptReason.GROWTH):
                continue
            newer = reversed(running[index:])
            below = () if sequence.is_background else reversed(self._roster.background)
            if not self._give_way(chain(below, newer), sequence, PreemptReason.GROWTH):
                if memory.prefixes is not None and memory.prefixes.pins.give_up():
                    continue
                return False  # it keeps what it has and waits for an older one to finish
        memory.tables.assign(sequence, blocks)
        return True

    def make(self, sequence: Sequence, shared: list[int], num_new: int) -> bool:
        """Say whether a sequence may enter, after background ones have given way where that helps."""
        pool, roster, prefixes = self._pool, self._roster, self._memory.prefixes
        running, most_running = roster.ordinary, self._limits.max_num_seqs - sequence.num_beams
        if len(running) > most_running or (sequence.is_background and roster.num_running > most_running):
            return False
        num_to_come = 0
        if running or (sequence.is_background and roster.background):  # alone, it may have all there is
            others = (*running, *roster.background) if sequence.is_background else running
            num_to_come = self._forecast.num_blocks_to_come((sequence, *others), self._memory.block_size)
        if num_new + len(shared) + num_to_come <= pool.num_free and roster.num_running <= most_running:
            self.is_full = False
            return True
        num_needed = num_new + pool.count_unheld(shared) + num_to_come
        while num_needed > pool.num_free and self._evict_paused(sequence, PreemptReason.PLACE):
            num_needed = max(num_needed, num_new + pool.count_unheld(shared))
        if prefixes is not None and not roster.num_running:  # pins give way to what would else never run
            while num_needed > pool.num_free and prefixes.pins.give_up():
                num_needed = max(num_needed, num_new + pool.count_unheld(shared))
        num_to_be_had = pool.num_free
        if not sequence.is_background:
            num_to_be_had += sum(pool.count_sole(other.blocks) for other in roster.background)
        self.is_full = num_needed > num_to_be_had
        if self.is_full and (running or sequence.is_background):
            return False
        while roster.num_running > most_running or num_needed > pool.num_free:
            if not self._give_way(reversed(roster.background), sequence, PreemptReason.PLACE):
                return False
            num_needed = max(num_needed, num_new + pool.count_unheld(shared))
        return True

    def bring_back(self, sequence: Sequence) -> None:
        """Put a resumed sequence where it belongs: among the running ones if there is a place, else to the queue."""
        roster = self._roster
        if sequence.status is SequenceStatus.RUNNING:
            if roster.num_running < self._limits.max_num_seqs:
                roster.paused.remove(sequence)
                roster.run(sequence)
                return
            if sequence.num_in_flight:
                return  # a step reads its blocks: later
            self._take_blocks(sequence)
        roster.paused.remove(sequence)
        roster.waiting.put_back(sequence)

    def _give_way(self, newest_first: Iterable[Sequence], to: Sequence, reason: PreemptReason) -> bool:
        """Preempt one of these for the good of another; False if none can be."""
        victim = choose_victim(newest_first, self._pool, self._memory.block_size)
        if victim is None:
            return False
        if not victim.is_background:
            self._forecast.note_preemption()
        self._decisions.note(Preempted.of(victim, to, reason, self._pool, self._memory.block_size))
        self._roster.stop(victim)
        self._take_blocks(victim)
        self._roster.waiting.put_back(victim)
        return True

    def _evict_paused(self, to: Sequence, reason: PreemptReason) -> bool:
        """Take the blocks of one paused sequence for the good of another; False if none has any to give."""
        if not self._roster.paused:
            return False
        victim = choose_victim(reversed(self._roster.paused.holders()), self._pool, self._memory.block_size)
        if victim is not None:
            self._decisions.note(Preempted.of(victim, to, reason, self._pool, self._memory.block_size))
            self._take_blocks(victim)
        return victim is not None

    def _take_blocks(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence that has left the running list."""
        self._totals.num_swaps += self._memory.take(sequence)
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self._totals.num_preemptions += 1
