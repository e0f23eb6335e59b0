"""The scheduler: which tokens of which sequences the next step computes, and what its result means for them.

Owns: every live sequence, the running list, the steps in flight and the collaborators named below.
Called by the engine thread alone; `check_admission` and the counts may be read from other threads.

Each step has a token budget. Running sequences come first, in order of admission, so decoding keeps its rhythm; what is
left goes to waiting prompts, cut into chunks. At admission a sequence shares the blocks that the prefix cache has of it
and gets new ones for the rest of its tokens; from then on one block at a time. When the pool runs dry, a newer running
sequence gives its blocks back and waits at the head of its class.

Background sequences live in what the others leave: their rows come last in a step and may hardly stretch it, they are
admitted only while no other sequence waits, and give way at once when one wants their place or their blocks.

Long because all moves of a sequence between its states are here; each decision on the way has a file of its own:
`door` who may wait, `queue` and `fairness` who is next, `deadlines` who has waited too long, `budget` and `step_model`
how much a step holds, `forecast` how much memory is kept free, `victims` who gives way, `prefixes` what is shared,
`tables` who holds what.

A paused sequence (`paused`) is in neither list; it goes on from where it is, or as a preempted one.

    submit ─► WAITING ──admit──► RUNNING ──stop, length, abort, failure──► FINISHED ─► blocks free once no step
                 ▲                  │                                                  in flight reads them
                 └─────preempt──────┘

Invariants, proved by `check()` and the property tests:
- each submitted sequence ends in exactly one event with `finish`;
- whatever is admitted can run to its end alone, and the oldest running sequence is never preempted but for a class
  above it: no deadlock;
- steps are committed in the order they were made; at most two are in flight.
Source: the single token counter follows vLLM's V1 scheduler; preemption by recompute is Kwon et al. 2023, §4.5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

from headrace.core.delta import FinishReason
from headrace.core.errors import InvalidRequest, PromptTooLong
from headrace.core.request import SeqId
from headrace.core.step import Row, Sample, Step, StepResult
from headrace.econ import StepCosts
from headrace.kv import BlockPool
from headrace.kv.tiers import TierHierarchy
from headrace.sched.beam_blocks import BeamBlocks
from headrace.sched.beams import BeamGroup
from headrace.sched.budget import StepBudget, StepPlan
from headrace.sched.deadlines import Deadlines
from headrace.sched.decisions import Admitted, Decision, Preempted, PreemptReason
from headrace.sched.door import Door
from headrace.sched.fairness import FairShares
from headrace.sched.forecast import OutputForecast
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.outlook import Outlook
from headrace.sched.paused import PausedSequences
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.queue import WaitingQueue
from headrace.sched.reaches import Reaches
from headrace.sched.rows import make_row
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus, Urgency
from headrace.sched.situation import Situation, situation_of
from headrace.sched.step_clock import StepClock
from headrace.sched.step_model import StepModel, StepShape
from headrace.sched.tables import BlockTables
from headrace.sched.tiering import Tiering
from headrace.sched.victims import choose_victim

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
        self._pool = pool
        self.block_size = block_size
        self.limits = limits
        # The last token of a sequence is never computed, but one slot is a small price for a simple bound.
        self._reaches = Reaches(limits, pool.num_blocks, block_size)
        self.max_context = self._reaches.max_context
        self._live: dict[SeqId, Sequence] = {}
        self._running: list[Sequence] = []  # in order of admission
        self._background: list[Sequence] = []  # likewise; they hold blocks as well
        self._in_flight: deque[_Launched] = deque()
        self.num_steps = 0
        self.totals = SchedulerTotals()
        self.decisions: list[Decision] = []  # of the last `schedule`
        self._tables = BlockTables(pool, block_size)
        order = limits.eviction_order(pool.num_blocks, block_size)
        self._prefixes = PrefixSharing(pool, block_size, self._tables.retire, order) if limits.prefix_cache else None
        self._beam_blocks = BeamBlocks(pool, block_size, self._tables, self._prefixes)
        policy = limits.policy
        self._shares = FairShares(policy.tenant_weights, policy.fair_burst_tokens)
        self._waiting = WaitingQueue(self._prefixes, block_size, self._shares, policy.aging_s)
        self._paused = PausedSequences()
        self._deadlines = Deadlines()
        self._forecast = OutputForecast(policy.output_ratio)
        self._model = StepModel()
        self._step_clock = StepClock()
        self._budget = StepBudget(policy, self._model)
        self._tiering: Tiering | None = None
        if tiers is not None and self._prefixes is not None:
            self._tiering = Tiering(tiers, self._prefixes, pool, block_size)
        self._outlook = Outlook(limits, self._model, self._budget, self._forecast)
        self._is_full = False  # the last one that was refused a place lacked blocks
        self._door = Door(limits, self.max_context)

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Say whether any sequence has not finished."""
        return bool(self._live)

    @property
    def can_work(self) -> bool:
        """Say whether any sequence has not finished and is not paused."""
        return len(self._live) > len(self._paused) - self._paused.num_returning

    @property
    def num_paused(self) -> int:
        """Count the sequences that wait for their reader."""
        return len(self._paused)

    @property
    def num_waiting(self) -> int:
        """Count the sequences in the queue, preempted ones included."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Count the sequences that hold blocks and have not finished."""
        return len(self._running) + len(self._background)

    @property
    def num_free_blocks(self) -> int:
        """Count the blocks that nobody holds, cached ones included."""
        return self._pool.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Count the blocks that nobody holds and that still keep a prefix."""
        return self._pool.num_cached

    @property
    def num_blocks(self) -> int:
        """Count all blocks of the pool."""
        return self._pool.num_blocks

    @property
    def reserved_ratio(self) -> float:
        """Return the share of `max_tokens` for which running answers have room kept."""
        return self._forecast.reserved_ratio

    def step_costs(self) -> StepCosts:
        """Return what things cost in a step, as far as that has been learned. Any thread."""
        return self._model.costs()

    def live(self) -> list[Sequence]:
        """Return the sequences that have not finished; any thread may look at them, none may write."""
        return list(self._live.values())  # one call into C: nothing comes between

    def situation(self, seq_id: SeqId, now: float) -> Situation | None:
        """Say how a live sequence stands, None if it is not live. Engine thread, between steps; changes nothing."""
        if (sequence := self._live.get(seq_id)) is None:
            return None
        return situation_of(
            sequence,
            now,
            is_paused=sequence in self._paused,
            waiting=self._waiting,
            prefixes=self._prefixes,
            tiering=self._tiering,
            beam_blocks=self._beam_blocks,
            pool=self._pool,
            block_size=self.block_size,
            running=[*self._running, *self._background],
            limits=self.limits,
        )

    def check_admission(self, sequences: list[Sequence], now: float, *, num_queued: int = 0) -> None:
        """Take the measure of a request that is about to be submitted. Any thread.

        Raises PromptTooLong if it can never be served, Overloaded if too much waits or it would wait too long,
        DeadlineUnreachable if it would be too late. Leaves the predicted time to its first token in the sequences.

        num_queued  sequences on their way to `submit`, which count as waiting
        """
        first = sequences[0]
        self._door.check_length(first.prompt_len)
        predicted_s = self._look_over(first, first.prompt_len, now, num_queued)
        for sequence in sequences:
            sequence.predicted_s = predicted_s

    def check_room(self, urgency: Urgency, now: float, *, num_queued: int = 0) -> None:
        """Raise what `check_admission` would raise for a prompt of any length: what needs no prompt. Any thread."""
        self._look_over(urgency, 1, now, num_queued)

    def _look_over(self, who: Urgency | Sequence, prompt_len: int, now: float, num_queued: int) -> float | None:
        """Refuse what would wait too long; return the predicted seconds to the first token, None while unknown."""
        crowd = self._waiting.crowd(who, self.limits.policy.tenant_weights.get(who.tenant, 1.0))
        crowd = crowd._replace(num_sequences=crowd.num_sequences + num_queued)
        self._door.check_crowd(who, crowd, now)
        ahead = crowd.ahead._replace(num_sequences=crowd.ahead.num_sequences + num_queued)
        running = [*self._running, *self._background] if who.is_background else list(self._running)
        predicted_s = self._outlook.ttft_s(prompt_len, ahead, running, is_full=self._is_full)
        if predicted_s is not None:
            self._door.check_wait(who, self._outlook.corrected_s(predicted_s), now)
        return predicted_s

    def check_search(self, leader: Sequence) -> None:
        """Raise InvalidRequest if a beam search can never be served. Any thread."""
        width, most = leader.num_beams, min(leader.max_len, self._reaches.search_context)
        if leader.prompt_len >= most:
            raise PromptTooLong(
                f"prompt has {leader.prompt_len:,} tokens; a search has room for {self._reaches.search_context:,}, "
                "output included; shorten it, or leave use_beam_search out",
                param="prompt",
            )
        if width > self.limits.max_num_seqs:
            raise InvalidRequest(
                f"{width} beams, and at most {self.limits.max_num_seqs} sequences run here at once; lower best_of",
                param="best_of",
            )
        num_blocks = self._beam_blocks.num_wanted(leader, most)
        if num_blocks > self._pool.num_blocks:
            raise InvalidRequest(
                f"{width} beams of up to {most:,} tokens may want {num_blocks:,} blocks of {self.block_size} tokens; "
                f"this server has {self._pool.num_blocks:,}; lower max_tokens or best_of",
                param="max_tokens",
            )

    def check_reach(self, sequence: Sequence) -> None:
        """Raise InvalidRequest if a sequence may not attend to what it asks for. Any thread."""
        self._reaches.check(sequence)

    def check_pin(self, prompt_len: int) -> None:
        """Raise InvalidRequest if so long a prompt can never be pinned. Any thread."""
        if self._prefixes is None:
            raise InvalidRequest("engine.prefix_cache is off: prefixes cannot be kept", param="ttl_s")
        self._prefixes.pins.check_room(prompt_len // self.block_size)

    @property
    def num_pinned_blocks(self) -> int:
        """Count the blocks that pins hold."""
        return 0 if self._prefixes is None else self._prefixes.pins.num_blocks

    # --- commands ------------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence, now: float = 0.0) -> None:
        """Take a sequence that `check_admission` has let in. Raises ValueError for one that can never be served."""
        if not 1 <= sequence.prompt_len < self.max_context:
            raise ValueError(f"a prompt of {sequence.prompt_len} tokens in a context of {self.max_context}")
        if sequence.seq_id in self._live or sequence.status not in (SequenceStatus.WAITING, SequenceStatus.PARKED):
            raise ValueError(f"sequence {sequence.seq_id} has been submitted before")
        sequence.max_len = min(sequence.max_len, self.max_context)
        self._reaches.give(sequence)
        sequence.queued_s = now
        self._live[sequence.seq_id] = sequence
        sequence.account = self._shares.join(sequence.tenant)
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.push(sequence, now)
        if sequence.beams is None or sequence.beams.bears_answer(sequence):
            self._deadlines.watch(sequence, self._live)

    def abort(self, seq_id: SeqId, error: str | None = None) -> SequenceEvent | None:
        """End a live sequence now, as ERROR if `error` is given; None if it is not live. Idempotent.

        Blocks that a step in flight still reads are freed when that step is committed.
        """
        sequence = self._live.get(seq_id)
        if sequence is None or (sequence.beams is not None and not sequence.beams.bears_answer(sequence)):
            return None  # a beam without an answer ends with those that bear one
        return self._end(sequence, FinishReason.ABORT if error is None else FinishReason.ERROR, error)

    def expire(self, now: float) -> list[SequenceEvent]:
        """End the sequences whose deadline has passed before their first token."""
        expired = self._deadlines.pop_expired(now, self._live)
        return [self._end(sequence, FinishReason.EXPIRED, _lateness(sequence, now)) for sequence in expired]

    def pause(self, seq_id: SeqId) -> None:
        """Leave a sequence out of steps until it is resumed; those in flight still count. Idempotent.

        A beam is never left out: it says nothing before the end, and its search waits for it.
        """
        sequence = self._live.get(seq_id)
        if sequence is None or sequence.beams is not None:
            return
        if sequence not in self._paused:
            self._remove(sequence)
            self.totals.num_pauses += 1
            if self._prefixes is not None:
                self._prefixes.fall_silent(sequence)
        self._paused.pause(sequence)

    def resume(self, seq_id: SeqId) -> None:
        """Let a paused sequence go on, in the next step that has a place for it. Idempotent."""
        sequence = self._live.get(seq_id)
        if sequence is not None:
            self._paused.resume(sequence)

    def abort_all(self, error: str | None = None) -> list[SequenceEvent]:
        """End every live sequence; nothing may be in flight any more, whatever was launched."""
        members = {s.seq_id: s for launched in self._in_flight for s in launched.members}
        self._in_flight.clear()
        self._tables.free_retired(self.num_steps)
        for sequence in members.values():
            sequence.num_in_flight = 0
            if sequence.status is not SequenceStatus.RUNNING:
                self._tables.release(sequence)
        events = [self.abort(seq_id, error) for seq_id in list(self._live)]
        return [event for event in events if event is not None]

    def schedule(self, now: float) -> Step | None:
        """Plan the next step; None if there is nothing to compute now."""
        if len(self._in_flight) >= _MAX_IN_FLIGHT:
            return None
        self.decisions = []
        if self._prefixes is not None:
            self._prefixes.pins.expire(now)
        if self._tiering is not None:
            self._tiering.begin(now)
        for sequence in self._paused.returning():
            self._bring_back(sequence)
        plan = StepPlan(self.limits.max_step_tokens)
        waiting = self._waiting
        num_preemptions = self.totals.num_preemptions
        self._advance(self._running, plan)
        has_place = len(self._running) < self.limits.max_num_seqs
        if waiting.num_interactive and has_place and plan.budget and self.totals.num_preemptions == num_preemptions:
            self._admit(waiting.candidates(now), plan, now)
        if self._background or (waiting.num_background and not waiting.num_interactive):
            plan.budget = self._budget.background_room(plan)
            self._advance(self._background, plan)
            if not waiting.num_interactive and plan.budget and self.totals.num_preemptions == num_preemptions:
                self._admit(waiting.candidates(now, background=True), plan, now)
        copies = () if self._tiering is None else self._tiering.take_copies(has_rows=bool(plan.rows))
        if not plan.rows and not copies:
            self._step_clock.rest()
            return None
        step = Step(self.num_steps, tuple(plan.rows), copies=self._beam_blocks.take_copies() + copies)
        self.num_steps += 1
        self._tables.note_launch(step.step_id)
        self._in_flight.append(_Launched(step, plan.members, plan.shape, self._step_clock.begin(now)))
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> list[SequenceEvent]:
        """Take in the result of the oldest step in flight; return what happened, in row order."""
        if not self._in_flight or self._in_flight[0].step is not step:
            raise ValueError(f"step {step.step_id} is not the oldest in flight")
        if result.step_id != step.step_id or len(result.samples) != len(step.rows):
            raise ValueError(f"result of step {result.step_id}, {len(result.samples)} rows, for step {step.step_id}")
        _, members, shape, began_s = self._in_flight.popleft()
        self._tables.free_retired(step.step_id)
        elapsed_s = self._step_clock.end(began_s, now, has_work=bool(self._live))
        self._model.observe(shape, elapsed_s if elapsed_s > 0.0 else result.elapsed_s)
        events: list[SequenceEvent] = []
        failures, rows = result.failures, step.rows
        has_scores = bool(result.scored)
        searches: dict[int, BeamGroup] = {}
        num_finished = num_tokens = 0
        for index, sequence in enumerate(members):
            sequence.num_in_flight -= 1
            if sequence.status is not SequenceStatus.RUNNING:
                if not sequence.num_in_flight:
                    self._tables.release(sequence)
                continue
            if has_scores and (scores := result.scored[index]):
                sequence.scored.extend(scores)
                sequence.num_scored += len(scores)
            if failures and sequence.seq_id in failures:
                self._withdraw(sequence)
                if (group := sequence.beams) is not None:
                    events += self._fail_search(group, failures[sequence.seq_id])
                    continue
                events.append(self._finish(sequence, None, FinishReason.ERROR, error=failures[sequence.seq_id]))
                num_finished += 1
                continue
            if sequence.num_computed >= sequence.next_publish:
                self._publish(sequence, rows[index])
            if (sample := result.samples[index]) is not None:
                num_tokens += 1
                if (group := sequence.beams) is not None:
                    group.offer(sequence, sample)
                    searches[id(group)] = group
                    continue
                event = self._extend(sequence, sample, now)
            elif not (sequence.max_tokens or sequence.num_in_flight) and sequence.num_computed >= sequence.prompt_len:
                event = self._finish(sequence, None, FinishReason.LENGTH)
            else:
                continue
            events.append(event)
            num_finished += event.finish is not None
        for group in searches.values():
            if group.is_ready and not group.is_over:
                events += self._go_on(group, now)
        if num_finished:
            self._running = [s for s in self._running if s.status is SequenceStatus.RUNNING]
            self._background = [s for s in self._background if s.status is SequenceStatus.RUNNING]
        self.totals.generated_tokens += num_tokens
        if self._tiering is not None:
            self._tiering.note_committed(step, result)
        return events

    @property
    def wait_s(self) -> float | None:
        """Return how long `schedule` may go on returning None for want of answers from below; None: it may not."""
        return None if self._tiering is None else self._tiering.wait_s

    def save_all(self, now: float) -> Step | None:
        """Plan a step that saves the prefix cache below the pool, None if there is nothing to save: at the end only."""
        if self._tiering is None:
            return None
        self._tiering.save_all(now)
        copies = self._tiering.take_copies(has_rows=False)
        return Step(self.take_step_id(), (), copies=copies) if copies else None

    def take_step_id(self) -> int:
        """Use up a step id, for a step that is made elsewhere."""
        self.num_steps += 1
        return self.num_steps - 1

    # --- planning ------------------------------------------------------------------------------------------------

    def _advance(self, running: list[Sequence], plan: StepPlan) -> None:
        """Put the running sequences into the plan: those that decode, then the rest of the prompts."""
        rows, members, budget = plan.rows, plan.members, plan.budget
        prompts: list[tuple[Sequence, int]] = []
        index = num_rows = num_reads = 0
        while budget and index < len(running):  # it shrinks from the end while sequences are preempted
            sequence = running[index]
            index += 1
            start = sequence.num_computed
            count = len(sequence.tokens) - start
            if count != 1:
                if count > 1:
                    prompts.append((sequence, index))
                continue  # without tokens to compute, its next one is in flight
            if start >= sequence.capacity and not self._grow(sequence, running, index):
                continue
            budget -= 1
            num_rows += 1
            num_reads += start if start < sequence.num_seen else sequence.num_seen
            rows.append(self._plan(sequence, start, 1))
            members.append(sequence)
        plan.budget = budget
        plan.shape.num_rows += num_rows
        plan.shape.num_reads += num_reads
        for sequence, index in prompts:
            if sequence.num_computed + 1 > sequence.capacity and not self._grow(sequence, running, index):
                continue
            self._add_chunk(sequence, plan)

    def _add_chunk(self, sequence: Sequence, plan: StepPlan) -> None:
        """Put as much of a prompt into the plan as the step has room for."""
        start = sequence.num_computed
        count = min(len(sequence.tokens), sequence.capacity) - start
        num_seen = min(start, sequence.num_seen)
        count = min(count, self._budget.chunk_room(plan.shape, plan.budget, num_seen))
        if count > 0:
            plan.budget -= count
            plan.shape.add(num_seen, count)
            plan.rows.append(self._plan(sequence, start, count))
            plan.members.append(sequence)

    def _plan(self, sequence: Sequence, start: int, count: int) -> Row:
        """Make the row that computes `count` tokens from `start`, and take them as computed from now on."""
        row = make_row(sequence, start, count)
        end = start + count
        if start < sequence.peak_computed or start < sequence.prompt_len:
            self._book(sequence, start, end)
        else:
            sequence.peak_computed = end
        sequence.num_computed = end
        sequence.num_in_flight += 1
        return row

    def _book(self, sequence: Sequence, start: int, end: int) -> None:
        """Count computed tokens as new prompt, or as the tax of preemption."""
        peak = sequence.peak_computed
        self.totals.recomputed_tokens += max(0, min(end, peak) - start)
        self.totals.prompt_tokens += max(0, min(end, sequence.prompt_len) - max(start, peak))
        sequence.peak_computed = max(end, peak)

    def _grow(self, sequence: Sequence, running: list[Sequence], index: int) -> bool:
        """Give a running sequence one more block, preempting background and newer ones (from `index`) if need be."""
        if sequence.beams is not None:
            self._beam_blocks.grow(sequence)
            return True
        if sequence.reach is not None and self._roll(sequence):
            return True
        while (blocks := self._pool.allocate(1)) is None:
            if self._evict_paused(sequence, PreemptReason.GROWTH):
                continue
            newer = reversed(running[index:])
            below = () if sequence.is_background else reversed(self._background)
            if not self._give_way(chain(below, newer), sequence, PreemptReason.GROWTH):
                if self._prefixes is not None and self._prefixes.pins.give_up():
                    continue
                return False  # it keeps what it has and waits for an older one to finish
        self._tables.assign(sequence, blocks)
        return True

    def _roll(self, sequence: Sequence) -> bool:
        """Take back what a sequence's next tokens do not see; give it what its prompt fills next, if that is free."""
        num_published = 0
        if self._prefixes is not None:
            num_published = self._prefixes.num_published(sequence)
            if sequence.num_computed >= sequence.num_seen:
                self._prefixes.leave(sequence)
        self._tables.evict(sequence, num_published)
        num_more = -(-(len(sequence.tokens) - sequence.capacity) // self.block_size)
        blocks = self._pool.allocate(max(min(num_more, sequence.max_blocks - len(sequence.blocks)), 1))
        if blocks is None:
            return False
        self._tables.assign(sequence, blocks)
        return True

    def _give_way(self, newest_first: Iterable[Sequence], to: Sequence, reason: PreemptReason) -> bool:
        """Preempt one of these for the good of another; False if none can be."""
        victim = choose_victim(newest_first, self._pool, self.block_size)
        if victim is None:
            return False
        if not victim.is_background:
            self._forecast.note_preemption()
        self.decisions.append(Preempted.of(victim, to, reason, self._pool, self.block_size))
        self._preempt(victim)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back to the head of its class without its blocks."""
        (self._background if sequence.is_background else self._running).remove(sequence)
        self._take_blocks(sequence)
        self._waiting.put_back(sequence)

    def _take_blocks(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence that has left the running list; what it computed is kept below, or lost."""
        if self._tiering is not None and self._tiering.preempt(sequence):
            self.totals.num_swaps += 1
        if self._prefixes is not None:
            self._prefixes.leave(sequence)
        self._tables.release(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self.totals.num_preemptions += 1

    def _evict_paused(self, to: Sequence, reason: PreemptReason) -> bool:
        """Take the blocks of one paused sequence for the good of another; False if none has any to give."""
        if not self._paused:
            return False
        victim = choose_victim(reversed(self._paused.holders()), self._pool, self.block_size)
        if victim is not None:
            self.decisions.append(Preempted.of(victim, to, reason, self._pool, self.block_size))
            self._take_blocks(victim)
        return victim is not None

    def _bring_back(self, sequence: Sequence) -> None:
        """Put a resumed sequence where it belongs: among the running ones if there is a place, else to the queue."""
        if sequence.status is SequenceStatus.RUNNING:
            if self.num_running < self.limits.max_num_seqs:
                self._paused.remove(sequence)
                (self._background if sequence.is_background else self._running).append(sequence)
                return
            if sequence.num_in_flight:
                return  # a step reads its blocks: later
            self._take_blocks(sequence)
        self._paused.remove(sequence)
        self._waiting.put_back(sequence)

    def _admit(self, candidates: Iterable[Sequence], plan: StepPlan, now: float) -> None:
        """Move waiting sequences into the step while budget, places and blocks last."""
        for sequence in candidates:
            shared: list[int] = []
            if self._prefixes is not None:
                self._prefixes.find(sequence)
                if self._prefixes.is_being_filled(sequence):
                    continue
                if self._tiering is not None and self._tiering.is_pending(sequence):
                    continue
                assert sequence.node is not None
                shared = sequence.node.path()
            room = self._budget.chunk_room(plan.shape, plan.budget, len(shared) * self.block_size)
            if room <= 0 or not self._enter(sequence, shared, now):
                return
            self._add_chunk(sequence, plan)
            if not plan.budget:
                return

    def _enter(self, sequence: Sequence, shared: list[int], now: float) -> bool:
        """Make a waiting sequence a running one, with the shared blocks and new ones; False if there is no room."""
        most = min(sequence.max_blocks, self._pool.num_blocks - len(shared))
        num_new = min(-(-len(sequence.tokens) // self.block_size) - len(shared), most)
        num_reserved = 0 if sequence.beams is None else self._beam_blocks.num_reserved(sequence)
        if not self._make_room(sequence, shared, num_new + num_reserved):
            return False
        if self._prefixes is not None:
            self._prefixes.enter(sequence, shared)
            if self._tiering is not None:
                restored = self._tiering.restore(sequence)
                num_new -= len(restored)
                shared = shared + restored
        blocks = self._pool.allocate(num_new)
        assert blocks is not None
        self._waiting.remove(sequence)
        self._tables.assign(sequence, shared + blocks)
        sequence.status = SequenceStatus.RUNNING
        sequence.num_computed = len(shared) * self.block_size
        running = self._background if sequence.is_background else self._running
        running.append(sequence)
        if (group := sequence.beams) is not None:
            self._beam_blocks.enter(group)
            running += group.members[1:]
        self.decisions.append(Admitted(sequence.seq_id, len(shared), num_new))
        self._door.note_admission(now)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
            self._book_hit(sequence)
            sequence.charge = len(sequence.tokens) - sequence.num_cached + self._forecast.expected(sequence)
            self._shares.charge(sequence.account, sequence.charge)
        return True

    def _make_room(self, sequence: Sequence, shared: list[int], num_new: int) -> bool:
        """Say whether a sequence may enter, after background ones have given way where that helps."""
        pool, running, most_running = self._pool, self._running, self.limits.max_num_seqs - sequence.num_beams
        if len(running) > most_running or (sequence.is_background and self.num_running > most_running):
            return False
        num_to_come = 0
        if running or (sequence.is_background and self._background):  # alone, it may have all there is
            others = (*running, *self._background) if sequence.is_background else running
            num_to_come = self._forecast.num_blocks_to_come((sequence, *others), self.block_size)
        if num_new + len(shared) + num_to_come <= pool.num_free and self.num_running <= most_running:
            self._is_full = False
            return True
        num_needed = num_new + pool.count_unheld(shared) + num_to_come
        while num_needed > pool.num_free and self._evict_paused(sequence, PreemptReason.PLACE):
            num_needed = max(num_needed, num_new + pool.count_unheld(shared))
        if self._prefixes is not None and not self.num_running:  # pins give way to what would else never run
            while num_needed > pool.num_free and self._prefixes.pins.give_up():
                num_needed = max(num_needed, num_new + pool.count_unheld(shared))
        num_to_be_had = pool.num_free
        if not sequence.is_background:
            num_to_be_had += sum(pool.count_sole(other.blocks) for other in self._background)
        self._is_full = num_needed > num_to_be_had
        if self._is_full and (running or sequence.is_background):
            return False
        while self.num_running > most_running or num_needed > pool.num_free:
            if not self._give_way(reversed(self._background), sequence, PreemptReason.PLACE):
                return False
            num_needed = max(num_needed, num_new + pool.count_unheld(shared))
        return True

    def _book_hit(self, sequence: Sequence) -> None:
        """Count what the cache was asked for and what it had."""
        if self._prefixes is not None:
            sequence.num_cached = min(sequence.num_computed, sequence.prompt_len)
            self.totals.prefix_queries += sequence.prompt_len
            self.totals.prefix_hits += sequence.num_cached

    # --- results -------------------------------------------------------------------------------------------------

    def _extend(self, sequence: Sequence, sample: Sample, now: float) -> SequenceEvent:
        """Append a sampled token and apply the finish rules."""
        token_id = sample.token_id
        tokens = sequence.tokens
        tokens.append(token_id)
        is_first = sequence.first_token_s is None
        if is_first:
            sequence.first_token_s = now
            self._outlook.note_first_token(sequence, now)
        if token_id in sequence.stop_token_ids:
            return self._finish(sequence, sample, FinishReason.STOP, stop_token=token_id)
        if len(tokens) >= sequence.max_len:
            return self._finish(sequence, sample, FinishReason.LENGTH)
        if is_first:
            scored, sequence.scored = tuple(sequence.scored), []
            return SequenceEvent(sequence.seq_id, sample, scored=scored, timing=sequence.timing())
        return SequenceEvent(sequence.seq_id, sample)

    def _end(self, sequence: Sequence, finish: FinishReason, error: str | None) -> SequenceEvent:
        """Take a live sequence out of where it is and end it; a beam takes its search with it."""
        if sequence.beams is not None:
            self._dissolve(sequence.beams)
        elif sequence not in self._paused:
            self._remove(sequence)
        return self._finish(sequence, None, finish, error=error)

    def _remove(self, sequence: Sequence) -> None:
        """Take a sequence that is neither paused nor a beam out of the queue or the running list."""
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        else:
            (self._background if sequence.is_background else self._running).remove(sequence)

    def _go_on(self, group: BeamGroup, now: float) -> list[SequenceEvent]:
        """Move a search on by one token, or end it with its answers."""
        members = group.members
        if not (moves := group.advance()):
            self._dissolve(group)
            return [
                self._finish(member, None, answer.finish, stop_token=answer.stop_token, tokens=answer.tokens)
                for member, answer in zip(members, group.answers(), strict=False)
                if member.seq_id in self._live
            ]
        if members[0].first_token_s is None:
            for member in members:
                member.first_token_s = now
        for child, parent, token_id in moves:
            if child == parent:
                members[child].tokens.append(token_id)
            else:
                self._beam_blocks.fork(members[child], members[parent], token_id)
        return []

    def _fail_search(self, group: BeamGroup, error: str) -> list[SequenceEvent]:
        """End a search of which one beam has failed."""
        self._dissolve(group)
        live = [member for member in group.members if member.seq_id in self._live]
        return [self._finish(member, None, FinishReason.ERROR, error=error) for member in live]

    def _dissolve(self, group: BeamGroup) -> None:
        """Let no beam of a search compute any more; those that bear no answer end here, without an event."""
        if group.is_over:
            return
        group.is_over = True
        self._beam_blocks.leave(group)
        for member in group.members:
            if member.status is SequenceStatus.WAITING:
                self._waiting.remove(member)
            elif member.status is SequenceStatus.RUNNING:
                (self._background if member.is_background else self._running).remove(member)
            member.status = SequenceStatus.PARKED
            if self._prefixes is not None:
                self._prefixes.leave(member)
            if not group.bears_answer(member):
                self._finish(member, None, FinishReason.ABORT)
            elif not member.num_in_flight:
                self._tables.release(member)

    def _finish(
        self,
        sequence: Sequence,
        sample: Sample | None,
        finish: FinishReason,
        *,
        stop_token: int | None = None,
        error: str | None = None,
        tokens: tuple[int, ...] = (),
    ) -> SequenceEvent:
        """Make the one event that ends a sequence; the caller takes it out of queue or running list."""
        del self._live[sequence.seq_id]
        self._paused.remove(sequence)
        if self._prefixes is not None:
            if sequence.pin_s and error is None and finish is not FinishReason.ABORT:
                self._pin(self._prefixes, sequence)
            self._prefixes.leave(sequence)
        if self._tiering is not None:
            self._tiering.leave(sequence)
        sequence.status = SequenceStatus.FINISHED
        if sequence.first_scheduled_s is not None:
            computed = max(sequence.peak_computed - sequence.num_cached, 0)
            self._shares.charge(sequence.account, computed - sequence.charge)
            if sequence.beams is None:
                self._forecast.note_end(sequence)
        self._shares.leave(sequence.account)
        if not sequence.num_in_flight:
            self._tables.release(sequence)
        scored = tuple(sequence.scored)
        return SequenceEvent(sequence.seq_id, sample, finish, stop_token, error, scored, sequence.timing(), tokens)

    def _publish(self, sequence: Sequence, row: Row) -> None:
        """Put what a committed row has completed into the prefix cache."""
        num_verified = min(row.start + len(row.tokens), sequence.num_shareable)
        if self._prefixes is not None and num_verified >= sequence.next_publish:
            self._prefixes.publish(sequence, num_verified)
            if sequence.is_paused:
                self._prefixes.fall_silent(sequence)

    def _pin(self, prefixes: PrefixSharing, sequence: Sequence) -> None:
        """Keep the prompt of a sequence that asked for it, below the pool too."""
        node = prefixes.pin(sequence)
        if node is not None and self._tiering is not None:
            self._tiering.keep(node)

    def _withdraw(self, sequence: Sequence) -> None:
        if self._prefixes is not None:
            self._prefixes.withdraw(sequence)

    def check(self) -> None:
        """Raise AssertionError if blocks, queues and live sequences do not agree."""
        in_flight = {s.seq_id: s for launched in self._in_flight for s in launched.members}
        fenced = [s for s in in_flight.values() if s.status is not SequenceStatus.RUNNING]
        running = [*self._running, *self._background]
        holders = [*running, *self._paused.holders()]
        groups = {id(s.beams): s.beams for s in running if s.beams is not None}
        reserved = [block for group in groups.values() for block in group.reserve]
        if self._prefixes is not None:
            reserved += self._prefixes.pins.blocks()
        self._tables.check([*holders, *fenced], reserved)
        self._beam_blocks.check(groups.values())
        self._paused.check()
        self._waiting.check()
        self._shares.check(sequence.account for sequence in self._live.values())
        if self._prefixes is not None:
            self._prefixes.check(holders)
        if self._tiering is not None:
            self._tiering.check()
        parked = [s for s in self._live.values() if s.status is SequenceStatus.PARKED]
        assert all(s.beams is not None for s in parked), "a sequence without beams is parked"
        ids = [sequence.seq_id for sequence in (*running, *self._waiting, *self._paused, *parked)]
        assert len(ids) == len(set(ids)), "a sequence is in two places"
        assert set(ids) == set(self._live), "a live sequence is in no queue"
        assert len(running) <= self.limits.max_num_seqs, "more sequences run than may"
        assert not any(s.is_background for s in self._running), "a background sequence runs among the others"
        assert all(s.is_background for s in self._background), "a background list holds another sequence"
        for sequence in holders:
            assert sequence.status is SequenceStatus.RUNNING, "a running sequence has another status"
            assert sequence.num_computed <= len(sequence.tokens) <= sequence.max_len, "a sequence has outrun itself"
            assert sequence.num_computed <= sequence.capacity, "a computed token has no slot"


def _lateness(sequence: Sequence, now: float) -> str:
    assert sequence.deadline_s is not None
    where = "waiting" if sequence.first_scheduled_s is None else "reading the prompt"
    late_ms = (now - sequence.deadline_s) * 1e3
    return f"the deadline passed {late_ms:.0f} ms ago, while the request was {where}; nothing was generated"
