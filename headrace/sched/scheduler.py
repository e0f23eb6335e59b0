"""The scheduler: which tokens of which sequences the next step computes, and what its result means for them.

Owns: every live sequence, the running list, the steps in flight and the collaborators named below.
Called by the engine thread alone; `check_admission` and the counts may be read from other threads.

Each step has a token budget. Running sequences come first, in order of admission, so decoding keeps its rhythm; what is
left goes to waiting prompts, cut into chunks. At admission a sequence shares the blocks that the prefix cache has of it
and gets new ones for the rest of its tokens; from then on one block at a time. When the pool runs dry, a newer running
sequence gives its blocks back and waits at the head of the queue.

This file moves sequences between their states; each decision on the way has a file of its own:
`door` who may wait, `queue` who is next, `victims` who gives way, `prefixes` what is shared, `tables` who holds what.

    submit ─► WAITING ──admit──► RUNNING ──stop, length, abort, failure──► FINISHED ─► blocks free once no step
                 ▲                  │                                                  in flight reads them
                 └─────preempt──────┘

Invariants, proved by `check()` and the property tests:
- each submitted sequence ends in exactly one event with `finish`;
- whatever is admitted can run to its end alone, and the oldest running sequence is never preempted: no deadlock;
- steps are committed in the order they were made; at most two are in flight.
Source: the single token counter follows vLLM's V1 scheduler; preemption by recompute is Kwon et al. 2023, §4.5.
"""

from __future__ import annotations

from collections import deque

from headrace.core.delta import FinishReason
from headrace.core.request import SeqId
from headrace.core.step import Row, Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched.door import Door
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.queue import WaitingQueue
from headrace.sched.rows import make_row
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus
from headrace.sched.tables import BlockTables
from headrace.sched.victims import choose_victim

_MAX_IN_FLIGHT = 2


class Scheduler:
    """Plans steps and takes in their results. See the module's docstring."""

    def __init__(self, pool: BlockPool, block_size: int, limits: SchedulerLimits) -> None:
        limits.check()
        self._pool = pool
        self.block_size = block_size
        self.limits = limits
        # The last token of a sequence is never computed, but one slot is a small price for a simple bound.
        self.max_context = min(limits.max_context, pool.num_blocks * block_size)
        self._live: dict[SeqId, Sequence] = {}
        self._running: list[Sequence] = []
        self._in_flight: deque[tuple[Step, list[Sequence]]] = deque()
        self.num_steps = 0
        self.totals = SchedulerTotals()
        self._tables = BlockTables(pool, block_size)
        order = limits.eviction_order(pool.num_blocks, block_size)
        self._prefixes = PrefixSharing(pool, block_size, self._tables.retire, order) if limits.prefix_cache else None
        self._waiting = WaitingQueue(self._prefixes, block_size)
        self._door = Door(limits, self.max_context)

    # --- what others may ask -------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Say whether any sequence has not finished."""
        return bool(self._live)

    @property
    def num_waiting(self) -> int:
        """Count the sequences in the queue, preempted ones included."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Count the sequences that hold blocks and have not finished."""
        return len(self._running)

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

    def live(self) -> list[Sequence]:
        """Return the sequences that have not finished; any thread may look at them, none may write."""
        return list(self._live.values())  # one call into C: nothing comes between

    def check_admission(self, prompt_len: int, now: float, *, num_queued: int = 0) -> None:
        """Raise PromptTooLong if the prompt can never be served, Overloaded if the queue is full. Any thread.

        num_queued  sequences on their way to `submit`, which count as waiting
        """
        self._door.check(prompt_len, len(self._waiting) + num_queued, now)

    # --- commands ------------------------------------------------------------------------------------------------

    def submit(self, sequence: Sequence, now: float = 0.0) -> None:
        """Take a sequence that `check_admission` has let in. Raises ValueError for one that can never be served."""
        if not 1 <= sequence.prompt_len < self.max_context:
            raise ValueError(f"a prompt of {sequence.prompt_len} tokens in a context of {self.max_context}")
        if sequence.seq_id in self._live or sequence.status is not SequenceStatus.WAITING:
            raise ValueError(f"sequence {sequence.seq_id} has been submitted before")
        sequence.max_len = min(sequence.max_len, self.max_context)
        sequence.queued_s = now
        self._live[sequence.seq_id] = sequence
        self._waiting.push(sequence)

    def abort(self, seq_id: SeqId, error: str | None = None) -> SequenceEvent | None:
        """End a live sequence now, as ERROR if `error` is given; None if it is not live. Idempotent.

        Blocks that a step in flight still reads are freed when that step is committed.
        """
        sequence = self._live.get(seq_id)
        if sequence is None:
            return None
        if sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
        finish = FinishReason.ABORT if error is None else FinishReason.ERROR
        return self._finish(sequence, None, finish, error=error)

    def abort_all(self, error: str | None = None) -> list[SequenceEvent]:
        """End every live sequence; nothing may be in flight any more, whatever was launched."""
        members = {s.seq_id: s for _, members in self._in_flight for s in members}
        self._in_flight.clear()
        self._tables.free_retired(self.num_steps)
        for sequence in members.values():
            sequence.num_in_flight = 0
            if sequence.status is SequenceStatus.FINISHED:
                self._tables.release(sequence)
        events = [self.abort(seq_id, error) for seq_id in list(self._live)]
        return [event for event in events if event is not None]

    def schedule(self, now: float) -> Step | None:
        """Plan the next step; None if there is nothing to compute now."""
        if len(self._in_flight) >= _MAX_IN_FLIGHT:
            return None
        rows: list[Row] = []
        members: list[Sequence] = []
        budget = self.limits.max_step_tokens
        num_preemptions = self.totals.num_preemptions
        index = 0
        running = self._running  # shrinks from the end while sequences are preempted
        while budget and index < len(running):
            sequence = running[index]
            index += 1
            start = sequence.num_computed
            count = len(sequence.tokens) - start
            if count <= 0:
                continue  # its next token is in flight
            if start + count > sequence.capacity and not self._grow(sequence, index):
                continue
            count = min(count, budget)
            budget -= count
            rows.append(self._plan(sequence, start, count))
            members.append(sequence)
        if self._waiting and budget and self.totals.num_preemptions == num_preemptions:
            self._admit(rows, members, budget, now)
        if not rows:
            return None
        step = Step(self.num_steps, tuple(rows))
        self.num_steps += 1
        self._tables.note_launch(step.step_id)
        self._in_flight.append((step, members))
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> list[SequenceEvent]:
        """Take in the result of the oldest step in flight; return what happened, in row order."""
        if not self._in_flight or self._in_flight[0][0] is not step:
            raise ValueError(f"step {step.step_id} is not the oldest in flight")
        if result.step_id != step.step_id or len(result.samples) != len(step.rows):
            raise ValueError(f"result of step {result.step_id}, {len(result.samples)} rows, for step {step.step_id}")
        _, members = self._in_flight.popleft()
        events: list[SequenceEvent] = []
        failures, rows = result.failures, step.rows
        has_scores = bool(result.scored)
        num_finished = num_tokens = 0
        for index, sequence in enumerate(members):
            sequence.num_in_flight -= 1
            if sequence.status is SequenceStatus.FINISHED:
                if not sequence.num_in_flight:
                    self._tables.release(sequence)
                continue
            if has_scores and (scores := result.scored[index]):
                sequence.scored.extend(scores)
                sequence.num_scored += len(scores)
            if failures and sequence.seq_id in failures:
                self._withdraw(sequence)
                events.append(self._finish(sequence, None, FinishReason.ERROR, error=failures[sequence.seq_id]))
                num_finished += 1
                continue
            if sequence.num_computed >= sequence.next_publish:
                self._publish(sequence, rows[index])
            if (sample := result.samples[index]) is not None:
                num_tokens += 1
                event = self._extend(sequence, sample, now)
            elif not (sequence.max_tokens or sequence.num_in_flight) and sequence.num_computed >= sequence.prompt_len:
                event = self._finish(sequence, None, FinishReason.LENGTH)
            else:
                continue
            events.append(event)
            num_finished += event.finish is not None
        if num_finished:
            self._running = [s for s in self._running if s.status is SequenceStatus.RUNNING]
        self.totals.generated_tokens += num_tokens
        self._tables.free_retired(step.step_id)
        return events

    def take_step_id(self) -> int:
        """Use up a step id, for a step that is made elsewhere."""
        self.num_steps += 1
        return self.num_steps - 1

    # --- planning ------------------------------------------------------------------------------------------------

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

    def _grow(self, sequence: Sequence, index: int) -> bool:
        """Give a running sequence one more block, preempting newer ones (from `index` on) if need be."""
        while (blocks := self._pool.allocate(1)) is None:
            victim = choose_victim(reversed(self._running[index:]), self._pool, self.block_size)
            if victim is None:
                return False  # it keeps what it has and waits for an older one to finish
            self._preempt(victim)
        self._tables.assign(sequence, blocks)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back to the head of the queue without its blocks."""
        self._running.remove(sequence)
        if self._prefixes is not None:
            self._prefixes.leave(sequence)
        self._tables.release(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self._waiting.put_back(sequence)
        self.totals.num_preemptions += 1

    def _admit(self, rows: list[Row], members: list[Sequence], budget: int, now: float) -> None:
        """Move waiting sequences into the step while budget, places and blocks last."""
        if len(self._running) >= self.limits.max_num_seqs:
            return
        for sequence in self._waiting.candidates():
            if not budget or len(self._running) >= self.limits.max_num_seqs:
                return
            shared: list[int] = []
            if self._prefixes is not None:
                self._prefixes.find(sequence)
                if self._prefixes.is_being_filled(sequence):
                    continue
                assert sequence.node is not None
                shared = sequence.node.path()
            if not self._enter(sequence, shared, now):
                return
            start = sequence.num_computed
            count = min(len(sequence.tokens) - start, budget)
            budget -= count
            rows.append(self._plan(sequence, start, count))
            members.append(sequence)

    def _enter(self, sequence: Sequence, shared: list[int], now: float) -> bool:
        """Make a waiting sequence a running one, with the shared blocks and new ones; False if there is no room."""
        pool = self._pool
        num_new = -(-len(sequence.tokens) // self.block_size) - len(shared)
        # One spare block for each running sequence: they will want it soon, and preempting costs more than waiting.
        if num_new + len(self._running) + pool.count_unheld(shared) > pool.num_free:
            return False
        if self._prefixes is not None:
            self._prefixes.enter(sequence, shared)
        blocks = pool.allocate(num_new)
        assert blocks is not None
        self._waiting.remove(sequence)
        self._tables.assign(sequence, shared + blocks)
        sequence.status = SequenceStatus.RUNNING
        sequence.num_computed = len(shared) * self.block_size
        self._running.append(sequence)
        self._door.note_admission(now)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = now
            self._book_hit(sequence)
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
        if token_id in sequence.stop_token_ids:
            return self._finish(sequence, sample, FinishReason.STOP, stop_token=token_id)
        if len(tokens) >= sequence.max_len:
            return self._finish(sequence, sample, FinishReason.LENGTH)
        if is_first:
            scored, sequence.scored = tuple(sequence.scored), []
            return SequenceEvent(sequence.seq_id, sample, scored=scored, timing=sequence.timing())
        return SequenceEvent(sequence.seq_id, sample)

    def _finish(
        self,
        sequence: Sequence,
        sample: Sample | None,
        finish: FinishReason,
        *,
        stop_token: int | None = None,
        error: str | None = None,
    ) -> SequenceEvent:
        """Make the one event that ends a sequence; the caller takes it out of queue or running list."""
        del self._live[sequence.seq_id]
        if self._prefixes is not None:
            self._prefixes.leave(sequence)
        sequence.status = SequenceStatus.FINISHED
        if not sequence.num_in_flight:
            self._tables.release(sequence)
        scored = tuple(sequence.scored)
        return SequenceEvent(sequence.seq_id, sample, finish, stop_token, error, scored, sequence.timing())

    def _publish(self, sequence: Sequence, row: Row) -> None:
        """Put what a committed row has completed into the prefix cache."""
        num_verified = row.start + len(row.tokens)
        if self._prefixes is not None and num_verified >= sequence.next_publish:
            self._prefixes.publish(sequence, num_verified)

    def _withdraw(self, sequence: Sequence) -> None:
        if self._prefixes is not None:
            self._prefixes.withdraw(sequence)

    def check(self) -> None:
        """Raise AssertionError if blocks, queues and live sequences do not agree."""
        fenced = {s.seq_id: s for _, members in self._in_flight for s in members if s.status is SequenceStatus.FINISHED}
        self._tables.check([*self._running, *fenced.values()])
        self._waiting.check()
        if self._prefixes is not None:
            self._prefixes.check(self._running)
        ids = [sequence.seq_id for sequence in (*self._running, *self._waiting)]
        assert len(ids) == len(set(ids)), "a sequence is in two places"
        assert set(ids) == set(self._live), "a live sequence is in no queue"
        assert all(s.status is SequenceStatus.RUNNING for s in self._running), "a running sequence has another status"
        for sequence in self._running:
            assert sequence.num_computed <= len(sequence.tokens) <= sequence.max_len, "a sequence has outrun itself"
            assert sequence.num_computed <= sequence.capacity, "a computed token has no slot"
