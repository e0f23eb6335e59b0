"""The door: which requests are let into the queue, and what those that are not are told.

Owns: the measured drain rate of the queue. Written by the scheduler on the engine thread; `check` may be called from
any thread: it reads counts that may be one sequence old.
Three limits: sequences, prompt tokens and predicted seconds. Background work has the first two for itself, and waits as
long as it takes. A tenant with a name may fill the queue up to `_TENANT_SHARE` times what it leaves to others, so
that one that floods it is refused while there still is room for the rest.
Source of that rule: dynamic thresholds for shared buffers, Choudhury and Hahne 1998.
"""

from __future__ import annotations

from headrace.core.errors import DeadlineUnreachable, Overloaded, PromptTooLong
from headrace.sched.drain import DrainRate
from headrace.sched.limits import SchedulerLimits
from headrace.sched.queue import Crowd
from headrace.sched.sequence import Sequence, Urgency

_TENANT_SHARE = 4.0
_SOON_S = 1.0  # the least that a refused caller is asked to wait


class Door:
    """Refuses what can never be served and what would wait too long."""

    def __init__(self, limits: SchedulerLimits, max_context: int) -> None:
        self._limits = limits
        self._max_context = max_context
        self._drain = DrainRate()

    def check_length(self, prompt_len: int) -> None:
        """Raise PromptTooLong if the prompt can never be served."""
        if prompt_len >= self._max_context:
            raise PromptTooLong(
                f"prompt has {prompt_len:,} tokens; this server accepts {self._max_context - 1:,} "
                f"(context of {self._max_context:,} tokens, one of them for output); shorten the prompt",
                param="prompt",
            )

    def check_crowd(self, who: Urgency | Sequence, crowd: Crowd, now: float) -> None:
        """Raise Overloaded if as much waits as may."""
        limits, policy = self._limits, self._limits.policy
        share = _TENANT_SHARE * policy.tenant_weights.get(who.tenant, 1.0)
        full = None
        if crowd.num_sequences >= limits.max_waiting:
            full = f"{crowd.num_sequences:,} sequences are waiting, the limit is {limits.max_waiting:,}"
        elif who.tenant and crowd.num_own >= share * (limits.max_waiting - crowd.num_sequences):
            full = f"{crowd.num_own:,} of the {crowd.num_sequences:,} sequences that are waiting are yours"
        elif policy.max_waiting_tokens is not None and crowd.num_tokens >= policy.max_waiting_tokens:
            full = f"{crowd.num_tokens:,} prompt tokens are waiting, the limit is {policy.max_waiting_tokens:,}"
        if full is not None:
            retry_after_s = self._drain.wait_s(crowd.num_sequences, now)
            raise Overloaded(
                f"{full}; the queue drains in about {retry_after_s:.0f} s, try again then", retry_after_s=retry_after_s
            )

    def check_wait(self, who: Urgency | Sequence, predicted_s: float, now: float) -> None:
        """Raise Overloaded or DeadlineUnreachable if the first token would come too late."""
        if who.deadline_s is not None and now + predicted_s > who.deadline_s:
            left_s = max(who.deadline_s - now, 0.0)
            retry_after_s = max(predicted_s - left_s, _SOON_S)
            raise DeadlineUnreachable(
                f"the first token is expected in {predicted_s:.2f} s, the deadline is in {left_s:.2f} s; "
                f"try again in {retry_after_s:.0f} s, or allow more time",
                retry_after_s=retry_after_s,
            )
        most_s = self._limits.policy.max_wait_s
        if most_s is not None and predicted_s > most_s and not who.is_background:
            retry_after_s = max(predicted_s - most_s, _SOON_S)
            raise Overloaded(
                f"the first token is expected in {predicted_s:.0f} s, the limit is {most_s:g} s; "
                f"try again in {retry_after_s:.0f} s",
                retry_after_s=retry_after_s,
            )

    def note_admission(self, now: float) -> None:
        """Record that a sequence has left the queue."""
        self._drain.note(now)
