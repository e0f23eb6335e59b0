"""The waiting queue and its order: who is looked at first when a step has room.

Owns: the sequences that have been submitted and hold no blocks. Called by the scheduler alone, on the engine thread;
its length may be read from other threads.
Order: preempted sequences first, then by arrival, except that one that finds all its prompt in the prefix cache goes
before those that came up to `_PREFIX_BOOST_S` earlier, one that finds half of it before those of half that time: cached
prefixes are used before they are evicted, and nobody waits behind an endless stream of luckier ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from headrace.core.request import SeqId
from headrace.sched.prefixes import PrefixSharing
from headrace.sched.sequence import Sequence, SequenceStatus

_PREFIX_BOOST_S = 1.0
_WINDOW = 32  # waiting sequences that are looked at for a step


class WaitingQueue:
    """Waiting sequences by id, oldest first."""

    def __init__(self, prefixes: PrefixSharing | None, block_size: int) -> None:
        self._prefixes = prefixes
        self._size = block_size
        self._waiting: OrderedDict[SeqId, Sequence] = OrderedDict()

    def __len__(self) -> int:
        """Count the waiting sequences."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def push(self, sequence: Sequence) -> None:
        """Put a new sequence at the end."""
        self._waiting[sequence.seq_id] = sequence

    def put_back(self, sequence: Sequence) -> None:
        """Put a preempted sequence at the head."""
        self._waiting[sequence.seq_id] = sequence
        self._waiting.move_to_end(sequence.seq_id, last=False)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        del self._waiting[sequence.seq_id]

    def candidates(self) -> list[Sequence]:
        """Return the first waiting sequences in the order of admission."""
        window = list(islice(self._waiting.values(), _WINDOW))
        prefixes = self._prefixes
        if prefixes is None or len(window) < 2:
            return window
        ranks = {
            sequence.seq_id: float("-inf")
            if sequence.num_preemptions
            else sequence.queued_s - _PREFIX_BOOST_S * prefixes.find(sequence) * self._size / len(sequence.tokens)
            for sequence in window
        }
        window.sort(key=lambda sequence: ranks[sequence.seq_id])
        return window

    def check(self) -> None:
        """Raise AssertionError unless everybody here waits and holds nothing."""
        for sequence in self._waiting.values():
            assert sequence.status is SequenceStatus.WAITING, "a waiting sequence has another status"
            assert not sequence.blocks, "a waiting sequence holds blocks"
