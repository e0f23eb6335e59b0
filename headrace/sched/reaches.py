"""Reaches: what the tokens of a sequence attend to, and how many blocks that lets it hold.

Owns nothing: what a scheduler decides from its limits and from what a request asks for. Called by the scheduler, when a
request comes and at submit. Two things bound what tokens see. A reach that is asked for (StreamingLLM's sinks and
window), by the server's settings or narrower by a request, changes the numbers: KV of tokens beyond `num_seen` is what
a truncated past has made, and belongs to no prefix cache. The windows of a model whose every layer has one are part of
the model: its numbers stay, only nobody reads the old blocks any more.

A prefix in the cache is a path from the first token on, and whoever holds a block holds those before it. So a sequence
publishes only its first `num_seen` tokens, and evicts them together, once its window has left the last of them: for a
while it holds twice its window. Where the pool is too small for that, it neither shares nor publishes. The first
`num_seen` tokens have seen all before them, as without a reach: sequences of any reach share them, each up to its own.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from headrace.core.errors import InvalidRequest, PromptTooLong
from headrace.core.request import Reach, WantedReach
from headrace.sched.limits import SchedulerLimits
from headrace.sched.sequence import Sequence

DEFAULT_SINKS = 4  # of a request with a window, where the server has none: StreamingLLM's


class _Allowance(NamedTuple):
    """What comes with a reach; see `Sequence`. `least` blocks are needed to go on for ever."""

    reach: Reach | None
    least: int = sys.maxsize
    num_seen: int = sys.maxsize
    num_shareable: int = sys.maxsize
    max_blocks: int = sys.maxsize


class Reaches:
    """The reach of every sequence of one engine.

    max_context     prompt and output of one sequence
    search_context  the same for beams, which share blocks and keep all of them
    """

    def __init__(self, limits: SchedulerLimits, num_blocks: int, block_size: int) -> None:
        self._limits = limits
        self._num_blocks = num_blocks
        self._size = block_size
        self._fits = fits = min(limits.max_context, num_blocks * block_size)
        self._usual = usual = self._allow(limits.reach)
        self.max_context = limits.max_context if usual.least <= num_blocks else fits
        self.search_context = fits
        if usual.reach is not None and not self._is_model(usual.reach):
            self.search_context = min(fits, usual.num_seen)

    def check(self, sequence: Sequence) -> None:
        """Raise InvalidRequest unless a sequence may have the reach that it asks for, and has room with it."""
        wanted = sequence.wanted_reach
        if wanted is None:
            return
        if sequence.beams is not None:
            raise InvalidRequest(
                "a beam search keeps all that its beams attend to; leave attention_window and attention_sinks out, or "
                "use_beam_search",
                param="attention_window",
            )
        least = self._allow(self._resolve(wanted)).least
        if least > self._num_blocks and sequence.prompt_len >= self._fits:
            raise PromptTooLong(
                f"prompt has {sequence.prompt_len:,} tokens; with its own window and sinks, which want {least:,} of "
                f"{self._num_blocks:,} blocks, a sequence has room for {self._fits:,}, output included; lower "
                "attention_sinks",
                param="prompt",
            )

    def give(self, sequence: Sequence) -> None:
        """Set what a sequence that is submitted attends to, and what follows from that."""
        if sequence.beams is not None:
            sequence.max_len = min(sequence.max_len, self.search_context)
            return
        allowed = self._usual
        if sequence.wanted_reach is not None:
            allowed = self._allow(self._resolve(sequence.wanted_reach))
            if allowed.least > self._num_blocks:
                sequence.max_len = min(sequence.max_len, self._fits)
        sequence.reach = allowed.reach
        sequence.num_seen = allowed.num_seen
        sequence.num_shareable = allowed.num_shareable
        sequence.max_blocks = allowed.max_blocks

    def _resolve(self, wanted: WantedReach) -> Reach:
        """Fill in what a request leaves to the server. Raises InvalidRequest naming field, value and limit."""
        own, widest = self._limits.reach, self._limits.widest_window
        window, num_sinks = wanted.window, wanted.num_sinks
        if window is None and own is None:
            raise InvalidRequest(
                "attention_sinks goes with a window, and this server has none; give attention_window too",
                param="attention_sinks",
            )
        if num_sinks is None:
            num_sinks = DEFAULT_SINKS if own is None else own.num_sinks
        if window is None:
            assert own is not None
            window = own.window
        if num_sinks < 0:
            raise InvalidRequest(f"attention_sinks is {num_sinks}; it must be at least 0", param="attention_sinks")
        whose, most = "the context", self._limits.max_context
        if own is not None:
            whose, most = "engine.attention_window of this server", own.window
        if widest is not None and widest <= most:
            whose, most = "the widest window of this model's layers", widest
        if not 1 <= window <= most:
            raise InvalidRequest(
                f"attention_window is {window:,}; it must be from 1 to {most:,}, {whose}", param="attention_window"
            )
        num_seen = self._limits.max_context if own is None else own.num_seen
        if window + num_sinks > num_seen:
            raise InvalidRequest(
                f"attention_window is {window:,} and attention_sinks {num_sinks:,}; together they may be "
                f"{num_seen:,} here; lower one of them",
                param="attention_sinks" if wanted.num_sinks is not None else "attention_window",
            )
        return Reach(window=window, num_sinks=num_sinks)

    def _allow(self, wanted: Reach | None) -> _Allowance:
        """Work out what comes with a reach, None for all that the model's layers see."""
        widest, size, num_blocks = self._limits.widest_window, self._size, self._num_blocks
        is_model = widest is not None and (wanted is None or widest <= wanted.window)
        reach = Reach(window=widest) if is_model and widest is not None else wanted
        if reach is None:
            return _Allowance(None)
        least = least_blocks(reach, size)
        if is_model and least > num_blocks:
            return _Allowance(None)
        max_blocks = sys.maxsize
        if least <= num_blocks:
            max_blocks = min(least + -(-self._limits.max_step_tokens // size), num_blocks)
        num_shareable = reach.num_seen if least + reach.num_seen // size <= num_blocks else 0
        return _Allowance(reach, least, reach.num_seen, num_shareable, max_blocks)

    def _is_model(self, reach: Reach) -> bool:
        return reach.window == self._limits.widest_window and not reach.num_sinks


def least_blocks(reach: Reach, block_size: int) -> int:
    """Return how many blocks a sequence needs to go on: sinks, a window that begins anywhere, and the next token."""
    return -(-reach.num_sinks // block_size) + -(-reach.window // block_size) + 2
