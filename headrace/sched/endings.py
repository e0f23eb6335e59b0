"""How sequences go on with a token and how they end: the finish rules, and the one event that tells of an end.

Owns: `tokens` of every sequence that is no beam, `first_token_s`, and the step to FINISHED. Called by the scheduler,
its results and its searches.
Invariant: each sequence ends in exactly one event with `finish`; its blocks outlive it while a step in flight reads
them, and are freed when that step is committed.
"""

from __future__ import annotations

from headrace.core.delta import FinishReason
from headrace.core.step import Sample
from headrace.sched.charges import Charges
from headrace.sched.memory import Memory
from headrace.sched.outlook import Outlook
from headrace.sched.roster import Roster
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus


class Endings:
    """Appends tokens and ends sequences."""

    def __init__(self, roster: Roster, memory: Memory, charges: Charges, outlook: Outlook) -> None:
        self._roster = roster
        self._memory = memory
        self._charges = charges
        self._outlook = outlook

    def extend(self, sequence: Sequence, sample: Sample, now: float) -> SequenceEvent:
        """Append a sampled token and apply the finish rules."""
        token_id = sample.token_id
        tokens = sequence.tokens
        tokens.append(token_id)
        is_first = sequence.first_token_s is None
        if is_first:
            sequence.first_token_s = now
            self._outlook.note_first_token(sequence, now)
        if token_id in sequence.stop_token_ids:
            return self.finish(sequence, sample, FinishReason.STOP, stop_token=token_id)
        if len(tokens) >= sequence.max_len:
            return self.finish(sequence, sample, FinishReason.LENGTH)
        if is_first:
            scored, sequence.scored = tuple(sequence.scored), []
            return SequenceEvent(sequence.seq_id, sample, scored=scored, timing=sequence.timing())
        return SequenceEvent(sequence.seq_id, sample)

    def finish(
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
        self._roster.end(sequence)
        self._memory.leave(sequence, has_served=error is None and finish is not FinishReason.ABORT)
        sequence.status = SequenceStatus.FINISHED
        self._charges.end(sequence)
        if not sequence.num_in_flight:
            self._memory.tables.release(sequence)
        scored = tuple(sequence.scored)
        return SequenceEvent(sequence.seq_id, sample, finish, stop_token, error, scored, sequence.timing(), tokens)
