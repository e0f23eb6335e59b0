"""The scheduler: which tokens of which sequences the next step computes, and what its result means for them.

Owns: the steps in flight and the order in which its parts get their turn. Called by the engine thread alone; the checks
and the counts may be asked from other threads. Each part has one state: `roster` where a sequence is, `memory` what it
holds, `room` who gives way, `planner` the rows, `entrance` who comes in, `results`, `endings` and `searches` how it
ends, `screening` and `door` what is refused, `queue` and `fairness` who is next, `budget` and `step_model` how much a
step holds.

Background sequences live in what the others leave: their rows come last in a step and may hardly stretch it, they are
admitted only while no other sequence waits, and give way at once when one wants their place or their blocks.

    submit ─► WAITING ──admit──► RUNNING ──stop, length, abort, failure──► FINISHED ─► blocks free once no step
                 ▲                  │                                                  in flight reads them
                 └─────preempt──────┘

Invariants, proved by `check()` and the property tests:
- each submitted sequence ends in exactly one event with `finish`;
- whatever is admitted can run to its end alone, and the oldest running sequence is never preempted but for a class
  above it: no deadlock;
- steps are committed in the order they were made; at most two are in flight.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from headrace.core.delta import FinishReason
from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult
from headrace.econ import Owed, StepCosts
from headrace.kv import BlockPool
from headrace.kv.tiers import TierHierarchy
from headrace.sched.budget import StepBudget, StepPlan
from headrace.sched.charges import Charges
from headrace.sched.deadlines import Deadlines, lateness
from headrace.sched.decisions import Decision, Decisions
from headrace.sched.door import Door
from headrace.sched.endings import Endings
from headrace.sched.entrance import Entrance
from headrace.sched.fairness import FairShares
from headrace.sched.forecast import OutputForecast
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.memory import Memory
from headrace.sched.outlook import Outlook
from headrace.sched.overlap import can_overlap
from headrace.sched.planner import Planner
from headrace.sched.queue import WaitingQueue
from headrace.sched.reaches import Reaches
from headrace.sched.results import Results
from headrace.sched.room import Room
from headrace.sched.roster import Roster
from headrace.sched.screening import Screening
from headrace.sched.searches import Searches
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus, Urgency
from headrace.sched.situation import Situation, situation_of
from headrace.sched.step_clock import StepClock
from headrace.sched.step_model import StepModel, StepShape

_MAX_IN_FLIGHT = 2


class _Launched(NamedTuple):
    """A step in flight, the sequence of each row, what its time depends on, and when it began."""

    step: Step
    members: list[Sequence]
    shape: StepShape
    began_s: float


class Scheduler:
    """Plans steps and takes in their results. See the module's docstring."""

    def __init__(
        self, pool: BlockPool, block_size: int, limits: SchedulerLimits, tiers: TierHierarchy | None = None
    ) -> None:
        """Make a scheduler without work. `tiers`, the places below the pool, need the prefix cache."""
        limits.check()
        self.block_size = block_size
        self.limits = limits
        # The last token of a sequence is never computed, but one slot is a small price for a simple bound.
        self._reaches = Reaches(limits, pool.num_blocks, block_size)
        self.max_context = self._reaches.max_context
        self._in_flight: deque[_Launched] = deque()
        self.num_steps = 0
        self.totals = SchedulerTotals()
        self._decisions = Decisions()
        self._model = StepModel()
        self._memory = memory = Memory(pool, block_size, limits, tiers, self._model)
        policy = limits.policy
        shares = FairShares(policy.tenant_weights, policy.fair_burst_tokens)
        self._roster = roster = Roster(WaitingQueue(memory.prefixes, block_size, shares, policy.aging_s))
        self._deadlines = Deadlines()
        self._forecast = OutputForecast(policy.output_ratio)
        self._charges = Charges(shares, self._forecast)
        self._step_clock = StepClock()
        self._budget = budget = StepBudget(limits, self._model)
        outlook = Outlook(limits, self._model, budget, self._forecast)
        door = Door(limits, self.max_context)
        self._room = room = Room(limits, roster, memory, self._forecast, self._decisions, self.totals)
        self._screening = Screening(limits, self._reaches.search_context, roster, memory, room, door, outlook)
        self._planner = planner = Planner(budget, room, self.totals)
        self._entrance = Entrance(
            roster, memory, room, budget, planner, self._charges, door, self._decisions, self.totals
        )
        self._endings = Endings(roster, memory, self._charges, outlook)
        self._searches = Searches(roster, memory, self._endings)
        self._results = Results(roster, memory, self._endings, self._searches, self.totals)

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def decisions(self) -> list[Decision]:
        """Return what the last `schedule` decided."""
        return self._decisions.of_step

    @property
    def owed(self) -> tuple[Owed, ...]:
        """Return what the sequences that the last `schedule` admitted owe for the cached blocks that they use."""
        return self._memory.rents.of_step

    @property
    def has_work(self) -> bool:
        """Say whether any sequence has not finished."""
        return bool(self._roster.live)

    @property
    def can_work(self) -> bool:
        """Say whether any sequence has not finished and is not paused."""
        return len(self._roster.live) > len(self._roster.paused) - self._roster.paused.num_returning

    @property
    def num_paused(self) -> int:
        """Count the sequences that wait for their reader."""
        return len(self._roster.paused)

    @property
    def num_waiting(self) -> int:
        """Count the sequences in the queue, preempted ones included."""
        return len(self._roster.waiting)

    @property
    def num_running(self) -> int:
        """Count the sequences that hold blocks and have not finished."""
        return self._roster.num_running

    @property
    def num_free_blocks(self) -> int:
        """Count the blocks that nobody holds, cached ones included."""
        return self._memory.pool.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Count the blocks that nobody holds and that still keep a prefix."""
        return self._memory.pool.num_cached

    @property
    def num_blocks(self) -> int:
        """Count all blocks of the pool."""
        return self._memory.pool.num_blocks

    @property
    def reserved_ratio(self) -> float:
        """Return the share of `max_tokens` for which running answers have room kept."""
        return self._forecast.reserved_ratio

    def step_costs(self) -> StepCosts:
        """Return what things cost in a step, as far as that has been learned. Any thread."""
        return self._model.costs()

    def live(self) -> list[Sequence]:
        """Return the sequences that have not finished; any thread may look at them, none may write."""
        return list(self._roster.live.values())  # one call into C: nothing comes between

    def situation(self, seq_id: SeqId, now: float) -> Situation | None:
        """Say how a live sequence stands, None if it is not live. Engine thread, between steps; changes nothing."""
        if (sequence := self._roster.live.get(seq_id)) is None:
            return None
        return situation_of(
            sequence,
            now,
            is_paused=sequence in self._roster.paused,
            waiting=self._roster.waiting,
            prefixes=self._memory.prefixes,
            tiering=self._memory.tiering,
            beam_blocks=self._memory.beam_blocks,
            pool=self._memory.pool,
            block_size=self.block_size,
            running=self._roster.running(),
            limits=self.limits,
        )

    def check_admission(self, sequences: list[Sequence], now: float, *, num_queued: int = 0) -> None:
        """Refuse a request that is about to be submitted, or leave its prediction in it: see `screening`. Any thread.

        num_queued  sequences on their way to `submit`, which count as waiting
        """
        self._screening.check_sequences(sequences, now, num_queued=num_queued)

    def check_room(self, urgency: Urgency, now: float, *, num_queued: int = 0) -> None:
        """Raise what `check_admission` would raise for a prompt of any length: what needs no prompt. Any thread."""
        self._screening.check_room(urgency, now, num_queued=num_queued)

    def check_search(self, leader: Sequence) -> None:
        """Raise InvalidRequest if a beam search can never be served. Any thread."""
        self._screening.check_search(leader)

    def check_reach(self, sequence: Sequence) -> None:
        """Raise InvalidRequest if a sequence may not attend to what it asks for. Any thread."""
        self._reaches.check(sequence)

    def check_pin(self, prompt_len: int) -> None:
        """Raise InvalidRequest if so long a prompt can never be pinned. Any thread."""
        self._screening.check_pin(prompt_len)

    @property
    def num_pinned_blocks(self) -> int:
        """Count the blocks that pins hold."""
        return 0 if self._memory.prefixes is None else self._memory.prefixes.pins.num_blocks

    # --- commands ------------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence, now: float = 0.0) -> None:
        """Take a sequence that `check_admission` has let in. Raises ValueError for one that can never be served."""
        if not 1 <= sequence.prompt_len < self.max_context:
            raise ValueError(f"a prompt of {sequence.prompt_len} tokens in a context of {self.max_context}")
        if sequence.seq_id in self._roster.live or sequence.status not in (
            SequenceStatus.WAITING,
            SequenceStatus.PARKED,
        ):
            raise ValueError(f"sequence {sequence.seq_id} has been submitted before")
        sequence.max_len = min(sequence.max_len, self.max_context)
        self._reaches.give(sequence)
        sequence.queued_s = now
        self._charges.join(sequence)
        self._roster.join(sequence, now)
        if sequence.beams is None or sequence.beams.bears_answer(sequence):
            self._deadlines.watch(sequence, self._roster.live)

    def abort(self, seq_id: SeqId, error: str | None = None) -> list[SequenceEvent]:
        """End a live sequence now, as ERROR if `error` is given; nothing happens if it is not live. Idempotent.

        The answers of a beam search end together, with an event each. Blocks that a step in flight still reads are
        freed when that step is committed.
        """
        sequence = self._roster.live.get(seq_id)
        if sequence is None or (sequence.beams is not None and not sequence.beams.bears_answer(sequence)):
            return []  # a beam without an answer ends with those that bear one
        return self._end(sequence, FinishReason.ABORT if error is None else FinishReason.ERROR, error)

    def expire(self, now: float) -> list[SequenceEvent]:
        """End the sequences whose deadline has passed before their first token."""
        events: list[SequenceEvent] = []
        for sequence in self._deadlines.pop_expired(now, self._roster.live):
            if sequence.seq_id in self._roster.live:  # an answer of the same search has not taken it along
                events += self._end(sequence, FinishReason.EXPIRED, lateness(sequence, now))
        return events

    def pause(self, seq_id: SeqId) -> None:
        """Leave a sequence out of steps until it is resumed; those in flight still count. Idempotent.

        A beam is never left out: it says nothing before the end, and its search waits for it.
        """
        sequence = self._roster.live.get(seq_id)
        if sequence is None or sequence.beams is not None:
            return
        if sequence not in self._roster.paused:
            self._roster.remove(sequence)
            self.totals.num_pauses += 1
            if self._memory.prefixes is not None:
                self._memory.prefixes.fall_silent(sequence)
        self._roster.paused.pause(sequence)

    def note_time(self, now: float) -> None:
        """Say what time it is, for whatever comes to rest or is used from now on."""
        self._memory.pool.moment_ns = round(now * 1e9)

    def resume(self, seq_id: SeqId) -> None:
        """Let a paused sequence go on, in the next step that has a place for it. Idempotent."""
        sequence = self._roster.live.get(seq_id)
        if sequence is not None:
            self._roster.paused.resume(sequence)

    def abort_all(self, error: str | None = None) -> list[SequenceEvent]:
        """End every live sequence; nothing may be in flight any more, whatever was launched."""
        members = {s.seq_id: s for launched in self._in_flight for s in launched.members}
        self._in_flight.clear()
        self._memory.tables.free_retired(self.num_steps)
        for sequence in members.values():
            sequence.num_in_flight = 0
            if sequence.status is not SequenceStatus.RUNNING:
                self._memory.tables.release(sequence)
        return [event for seq_id in list(self._roster.live) for event in self.abort(seq_id, error)]

    def schedule(self, now: float) -> Step | None:
        """Plan the next step; None if there is nothing to compute now."""
        if len(self._in_flight) >= _MAX_IN_FLIGHT:
            return None
        self._decisions.begin()
        self._memory.rents.begin()
        self._memory.begin(now)
        roster, planner, entrance, waiting = self._roster, self._planner, self._entrance, self._roster.waiting
        for sequence in roster.paused.returning():
            self._room.bring_back(sequence)
        plan = StepPlan(self.limits.max_step_tokens, is_ahead=self.limits.plans_ahead and bool(self._in_flight))
        num_preemptions = self.totals.num_preemptions
        planner.advance(roster.ordinary, plan)
        has_place = len(roster.ordinary) < self.limits.max_num_seqs
        if waiting.num_interactive and has_place and plan.budget and self.totals.num_preemptions == num_preemptions:
            entrance.admit(waiting.candidates(now), plan, now)
        if roster.background or (waiting.num_background and not waiting.num_interactive):
            plan.budget = self._budget.background_room(plan)
            planner.advance(roster.background, plan)
            if not waiting.num_interactive and plan.budget and self.totals.num_preemptions == num_preemptions:
                entrance.admit(waiting.candidates(now, background=True), plan, now)
        copies = () if self._memory.tiering is None else self._memory.tiering.take_copies(has_rows=bool(plan.rows))
        if not plan.rows and not copies:
            self._step_clock.rest()
            return None
        step = Step(self.num_steps, tuple(plan.rows), copies=self._memory.beam_blocks.take_copies() + copies)
        self.num_steps += 1
        self._memory.tables.note_launch(step.step_id)
        self._in_flight.append(_Launched(step, plan.members, plan.shape, self._step_clock.begin(now)))
        return step

    @property
    def can_overlap(self) -> bool:
        """Say whether the next step should be planned while the only one in flight runs. Asked between the two."""
        if not self.limits.plans_ahead or len(self._in_flight) != 1:
            return False
        return can_overlap(self._in_flight[0].members, self._roster, self._memory.pool)

    def commit(self, step: Step, result: StepResult, now: float) -> list[SequenceEvent]:
        """Take in the result of the oldest step in flight; return what happened, in row order."""
        if not self._in_flight or self._in_flight[0].step is not step:
            raise ValueError(f"step {step.step_id} is not the oldest in flight")
        if result.step_id != step.step_id or len(result.samples) != len(step.rows):
            raise ValueError(f"result of step {result.step_id}, {len(result.samples)} rows, for step {step.step_id}")
        _, members, shape, began_s = self._in_flight.popleft()
        self._memory.tables.free_retired(step.step_id)
        elapsed_s = self._step_clock.end(began_s, now, has_work=bool(self._roster.live))
        self._model.observe(shape, elapsed_s if elapsed_s > 0.0 else result.elapsed_s)
        events = self._results.take(step, members, result, now)
        if self._memory.tiering is not None:
            self._memory.tiering.note_committed()
        return events

    @property
    def wait_s(self) -> float | None:
        """Return how long `schedule` may go on returning None for want of answers from below; None: it may not."""
        return None if self._memory.tiering is None else self._memory.tiering.wait_s

    def save_all(self, now: float) -> Step | None:
        """Plan a step that saves the prefix cache below the pool, None if there is nothing to save: at the end only."""
        if self._memory.tiering is None:
            return None
        self._memory.tiering.save_all(now)
        copies = self._memory.tiering.take_copies(has_rows=False)
        return Step(self.take_step_id(), (), copies=copies) if copies else None

    def take_step_id(self) -> int:
        """Use up a step id, for a step that is made elsewhere."""
        self.num_steps += 1
        return self.num_steps - 1

    def _end(self, sequence: Sequence, finish: FinishReason, error: str | None) -> list[SequenceEvent]:
        """Take a live sequence out of where it is and end it; a beam takes its search with it."""
        if sequence.beams is not None:
            return self._searches.end(sequence.beams, finish, error)
        if sequence not in self._roster.paused:
            self._roster.remove(sequence)
        return [self._endings.finish(sequence, None, finish, error=error)]

    def check(self) -> None:
        """Raise AssertionError if blocks, queues and live sequences do not agree."""
        roster = self._roster
        in_flight = {s.seq_id: s for launched in self._in_flight for s in launched.members}
        holders = [*roster.running(), *roster.paused.holders()]
        self._memory.check(holders, [s for s in in_flight.values() if s.status is not SequenceStatus.RUNNING])
        self._charges.check(roster.live.values())
        roster.check(self.limits.max_num_seqs)
        for sequence in holders:
            assert sequence.status is SequenceStatus.RUNNING, "a running sequence has another status"
            assert len(sequence.tokens) <= sequence.max_len, "a sequence has outrun its limit"
            num_known = len(sequence.tokens) + (sequence.num_in_flight > 1)  # with the one that is sampled now
            assert sequence.num_computed <= min(num_known, sequence.max_len), "a sequence has outrun itself"
            assert sequence.num_computed <= sequence.capacity, "a computed token has no slot"
