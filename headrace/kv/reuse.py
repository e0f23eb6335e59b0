"""What cached blocks have been worth so far: the share that is used again, by kind of block and by age.

Owns: decaying counts of reuses and evictions per kind and age, and the probabilities made of them every so often.
Kinds are small integers chosen by `kv.eviction`; ages are in blocks cached since, so nothing here reads a clock.
Ages fall into bins that grow by a fourth of an octave, from a sixteenth of the pool up.
Called by the eviction order alone, on the engine thread.
Source: conditioning on age and on earlier hits follows LHD, Beckmann, Chen and Cidon, NSDI 2018.
"""

from __future__ import annotations

from math import log2

_NUM_BINS = 40
_BINS_PER_OCTAVE = 4
_FINEST = 16  # bins begin at this part of the pool
_DECAY = 0.9  # of old counts, each time the probabilities are made again
_LEAST_PERIOD = 256
_PRIOR_REUSES, _PRIOR_BLOCKS = 0.01, 1.0


class ReuseHistory:
    """Probabilities of reuse, learned while they are used. Cost: O(1) per count, O(kinds) amortized for learning."""

    __slots__ = ("_evicted", "_num_counts", "_period", "_reused", "_scale", "_tables")

    def __init__(self, num_kinds: int, num_blocks: int) -> None:
        self._scale = _FINEST / num_blocks
        self._period = max(num_blocks // 2, _LEAST_PERIOD)
        self._num_counts = 0
        self._reused = [[0.0] * _NUM_BINS for _ in range(num_kinds)]
        self._evicted = [[0.0] * _NUM_BINS for _ in range(num_kinds)]
        # Before anything is known, the older block is the less likely one: least recently used.
        fresh = [1 / (1 + 2 ** (i / _BINS_PER_OCTAVE) / _FINEST) for i in range(_NUM_BINS)]
        self._tables = [list(fresh) for _ in range(num_kinds)]

    def chance(self, kind: int, age: int) -> float:
        """Return the probability that a block of a kind, unused for `age`, is used again while it is remembered."""
        return self._tables[kind][self._bin(age)]

    def note_reuse(self, kind: int, age: int) -> None:
        """Count a block that was used again."""
        self._reused[kind][self._bin(age)] += 1.0
        self.note_block()

    def note_eviction(self, kind: int, age: int) -> None:
        """Count a block that was not used again."""
        self._evicted[kind][self._bin(age)] += 1.0

    def note_block(self) -> None:
        """Let time pass by one block; learn when enough has happened."""
        self._num_counts += 1
        if self._num_counts >= self._period:
            self._num_counts = 0
            self._learn()

    def _bin(self, age: int) -> int:
        return min(int(_BINS_PER_OCTAVE * log2(1.0 + age * self._scale)), _NUM_BINS - 1)

    def _learn(self) -> None:
        """Make the tables from the counts: of the blocks that reached an age, the share used again later."""
        for reused, evicted, table in zip(self._reused, self._evicted, self._tables, strict=True):
            num_reused = num_reached = 0.0
            for i in range(_NUM_BINS - 1, -1, -1):
                num_reused += reused[i]
                num_reached += reused[i] + evicted[i]
                table[i] = (num_reused + _PRIOR_REUSES) / (num_reached + _PRIOR_BLOCKS)
                reused[i] *= _DECAY
                evicted[i] *= _DECAY
