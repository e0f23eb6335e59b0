"""How long answers will get: how many blocks to leave free for those that are running.

Owns: the learned share of `max_tokens` that answers reach, and the margin on top. Called by the scheduler.
To reserve all of `max_tokens` would leave most of the pool empty, since most answers end early; to reserve nothing ends
in preemptions, whose tokens are computed twice. So: what answers have come to lately, plus a margin that each
preemption doubles and that melts away while there is none.
Source: the new-token ratio of SGLang's scheduler, learned from the outputs instead of decaying by the clock.
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.sched.sequence import Sequence

_FADE = 0.97  # of older answers, per answer
_FIRST_WEIGHT = 256.0  # tokens that the first ratio counts as
_LEAST_MARGIN, _MOST_MARGIN = 0.05, 1.0
_MELT = 0.99  # of the margin, per answer


class OutputForecast:
    """Expects outputs, at first `first_ratio` of what is asked for. Each call costs O(1)."""

    def __init__(self, first_ratio: float) -> None:
        self._got = first_ratio * _FIRST_WEIGHT
        self._asked = _FIRST_WEIGHT
        self._margin = _LEAST_MARGIN

    @property
    def ratio(self) -> float:
        """Return the share of `max_tokens` that an answer is expected to reach."""
        return self._got / self._asked

    @property
    def reserved_ratio(self) -> float:
        """Return the share of `max_tokens` that is kept free: what is expected, and the margin."""
        return min(self.ratio + self._margin, 1.0)

    def note_end(self, sequence: Sequence) -> None:
        """Learn from a sequence that has ended by itself or by its caller."""
        asked = sequence.max_len - sequence.prompt_len
        if asked > 0 and sequence.num_output:
            self._got = self._got * _FADE + sequence.num_output
            self._asked = self._asked * _FADE + asked
            self._margin = max(self._margin * _MELT, _LEAST_MARGIN)

    def note_preemption(self) -> None:
        """Learn that too little was reserved."""
        self._margin = min(self._margin * 2.0, _MOST_MARGIN)

    def expected(self, sequence: Sequence) -> int:
        """Return how many tokens a sequence that has none yet is expected to generate."""
        return int(self.ratio * (sequence.max_len - sequence.prompt_len))

    def num_blocks_to_come(self, sequences: Iterable[Sequence], block_size: int) -> int:
        """Return how many blocks sequences will want besides those of their tokens so far, at least one if they may.

        Beams have reserved theirs.
        """
        ratio, total = self.reserved_ratio, 0
        for sequence in sequences:
            if sequence.beams is not None:
                continue
            length, prompt_len, max_len = len(sequence.tokens), sequence.prompt_len, sequence.max_len
            end = prompt_len + int(ratio * (max_len - prompt_len))
            if end <= length:
                end = min(length + 1, max_len)
            most = sequence.max_blocks
            missing = min(-(-end // block_size), most) - (len(sequence.blocks) or min(-(-length // block_size), most))
            if missing > 0:
                total += missing
        return total
