"""The door: which requests are let into the queue, and what those that are not are told.

Owns: the measured drain rate of the queue. Written by the scheduler on the engine thread; `check` may be called from
any thread: a count that is one sequence old does no harm.
"""

from __future__ import annotations

from headrace.core.errors import Overloaded, PromptTooLong
from headrace.sched.drain import DrainRate
from headrace.sched.limits import SchedulerLimits


class Door:
    """Refuses what can never be served and what would wait too long."""

    def __init__(self, limits: SchedulerLimits, max_context: int) -> None:
        self._limits = limits
        self._max_context = max_context
        self._drain = DrainRate()

    def check(self, prompt_len: int, num_waiting: int, now: float) -> None:
        """Raise PromptTooLong if the prompt can never be served, Overloaded if the queue is full."""
        if prompt_len >= self._max_context:
            raise PromptTooLong(
                f"prompt has {prompt_len:,} tokens; this server accepts {self._max_context - 1:,} "
                f"(context of {self._max_context:,} tokens, one of them for output); shorten the prompt",
                param="prompt",
            )
        if num_waiting >= self._limits.max_waiting:
            retry_after_s = self._drain.wait_s(num_waiting, now)
            raise Overloaded(
                f"{num_waiting:,} sequences are waiting, the limit is {self._limits.max_waiting:,}; "
                f"the queue drains in about {retry_after_s:.0f} s, try again then",
                retry_after_s=retry_after_s,
            )

    def note_admission(self, now: float) -> None:
        """Record that a sequence has left the queue."""
        self._drain.note(now)
