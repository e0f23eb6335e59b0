"""The scheduler: which tokens of which sequences the next step computes, and what its result means for them.

Owns: every live sequence, the waiting queue, the running list and, through the pool, who holds which KV block.
Called by the engine thread alone; `check_admission` and the counts may be read from other threads.

Each step has a token budget. Running sequences come first, in order of admission, so decoding keeps its rhythm; what is
left goes to waiting prompts, cut into chunks. At admission a sequence shares the blocks that the prefix cache has of it
and gets new ones for the rest of its tokens; from then on one block at a time. When the pool runs dry, a newer running
sequence gives its blocks back and waits at the head of the queue: the one that has least to compute again for each
block it frees, after what stays in the prefix cache.

Waiting sequences are taken in order of arrival, but one that finds all its prompt in the cache goes before those that
came up to `_PREFIX_BOOST_S` earlier, one that finds half of it before those of half that time: cached prefixes are used
before they are evicted, and nobody waits behind an endless stream of luckier ones.

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

from collections import Counter, OrderedDict, deque
from itertools import islice

from headrace.core.delta import FinishReason
from headrace.core.errors import Overloaded, PromptTooLong
from headrace.core.request import SeqId
from headrace.core.step import Row, Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched.drain import DrainRate
from headrace.sched.limits import SchedulerLimits, SchedulerTotals
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.rows import make_row
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus, SequenceTiming

_MAX_IN_FLIGHT = 2
_PREFIX_BOOST_S = 1.0
_WINDOW = 32  # waiting sequences that are looked at for a step


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
        self._waiting: OrderedDict[SeqId, Sequence] = OrderedDict()
        self._running: list[Sequence] = []
        self._in_flight: deque[tuple[Step, list[Sequence]]] = deque()
        self.num_steps = 0
        self._drain = DrainRate()
        self.totals = SchedulerTotals()
        self._prefixes = PrefixSharing(pool, block_size, self._retire) if limits.prefix_cache else None
        self._retired: deque[tuple[int, list[int]]] = deque()  # blocks to free after the step of that id

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

    def check_admission(self, prompt_len: int, now: float, *, num_queued: int = 0) -> None:
        """Raise PromptTooLong if the prompt can never be served, Overloaded if the queue is full. Any thread.

        num_queued  sequences on their way to `submit`, which count as waiting
        """
        if prompt_len >= self.max_context:
            raise PromptTooLong(
                f"prompt has {prompt_len:,} tokens; this server accepts {self.max_context - 1:,} "
                f"(context of {self.max_context:,} tokens, one of them for output); shorten the prompt",
                param="prompt",
            )
        waiting = len(self._waiting) + num_queued
        if waiting >= self.limits.max_waiting:
            retry_after_s = self._drain.wait_s(waiting, now)
            raise Overloaded(
                f"{waiting:,} sequences are waiting, the limit is {self.limits.max_waiting:,}; "
                f"the queue drains in about {retry_after_s:.0f} s, try again then",
                retry_after_s=retry_after_s,
            )

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
        self._waiting[sequence.seq_id] = sequence

    def abort(self, seq_id: SeqId, error: str | None = None) -> SequenceEvent | None:
        """End a live sequence now, as ERROR if `error` is given; None if it is not live. Idempotent.

        Blocks that a step in flight still reads are freed when that step is committed.
        """
        sequence = self._live.get(seq_id)
        if sequence is None:
            return None
        if sequence.status is SequenceStatus.WAITING:
            del self._waiting[seq_id]
        else:
            self._running.remove(sequence)
        finish = FinishReason.ABORT if error is None else FinishReason.ERROR
        return self._finish(sequence, None, finish, error=error)

    def abort_all(self, error: str | None = None) -> list[SequenceEvent]:
        """End every live sequence; nothing may be in flight any more, whatever was launched."""
        members = {s.seq_id: s for _, members in self._in_flight for s in members}
        self._in_flight.clear()
        self._free_retired(self.num_steps)
        for sequence in members.values():
            sequence.num_in_flight = 0
            if sequence.status is SequenceStatus.FINISHED:
                self._release(sequence)
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
                    self._release(sequence)
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
        if self._retired:
            self._free_retired(step.step_id)
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
            victim = self._victim(index)
            if victim is None:
                return False  # it keeps what it has and waits for an older one to finish
            self._preempt(victim)
        self._assign(sequence, blocks)
        return True

    def _victim(self, index: int) -> Sequence | None:
        """Choose who gives its blocks back: least to compute again per block freed; among equals, the newest.

        Not one that a step in flight reads. One whose blocks are all shared frees nothing, but gives way in the end:
        two that share with each other alone would else hold up everybody.
        """
        best, least = None, float("inf")
        for sequence in reversed(self._running[index:]):
            if sequence.num_in_flight:
                continue
            if not (num_freed := self._pool.count_sole(sequence.blocks)):
                best = best or sequence
                continue
            node = sequence.node
            num_kept = 0 if node is None or node.is_dead else node.depth * self.block_size
            cost = max(sequence.num_computed - num_kept, 0) / num_freed
            if cost < least:
                best, least = sequence, cost
        return best

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back to the head of the queue without its blocks."""
        self._running.remove(sequence)
        if self._prefixes is not None:
            self._prefixes.leave(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self._waiting[sequence.seq_id] = sequence
        self._waiting.move_to_end(sequence.seq_id, last=False)
        self.totals.num_preemptions += 1

    def _admit(self, rows: list[Row], members: list[Sequence], budget: int, now: float) -> None:
        """Move waiting sequences into the step while budget, places and blocks last."""
        running, pool, prefixes = self._running, self._pool, self._prefixes
        if len(running) >= self.limits.max_num_seqs:
            return
        for sequence in self._candidates():
            if not budget or len(running) >= self.limits.max_num_seqs:
                return
            shared: list[int] = []
            if prefixes is not None:
                prefixes.find(sequence)
                if prefixes.is_being_filled(sequence):
                    continue
                assert sequence.node is not None
                shared = sequence.node.path()
            length = len(sequence.tokens)
            num_new = -(-length // self.block_size) - len(shared)
            # One spare block for each running sequence: they will want it soon, and preempting costs more than waiting.
            if num_new + len(running) + pool.count_unheld(shared) > pool.num_free:
                return
            if prefixes is not None:
                prefixes.enter(sequence, shared)
            blocks = pool.allocate(num_new)
            assert blocks is not None
            del self._waiting[sequence.seq_id]
            self._assign(sequence, shared + blocks)
            sequence.status = SequenceStatus.RUNNING
            sequence.num_computed = len(shared) * self.block_size
            running.append(sequence)
            self._drain.note(now)
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s = now
                self._book_hit(sequence)
            start = sequence.num_computed
            count = min(length - start, budget)
            budget -= count
            rows.append(self._plan(sequence, start, count))
            members.append(sequence)

    def _candidates(self) -> list[Sequence]:
        """Return the first waiting sequences in the order of admission: preempted ones, then by arrival and prefix."""
        window = list(islice(self._waiting.values(), _WINDOW))
        prefixes = self._prefixes
        if prefixes is None or len(window) < 2:
            return window
        ranks = {
            sequence.seq_id: float("-inf")
            if sequence.num_preemptions
            else sequence.queued_s - _PREFIX_BOOST_S * prefixes.find(sequence) * self.block_size / len(sequence.tokens)
            for sequence in window
        }
        window.sort(key=lambda sequence: ranks[sequence.seq_id])
        return window

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
            return SequenceEvent(sequence.seq_id, sample, scored=scored, timing=_timing(sequence))
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
            self._release(sequence)
        return SequenceEvent(
            sequence.seq_id, sample, finish, stop_token, error, tuple(sequence.scored), _timing(sequence)
        )

    def _publish(self, sequence: Sequence, row: Row) -> None:
        """Put what a committed row has completed into the prefix cache."""
        num_verified = row.start + len(row.tokens)
        if self._prefixes is not None and num_verified >= sequence.next_publish:
            self._prefixes.publish(sequence, num_verified)

    def _withdraw(self, sequence: Sequence) -> None:
        if self._prefixes is not None:
            self._prefixes.withdraw(sequence)

    def _retire(self, sequence: Sequence, blocks: list[int]) -> None:
        """Free blocks that a sequence no longer needs, once no step in flight reads them."""
        if sequence.num_in_flight:
            self._retired.append((self.num_steps - 1, blocks))
        else:
            self._pool.free(blocks)

    def _free_retired(self, step_id: int) -> None:
        while self._retired and self._retired[0][0] <= step_id:
            self._pool.free(self._retired.popleft()[1])

    def _assign(self, sequence: Sequence, blocks: list[int]) -> None:
        """Put allocated blocks at the end of a sequence's table."""
        sequence.blocks += blocks
        sequence.table = tuple(sequence.blocks)
        sequence.capacity = len(sequence.blocks) * self.block_size

    def _release(self, sequence: Sequence) -> None:
        """Give all blocks of a sequence back to the pool."""
        self._pool.free(sequence.blocks)
        sequence.blocks, sequence.table, sequence.capacity = [], (), 0

    def check(self) -> None:
        """Raise AssertionError if blocks, queues and live sequences do not agree."""
        self._pool.check()
        fenced = {s.seq_id: s for _, members in self._in_flight for s in members if s.status is SequenceStatus.FINISHED}
        holders = [*self._running, *fenced.values()]
        holds = Counter(block for sequence in holders for block in sequence.blocks)
        holds.update(block for _, blocks in self._retired for block in blocks)
        assert len(holds) + self._pool.num_free == self._pool.num_blocks, "a block is held by nobody"
        assert all(self._pool.num_holders(block) == n for block, n in holds.items()), "a block has a holder too many"
        if self._prefixes is not None:
            self._prefixes.check(self._running)
        ids = [s.seq_id for s in self._running] + list(self._waiting)
        assert len(ids) == len(set(ids)), "a sequence is in two places"
        assert set(ids) == set(self._live), "a live sequence is in no queue"
        assert all(s.status is SequenceStatus.RUNNING for s in self._running), "a running sequence has another status"
        for sequence in self._waiting.values():
            assert sequence.status is SequenceStatus.WAITING, "a waiting sequence has another status"
            assert not sequence.blocks, "a waiting sequence holds blocks"
        for sequence in self._running:
            assert sequence.num_computed <= len(sequence.tokens) <= sequence.max_len, "a sequence has outrun itself"
            assert sequence.num_computed <= sequence.capacity, "a computed token has no slot"


def _timing(sequence: Sequence) -> SequenceTiming:
    return SequenceTiming(
        sequence.first_scheduled_s, sequence.first_token_s, sequence.num_preemptions, sequence.num_cached
    )
