"""Reaches: what the tokens of a sequence attend to, and how many blocks that lets it hold.

Owns nothing: what a scheduler decides once, from its limits. Called by the scheduler, once at the start and at submit.
Two things bound what tokens see. A reach that is asked for (StreamingLLM's sinks and window) changes the numbers: KV of
tokens beyond `num_seen` is what a truncated past has made, and belongs to no prefix cache. The windows of a model whose
every layer has one are part of the model: its numbers stay, only nobody reads the old blocks any more.

A prefix in the cache is a path from the first token on, and whoever holds a block holds those before it. So a sequence
publishes only its first `num_seen` tokens, and evicts them together, once its window has left the last of them: for a
while it holds twice its window. Where the pool is too small for that, it neither shares nor publishes.
"""

from __future__ import annotations

import sys

from headrace.core.request import Reach
from headrace.sched.limits import SchedulerLimits
from headrace.sched.sequence import Sequence


class Reaches:
    """The reach of every sequence of one engine.

    max_context     prompt and output of one sequence
    search_context  the same for beams, which share blocks and keep all of them
    """

    def __init__(self, limits: SchedulerLimits, num_blocks: int, block_size: int) -> None:
        wanted, widest = limits.reach, limits.widest_window
        is_model = widest is not None and (wanted is None or widest <= wanted.window)
        reach = Reach(window=widest) if is_model and widest is not None else wanted
        fits = min(limits.max_context, num_blocks * block_size)
        least = sys.maxsize if reach is None else least_blocks(reach, block_size)
        if is_model and least > num_blocks:
            reach = None
        self._reach = reach
        self._num_seen = self._num_shareable = self._max_blocks = sys.maxsize
        self.max_context = self.search_context = fits
        if reach is None:
            return
        self._num_seen = reach.num_seen
        if not is_model:
            self.search_context = min(fits, reach.num_seen)
        if least <= num_blocks:
            self.max_context = limits.max_context
            self._max_blocks = min(least + -(-limits.max_step_tokens // block_size), num_blocks)
        num_shareable_blocks = reach.num_seen // block_size
        self._num_shareable = reach.num_seen if least + num_shareable_blocks <= num_blocks else 0

    def give(self, sequence: Sequence) -> None:
        """Set what a sequence that is submitted attends to."""
        if sequence.beams is not None:
            sequence.max_len = min(sequence.max_len, self.search_context)
            return
        sequence.reach = self._reach
        sequence.num_seen = self._num_seen
        sequence.num_shareable = self._num_shareable
        sequence.max_blocks = self._max_blocks


def least_blocks(reach: Reach, block_size: int) -> int:
    """Return how many blocks a sequence needs to go on: sinks, a window that begins anywhere, and the next token."""
    return -(-reach.num_sinks // block_size) + -(-reach.window // block_size) + 2
