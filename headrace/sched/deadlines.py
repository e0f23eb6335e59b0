"""Deadlines: which sequences have waited for their first token longer than their caller would.

Owns: a heap of the deadlines of live sequences. Called by the scheduler. A sequence that has its first token, or has
ended, no longer has a deadline; what the heap keeps of such is dropped when it is more than the rest.
"""

from __future__ import annotations

from collections.abc import Container
from heapq import heapify, heappop, heappush

from headrace.core.request import SeqId
from headrace.sched.sequence import Sequence

_FEW = 64  # entries that are not worth sorting out


class Deadlines:
    """When which live sequence expires. Cost: O(log n) per sequence with a deadline, nothing for the others."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, SeqId, Sequence]] = []

    def watch(self, sequence: Sequence, live: Container[SeqId]) -> None:
        """Take note of a new sequence's deadline, if it has one."""
        if sequence.deadline_s is None:
            return
        heappush(self._heap, (sequence.deadline_s, sequence.seq_id, sequence))
        if len(self._heap) > _FEW and self._heap_is_stale(live):
            self._heap = [entry for entry in self._heap if _is_waiting(entry[2], live)]
            heapify(self._heap)

    def pop_expired(self, now: float, live: Container[SeqId]) -> list[Sequence]:
        """Return the live sequences whose deadline has passed before their first token, and forget them."""
        expired = []
        while self._heap and self._heap[0][0] < now:
            sequence = heappop(self._heap)[2]
            if _is_waiting(sequence, live):
                expired.append(sequence)
        return expired

    def _heap_is_stale(self, live: Container[SeqId]) -> bool:
        """Say whether half of the entries are settled, looking only when the heap has doubled."""
        size = len(self._heap)
        return size & (size - 1) == 0 and 2 * sum(_is_waiting(entry[2], live) for entry in self._heap) <= size


def _is_waiting(sequence: Sequence, live: Container[SeqId]) -> bool:
    return sequence.first_token_s is None and sequence.seq_id in live


def lateness(sequence: Sequence, now: float) -> str:
    """Say how late a sequence is, for its caller."""
    assert sequence.deadline_s is not None
    where = "waiting" if sequence.first_scheduled_s is None else "reading the prompt"
    late_ms = (now - sequence.deadline_s) * 1e3
    return f"the deadline passed {late_ms:.0f} ms ago, while the request was {where}; nothing was generated"
