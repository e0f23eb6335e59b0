"""Paused sequences: alive, but not to be computed until somebody has read what they have said.

Owns: which sequences are paused. Called by the scheduler alone, on the engine thread.
A paused sequence keeps its blocks while nobody needs them, and is the first to give them up; it is in no other list, so
it costs a step nothing. One that has been resumed waits here, too, until there is a place for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.core.request import SeqId
from headrace.sched.sequence import Sequence, SequenceStatus


class PausedSequences:
    """Paused sequences by id, in order of arrival here."""

    def __init__(self) -> None:
        self._paused: dict[SeqId, Sequence] = {}
        self.num_returning = 0

    def __len__(self) -> int:
        """Count the sequences here, resumed ones included."""
        return len(self._paused)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._paused.values())

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.seq_id in self._paused

    def pause(self, sequence: Sequence) -> None:
        """Take in a sequence that has left its list, or take back the wish to resume it."""
        if sequence in self and not sequence.is_paused:
            self.num_returning -= 1
        sequence.is_paused = True
        self._paused[sequence.seq_id] = sequence

    def resume(self, sequence: Sequence) -> None:
        """Let a sequence go on once there is a place."""
        if sequence.is_paused:
            sequence.is_paused = False
            self.num_returning += 1

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence leave, if it is here."""
        if self._paused.pop(sequence.seq_id, None) is not None and not sequence.is_paused:
            self.num_returning -= 1

    def holders(self) -> list[Sequence]:
        """Return those that hold blocks."""
        return [sequence for sequence in self._paused.values() if sequence.status is SequenceStatus.RUNNING]

    def returning(self) -> list[Sequence]:
        """Return those that have been resumed, longest here first."""
        return [sequence for sequence in self._paused.values() if not sequence.is_paused] if self.num_returning else []

    def check(self) -> None:
        """Raise AssertionError unless the count of resumed sequences is right."""
        assert self.num_returning == sum(not s.is_paused for s in self), "resumed sequences are miscounted"
