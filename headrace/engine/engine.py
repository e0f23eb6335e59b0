"""The engine loop: one thread that plans a step, has it carried out, and sends on what came of it.

Owns: the scheduler and the executor while it runs. Other threads write to the inbox only.
Invariant: every submitted sequence ends in exactly one event with `finish`, also when the executor fails or the engine
is stopped; afterwards `dead` is done, with an exception if the engine failed. An idle loop sleeps on a condition.

    any thread:     submit, abort ──► inbox ─┐
    engine thread:  ┌─ take inbox ◄──────────┘
                    │  schedule ─► launch ─► deliver the events of the step before, while the device works
                    └─ commit ◄── result

Where the scheduler plans ahead, the next step is launched behind the one that runs, so that the device goes from one
to the other while the first is committed; see `sched.overlap`. Events leave as one report per step through `deliver`,
which must not block.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import NamedTuple

from headrace.core.delta import FinishReason
from headrace.core.errors import EngineDead
from headrace.core.health import LiveSequence, SequencePhase
from headrace.core.protocols import Clock, Executor, Pending
from headrace.core.request import SeqId
from headrace.core.stats import EngineSnapshot, StepStats
from headrace.core.step import Row, Step, StepResult
from headrace.econ import Owed, StepCosts
from headrace.engine.inbox import Inbox
from headrace.kv.tiers import TierHierarchy
from headrace.sched import Scheduler, Sequence, SequenceEvent, SequenceStatus, Urgency, dry_steps
from headrace.sched.decisions import Decision, Preempted
from headrace.sched.situation import Situation

_SAVE_S = 5.0  # that the places below the pool get to keep what it has, when the engine ends


class StepReport(NamedTuple):
    """What happened up to `now`. `step` is None when no step was made (aborts, the end)."""

    now: float
    events: list[SequenceEvent]
    step: StepStats | None = None
    rows: tuple[Row, ...] = ()  # of the step
    preempted: tuple[Preempted, ...] = ()
    num_cached: int = 0  # blocks at rest in the prefix cache: from now on
    num_resting: int = 0  # while the step was made
    owed: tuple[Owed, ...] = ()  # by those that have begun to use such blocks
    is_last: bool = False  # the engine has ended, and its events are the ends of what was still live


class _Flight(NamedTuple):
    """A step on its way: what it was planned with, and when."""

    step: Step
    pending: Pending[StepResult]
    decisions: list[Decision]
    owed: tuple[Owed, ...]
    began_s: float


class Engine:
    """Runs the loop. `ready` is done after warm-up, with its seconds; `dead` when the engine has ended."""

    def __init__(
        self, scheduler: Scheduler, executor: Executor, clock: Clock, tiers: TierHierarchy | None = None
    ) -> None:
        """Make an engine that has not been started. `tiers` are the scheduler's; their life is the engine's."""
        self.ready: Future[float] = Future()
        self.dead: Future[None] = Future()
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._inbox = Inbox()
        self._tiers = tiers
        self._thread: threading.Thread | None = None
        self._held: StepReport | None = None  # made, not yet delivered
        self._in_flight: deque[_Flight] = deque()  # oldest first, at most two
        self._last_step_s: float | None = None
        self._num_resting = 0  # blocks at rest in the prefix cache while the oldest step in flight runs
        self._loop_until_s = 0.0  # up to which the loop's time has been counted
        self._step_began_s: float | None = None
        self._phase = "idle"  # what the thread is doing; for whoever asks why nothing comes

    def start(self, deliver: Callable[[StepReport], None]) -> None:
        """Start the thread; `deliver` is called on it. Raises EngineDead after `stop`."""
        if self.dead.done():
            raise EngineDead("the engine was stopped before it started")
        self._deliver = deliver
        self._thread = threading.Thread(target=self._run, name="headrace-engine", daemon=True)
        self._thread.start()

    def submit(self, sequences: list[Sequence]) -> None:
        """Hand in the sequences of one request, all or none. Raises EngineDead or what the scheduler's checks raise."""
        now = self._clock.now()
        self._scheduler.check_reach(sequences[0])
        if sequences[0].beams is not None:
            self._scheduler.check_search(sequences[0])
        if sequences[0].pin_s:
            self._scheduler.check_pin(sequences[0].prompt_len)
        self._inbox.submit(sequences, lambda queued: self._scheduler.check_admission(sequences, now, num_queued=queued))

    def check_room(self, urgency: Urgency) -> None:
        """Raise what `submit` would raise whatever the prompt: too much waits already. Any thread."""
        self._scheduler.check_room(urgency, self._clock.now(), num_queued=len(self._inbox))

    def abort(self, seq_ids: Iterable[SeqId]) -> None:
        """Ask for sequences to end; those that have ended already are left alone."""
        self._inbox.abort(seq_ids)

    def pause(self, seq_ids: Iterable[SeqId]) -> None:
        """Ask for sequences to be left out of steps, until `resume`."""
        self._inbox.set_paused(seq_ids, is_paused=True)

    def resume(self, seq_ids: Iterable[SeqId]) -> None:
        """Ask for paused sequences to go on."""
        self._inbox.set_paused(seq_ids, is_paused=False)

    def situations(self, seq_ids: Iterable[SeqId]) -> Future[dict[SeqId, Situation]]:
        """Ask how sequences stand; answered between two steps, with those that the scheduler has. Any thread."""
        wanted, found = list(seq_ids), Future[dict[SeqId, Situation]]()

        def answer() -> None:
            if found.set_running_or_notify_cancel():
                now = self._clock.now()
                known = [(seq_id, self._scheduler.situation(seq_id, now)) for seq_id in wanted]
                found.set_result({seq_id: situation for seq_id, situation in known if situation is not None})

        self._inbox.ask(answer)
        return found

    def stop(self) -> None:
        """Ask the loop to end after the step in flight; live sequences end as ABORT. Idempotent; see `dead`."""
        self._inbox.stop()
        if self._thread is None and not self.dead.done():
            self._settle(None)

    def snapshot(self) -> EngineSnapshot:
        """Return the counts of this moment; any thread."""
        scheduler, totals = self._scheduler, self._scheduler.totals
        return EngineSnapshot(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(self._inbox),
            num_blocks=scheduler.num_blocks,
            num_free_blocks=scheduler.num_free_blocks,
            num_steps=scheduler.num_steps,
            num_preemptions=totals.num_preemptions,
            num_swaps=totals.num_swaps,
            num_pinned_blocks=scheduler.num_pinned_blocks,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            recomputed_tokens=totals.recomputed_tokens,
            last_step_s=self._last_step_s,
            is_dead=self.dead.done(),
            num_cached_blocks=scheduler.num_cached_blocks,
            prefix_queries=totals.prefix_queries,
            prefix_hits=totals.prefix_hits,
            reserved_ratio=scheduler.reserved_ratio,
            num_paused=scheduler.num_paused,
            num_pauses=totals.num_pauses,
            step_began_s=self._step_began_s,
            phase=self._phase,
            tiers=() if self._tiers is None else self._tiers.stats(),
        )

    def step_costs(self) -> StepCosts:
        """Return what things cost in a step, as far as that has been learned; any thread."""
        return self._scheduler.step_costs()

    def failure(self) -> str | None:
        """Say why the engine has ended, None while it lives or after an orderly stop; any thread."""
        error = self.dead.exception() if self.dead.done() else None
        return error.message if isinstance(error, EngineDead) else None

    def live(self) -> list[LiveSequence]:
        """Return how far each live sequence is, those in the inbox included; any thread."""
        on_their_way = [LiveSequence(s.seq_id, SequencePhase.INBOX, (0, 0)) for s in self._inbox.waiting()]
        live = [sequence for sequence in self._scheduler.live() if sequence.tokens]
        # Background work may stand still for as long as there is other work: that is no sign of illness.
        watched = [sequence for sequence in live if not sequence.is_background] or live
        return on_their_way + [_progress(sequence) for sequence in watched]

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            began = self._clock.now()
            self._phase = "warm"
            for step in dry_steps(self._scheduler):
                self._executor.launch(step).result()
            if self._tiers is not None:
                self._tiers.start(on_result=self._inbox.wake)
            self._phase = "idle"
            self.ready.set_result(self._clock.now() - began)
            while self._receive():
                self._step()
            while self._in_flight:
                self._commit(self._in_flight.popleft())
        except BaseException as failure:
            error = failure
        try:
            self._end(None if error is None else f"the engine failed: {type(error).__name__}: {error}")
        finally:
            self._settle(error)

    def _receive(self) -> bool:
        """Take in the inbox, after waiting for something to do; False if the loop has to end."""
        scheduler = self._scheduler
        orders = self._inbox.take(
            lambda: scheduler.can_work or bool(self._in_flight),
            lambda sequence: scheduler.submit(sequence, self._clock.now()),
        )
        if orders is None:
            return False
        for question in orders.questions:
            question()
        for seq_id, is_paused in orders.pauses.items():
            (scheduler.pause if is_paused else scheduler.resume)(seq_id)
        if orders.aborts:
            now = self._clock.now()
            scheduler.note_time(now)
            events = [event for seq_id in orders.aborts for event in scheduler.abort(seq_id)]
            self._flush()
            self._deliver(StepReport(now, events, num_cached=scheduler.num_cached_blocks))
        return True

    def _step(self) -> None:
        """Bring the next step on its way, two where they may overlap, and take in the oldest, if there is any."""
        in_flight = self._in_flight
        while (not in_flight or self._scheduler.can_overlap) and self._launch():
            pass
        if not in_flight:
            self._step_began_s, self._phase = None, "idle"
            if self._scheduler.can_work:
                self._wait_below()
            return
        self._flush()
        self._commit(in_flight.popleft())

    def _launch(self) -> bool:
        """Plan a step and give it to the device; False if there is nothing to compute now."""
        began = self._clock.now()
        if not self._in_flight:
            self._step_began_s = began
        self._phase = "schedule"
        self._scheduler.note_time(began)
        if expired := self._scheduler.expire(began):
            self._flush()
            self._deliver(StepReport(began, expired, num_cached=self._scheduler.num_cached_blocks))
        step = self._scheduler.schedule(began)
        self._phase = "execute"
        if step is None:
            return False
        if not self._in_flight:
            self._num_resting = self._scheduler.num_cached_blocks
        decisions, owed = self._scheduler.decisions, self._scheduler.owed
        self._in_flight.append(_Flight(step, self._executor.launch(step), decisions, owed, began))
        return True

    def _commit(self, flight: _Flight) -> None:
        """Wait for a step's result and take it in; its report is held until the next step is on its way."""
        step = flight.step
        result = flight.pending.result()
        self._phase = "commit"
        now = self._clock.now()
        self._scheduler.note_time(now)
        events = self._scheduler.commit(step, result, now)
        # A step that was launched behind another begins where that one ended.
        began = flight.began_s if self._last_step_s is None else max(flight.began_s, self._last_step_s)
        self._last_step_s, self._step_began_s, self._phase = now, now if self._in_flight else None, "idle"
        loop_until_s = self._clock.now()
        loop_s = loop_until_s - max(flight.began_s, self._loop_until_s)
        self._loop_until_s = loop_until_s
        stats = _stats(step, result, events, loop_s, began)
        num_resting, self._num_resting = self._num_resting, self._scheduler.num_cached_blocks
        self._flush()
        self._held = StepReport(
            now,
            events,
            stats,
            step.rows,
            _preempted(flight.decisions),
            num_cached=self._num_resting,
            num_resting=num_resting,
            owed=flight.owed,
        )
        if not self._scheduler.can_work:
            self._flush()

    def _wait_below(self) -> None:
        """Sleep until a place below the pool answers, somebody wants something, or it has been waited for enough."""
        wait_s = self._scheduler.wait_s
        if wait_s is None:
            raise RuntimeError("sequences are live, none is in flight, and no step can be made")
        self._flush()
        self._inbox.rest(wait_s)

    def _flush(self) -> None:
        if self._held is not None:
            report, self._held = self._held, None
            self._deliver(report)

    def _end(self, error: str | None) -> None:
        """End every live sequence, also those still in the inbox. What a failed engine had in flight is forgotten."""
        self._in_flight.clear()
        self._flush()
        events = self._scheduler.abort_all(error)
        finish = FinishReason.ABORT if error is None else FinishReason.ERROR
        events += [SequenceEvent(sequence.seq_id, None, finish, error=error) for sequence in self._inbox.close()]
        self._deliver(StepReport(self._clock.now(), events, is_last=True))
        if self._tiers is not None:
            self._save_below(self._tiers, is_whole=error is None)

    def _save_below(self, tiers: TierHierarchy, *, is_whole: bool) -> None:
        """Let the places below the pool keep what it has, unless the engine failed, and end them."""
        self._phase = "save"
        if is_whole and (step := self._scheduler.save_all(self._clock.now())) is not None:
            self._executor.launch(step).result()
        tiers.stop(self._clock, _SAVE_S if is_whole else 0.0)
        self._phase = "idle"

    def _settle(self, error: BaseException | None) -> None:
        """Free the device and tell whoever waits for `ready` or `dead`."""
        try:
            self._executor.shutdown()
        finally:
            if error is None:
                self.dead.set_result(None)
            else:
                failure = EngineDead(f"the engine failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                if not self.ready.done():
                    self.ready.set_exception(failure)
                self.dead.set_exception(failure)


def _preempted(decisions: list[Decision]) -> tuple[Preempted, ...]:
    return tuple(decision for decision in decisions if isinstance(decision, Preempted)) if decisions else ()


def _progress(sequence: Sequence) -> LiveSequence:
    if sequence.is_paused:
        phase = SequencePhase.PAUSED
    elif sequence.status is SequenceStatus.WAITING:
        phase = SequencePhase.PREEMPTED if sequence.num_preemptions else SequencePhase.QUEUE
    else:
        phase = SequencePhase.DECODE if sequence.num_output else SequencePhase.PREFILL
    return LiveSequence(sequence.seq_id, phase, (sequence.num_computed, len(sequence.tokens)), sequence.queued_s)


def _stats(step: Step, result: StepResult, events: list[SequenceEvent], loop_s: float, began_s: float) -> StepStats:
    return StepStats(
        num_rows=len(step.rows),
        num_tokens=step.num_tokens,
        num_sampled=len([1 for event in events if event.sample is not None]),
        device_s=result.elapsed_s,
        loop_s=loop_s,
        began_s=began_s,
    )
