"""A scheduler that writes down all that goes in and all that it decides.

Owns nothing but the sink. The same class runs in the server, where the sink is a log, and in `headrace replay`, where
it compares: the record of a plan and of a commit is made here, in one place, for both. Without a log the plain
`Scheduler` runs, so recording costs nothing then.
Invariant: each record holds what is needed to make the same call again, except for the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import NamedTuple

from headrace.core.errors import HeadraceError
from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult
from headrace.kv import BlockPool
from headrace.kv.tiers import TierHierarchy
from headrace.sched import Scheduler, SchedulerLimits, Sequence, SequenceEvent
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


class Committed(NamedTuple):
    """`commit` was called and returned `events`."""

    now: float
    step: Step
    result: StepResult
    events: Items[SequenceEvent]


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
    """`check_admission` has refused a request; told, not needed for a replay. Any thread."""

    now: float
    error: HeadraceError


Record = Submitted | Planned | Committed | Aborted | Paused | Expired | AllAborted | StepIdTaken | Refused


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

    def check_admission(self, sequences: list[Sequence], now: float, *, num_queued: int = 0) -> None:
        """Refuse what cannot be served."""
        try:
            super().check_admission(sequences, now, num_queued=num_queued)
        except HeadraceError as error:
            self._sink(Refused(now, error))
            raise

    def submit(self, sequence: Sequence, now: float = 0.0) -> None:
        """Take a sequence."""
        super().submit(sequence, now)
        self._sink(Submitted(now, sequence))

    def abort(self, seq_id: SeqId, error: str | None = None) -> SequenceEvent | None:
        """End a live sequence."""
        event = super().abort(seq_id, error)
        if event is not None and not self._is_nested:
            self._sink(Aborted(seq_id, error is not None))
        return event

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
        self._sink(AllAborted(error is not None, events))
        return events

    def schedule(self, now: float) -> Step | None:
        """Plan the next step."""
        step = super().schedule(now)
        self._sink(Planned(now, step, self.decisions))
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> list[SequenceEvent]:
        """Take in a result."""
        events = super().commit(step, result, now)
        self._sink(Committed(now, step, result, events))
        return events

    def take_step_id(self) -> int:
        """Use up a step id."""
        step_id = super().take_step_id()
        self._sink(StepIdTaken(step_id))
        return step_id
