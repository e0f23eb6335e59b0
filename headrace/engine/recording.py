"""A scheduler that writes down all that goes in and all that it decides.

Owns nothing but the sink, and what has come in from elsewhere since the last call: answers of the places below the
pool, and the rounds of beam searches, whose outcome depends on tokens. Without a log the plain `Scheduler` runs, so
recording costs nothing then.
Invariant: each record holds what is needed to make the same call again, except for the tokens; what a call has learned
from below comes before its own record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from typing import NamedTuple

from headrace.core.delta import FinishReason
from headrace.core.errors import HeadraceError
from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult
from headrace.kv import BlockPool
from headrace.kv.tiers import Learned, TierHierarchy
from headrace.sched import Scheduler, SchedulerLimits, Sequence, SequenceEvent, Urgency
from headrace.sched.beams import BeamGroup, Move
from headrace.sched.decisions import Decision


class Submitted(NamedTuple):
    """`submit` was called."""

    now: float
    sequence: Sequence


class Planned(NamedTuple):
    """`schedule` was called; `step` is None if there was nothing to do."""

    now: float
    step: Step | None
    decisions: Items[Decision]


class Round(NamedTuple):
    """A beam search has gone on, by `moves`, or has ended with answers that `finishes` tells of."""

    leader: SeqId
    moves: Items[Move]
    finishes: Items[FinishReason] = ()


class Committed(NamedTuple):
    """`commit` was called and returned `events`."""

    now: float
    step: Step
    result: StepResult
    events: Items[SequenceEvent]
    rounds: Items[Round] = ()


class FromBelow(NamedTuple):
    """What the call that is recorded next has learned from the places below the pool."""

    learned: Items[Learned]


class Aborted(NamedTuple):
    """`abort` was called for a live sequence."""

    seq_id: SeqId
    is_failed: bool


class Expired(NamedTuple):
    """`expire` was called and ended sequences."""

    now: float
    events: Items[SequenceEvent]


class Paused(NamedTuple):
    """`pause` was called, or `resume`."""

    seq_id: SeqId
    is_paused: bool


class AllAborted(NamedTuple):
    """`abort_all` was called; nothing follows."""

    is_failed: bool
    events: Items[SequenceEvent]


class StepIdTaken(NamedTuple):
    """`take_step_id` was called."""

    step_id: int


class Refused(NamedTuple):
    """`check_admission` or `check_room` has refused a request; told, not needed for a replay. Any thread."""

    now: float
    error: HeadraceError


Record = Submitted | Planned | Committed | FromBelow | Aborted | Paused | Expired | AllAborted | StepIdTaken | Refused


class RecordingScheduler(Scheduler):
    """Tells `sink` of every call, after it. The sink must not block; refusals may come from other threads."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        limits: SchedulerLimits,
        sink: Callable[[Record], None],
        tiers: TierHierarchy | None = None,
    ) -> None:
        super().__init__(pool, block_size, limits, tiers)
        self._sink = sink
        self._is_nested = False
        self._rounds: list[Round] = []
        self._learned: list[Learned] = []
        self._tiers = tiers
        if tiers is not None:
            tiers.watch(self._learned.append)

    def check_admission(self, sequences: list[Sequence], now: float, *, num_queued: int = 0) -> None:
        """Refuse what cannot be served."""
        with self._telling_refusals(now):
            super().check_admission(sequences, now, num_queued=num_queued)

    def check_room(self, urgency: Urgency, now: float, *, num_queued: int = 0) -> None:
        """Refuse what cannot be served whatever its prompt."""
        with self._telling_refusals(now):
            super().check_room(urgency, now, num_queued=num_queued)

    @contextmanager
    def _telling_refusals(self, now: float) -> Iterator[None]:
        try:
            yield
        except HeadraceError as error:
            self._sink(Refused(now, error))
            raise

    def submit(self, sequence: Sequence, now: float = 0.0) -> None:
        """Take a sequence."""
        if sequence.beams is not None:
            sequence.beams.on_round = self._note_round
        super().submit(sequence, now)
        self._sink(Submitted(now, sequence))

    def abort(self, seq_id: SeqId, error: str | None = None) -> list[SequenceEvent]:
        """End a live sequence."""
        events = super().abort(seq_id, error)
        if events and not self._is_nested:
            self._sink(Aborted(seq_id, error is not None))
        return events

    def expire(self, now: float) -> list[SequenceEvent]:
        """End what comes too late."""
        events = super().expire(now)
        if events:
            self._sink(Expired(now, events))
        return events

    def pause(self, seq_id: SeqId) -> None:
        """Leave a sequence out of steps."""
        super().pause(seq_id)
        self._sink(Paused(seq_id, True))

    def resume(self, seq_id: SeqId) -> None:
        """Let a paused sequence go on."""
        super().resume(seq_id)
        self._sink(Paused(seq_id, False))

    def abort_all(self, error: str | None = None) -> list[SequenceEvent]:
        """End every live sequence."""
        self._is_nested = True
        events = super().abort_all(error)
        if self._tiers is not None:
            self._tiers.watch(None)
        self._sink(AllAborted(error is not None, events))
        return events

    def schedule(self, now: float) -> Step | None:
        """Plan the next step."""
        step = super().schedule(now)
        self._note_learned()
        self._sink(Planned(now, step, self.decisions))
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> list[SequenceEvent]:
        """Take in a result."""
        events = super().commit(step, result, now)
        self._note_learned()
        rounds, self._rounds = self._rounds, []
        self._sink(Committed(now, step, result, events, rounds))
        return events

    def take_step_id(self) -> int:
        """Use up a step id."""
        step_id = super().take_step_id()
        self._sink(StepIdTaken(step_id))
        return step_id

    def _note_learned(self) -> None:
        if self._learned:
            self._sink(FromBelow(tuple(self._learned)))
            self._learned.clear()

    def _note_round(self, group: BeamGroup, moves: list[Move]) -> None:
        finishes = () if moves else tuple(answer.finish for answer in group.answers())
        self._rounds.append(Round(group.members[0].seq_id, moves, finishes))
