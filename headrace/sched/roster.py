"""Where each live sequence is: in the queue, among the running ones, or paused.

Owns: which sequences are live and the two running lists, each in order of admission; queue and pauses have owners of
their own, which it holds. Called on the engine thread; any thread may count, or copy a list in one call.
Invariant, checked by `check()`: a live sequence is in exactly one place, and a parked beam in none. A paused one is in
no list; it goes on from where it is, or as a preempted one.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.core.request import SeqId
from headrace.sched.paused import PausedSequences
from headrace.sched.queue import WaitingQueue
from headrace.sched.sequence import Sequence, SequenceStatus, Urgency


class Roster:
    """The live sequences by place."""

    def __init__(self, waiting: WaitingQueue) -> None:
        self.waiting = waiting
        self.paused = PausedSequences()
        self.live: dict[SeqId, Sequence] = {}
        self.ordinary: list[Sequence] = []  # running, in order of admission
        self.background: list[Sequence] = []  # likewise; they hold blocks as well

    @property
    def num_running(self) -> int:
        """Count the sequences that hold blocks and have not finished."""
        return len(self.ordinary) + len(self.background)

    def running(self) -> list[Sequence]:
        """Return all that run, background ones last."""
        return [*self.ordinary, *self.background]

    def rivals(self, who: Urgency | Sequence) -> list[Sequence]:
        """Return the running sequences that do not give way to this one."""
        return self.running() if who.is_background else list(self.ordinary)

    def join(self, sequence: Sequence, now: float) -> None:
        """Take in a new sequence; one that waits goes to the queue."""
        self.live[sequence.seq_id] = sequence
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.push(sequence, now)

    def run(self, sequence: Sequence, others: Iterable[Sequence] = ()) -> None:
        """Put a sequence that has left queue or pause, and the others of its search, among the running ones."""
        running = self._list_of(sequence)
        running.append(sequence)
        running += others

    def stop(self, sequence: Sequence) -> None:
        """Take a sequence out of its running list."""
        self._list_of(sequence).remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence that is neither paused nor parked out of the queue or its running list."""
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        else:
            self.stop(sequence)

    def end(self, sequence: Sequence) -> None:
        """Let a sequence be live and paused no more; it has left its list, or leaves it at `drop_ended`."""
        del self.live[sequence.seq_id]
        self.paused.remove(sequence)

    def drop_ended(self) -> None:
        """Take those that run no more out of the running lists."""
        self.ordinary = [s for s in self.ordinary if s.status is SequenceStatus.RUNNING]
        self.background = [s for s in self.background if s.status is SequenceStatus.RUNNING]

    def _list_of(self, sequence: Sequence) -> list[Sequence]:
        return self.background if sequence.is_background else self.ordinary

    def check(self, max_num_seqs: int) -> None:
        """Raise AssertionError if lists, queue and live sequences do not agree."""
        self.paused.check()
        self.waiting.check()
        running = self.running()
        parked = [s for s in self.live.values() if s.status is SequenceStatus.PARKED]
        assert all(s.beams is not None for s in parked), "a sequence without beams is parked"
        assert not any(s.beams.is_over for s in self.live.values() if s.beams), "a search has left an answer behind"
        ids = [sequence.seq_id for sequence in (*running, *self.waiting, *self.paused, *parked)]
        assert len(ids) == len(set(ids)), "a sequence is in two places"
        assert set(ids) == set(self.live), "a live sequence is in no queue"
        assert len(running) <= max_num_seqs, "more sequences run than may"
        assert not any(s.is_background for s in self.ordinary), "a background sequence runs among the others"
        assert all(s.is_background for s in self.background), "a background list holds another sequence"
