"""What is refused before it is submitted: what can never be served, and what would wait too long.

Owns nothing: it looks at the queue, at what runs and at what has been learned. Any thread may call it; counts that are
one sequence old do no harm. The limits and their messages for what waits are `door`'s, the prediction `outlook`'s.
"""

from __future__ import annotations

from headrace.core.errors import InvalidRequest, PromptTooLong
from headrace.sched.door import Door
from headrace.sched.limits import SchedulerLimits
from headrace.sched.memory import Memory
from headrace.sched.outlook import Outlook
from headrace.sched.room import Room
from headrace.sched.roster import Roster
from headrace.sched.sequence import Sequence, Urgency


class Screening:
    """Takes the measure of requests."""

    def __init__(
        self,
        limits: SchedulerLimits,
        search_context: int,
        roster: Roster,
        memory: Memory,
        room: Room,
        door: Door,
        outlook: Outlook,
    ) -> None:
        self._limits = limits
        self._search_context = search_context
        self._roster = roster
        self._memory = memory
        self._room = room
        self._door = door
        self._outlook = outlook

    def check_sequences(self, sequences: list[Sequence], now: float, *, num_queued: int = 0) -> None:
        """Take the measure of a request that is about to be submitted. Any thread.

        Raises PromptTooLong if it can never be served, Overloaded if too much waits or it would wait too long,
        DeadlineUnreachable if it would be too late. Leaves the predicted time to its first token in the sequences.

        num_queued  sequences on their way to `submit`, which count as waiting
        """
        first = sequences[0]
        self._door.check_length(first.prompt_len)
        predicted_s = self._look_over(first, first.prompt_len, now, num_queued)
        for sequence in sequences:
            sequence.predicted_s = predicted_s

    def check_room(self, urgency: Urgency, now: float, *, num_queued: int = 0) -> None:
        """Raise what `check_admission` would raise for a prompt of any length: what needs no prompt. Any thread."""
        self._look_over(urgency, 1, now, num_queued)

    def _look_over(self, who: Urgency | Sequence, prompt_len: int, now: float, num_queued: int) -> float | None:
        """Refuse what would wait too long; return the predicted seconds to the first token, None while unknown."""
        crowd = self._roster.waiting.crowd(who, self._limits.policy.tenant_weights.get(who.tenant, 1.0))
        crowd = crowd._replace(num_sequences=crowd.num_sequences + num_queued)
        self._door.check_crowd(who, crowd, now)
        ahead = crowd.ahead._replace(num_sequences=crowd.ahead.num_sequences + num_queued)
        predicted_s = self._outlook.ttft_s(prompt_len, ahead, self._roster.rivals(who), is_full=self._room.is_full)
        if predicted_s is not None:
            self._door.check_wait(who, self._outlook.corrected_s(predicted_s), now)
        return predicted_s

    def check_search(self, leader: Sequence) -> None:
        """Raise InvalidRequest if a beam search can never be served. Any thread."""
        width, most = leader.num_beams, min(leader.max_len, self._search_context)
        if leader.prompt_len >= most:
            raise PromptTooLong(
                f"prompt has {leader.prompt_len:,} tokens; a search has room for {self._search_context:,}, "
                "output included; shorten it, or leave use_beam_search out",
                param="prompt",
            )
        if width > self._limits.max_num_seqs:
            raise InvalidRequest(
                f"{width} beams, and at most {self._limits.max_num_seqs} sequences run here at once; lower best_of",
                param="best_of",
            )
        memory = self._memory
        num_blocks = memory.beam_blocks.num_wanted(leader, most)
        if num_blocks > memory.pool.num_blocks:
            raise InvalidRequest(
                f"{width} beams of up to {most:,} tokens may want {num_blocks:,} blocks of {memory.block_size} tokens; "
                f"this server has {memory.pool.num_blocks:,}; lower max_tokens or best_of",
                param="max_tokens",
            )

    def check_pin(self, prompt_len: int) -> None:
        """Raise InvalidRequest if so long a prompt can never be pinned. Any thread."""
        if self._memory.prefixes is None:
            raise InvalidRequest("engine.prefix_cache is off: prefixes cannot be kept", param="ttl_s")
        self._memory.prefixes.pins.check_room(prompt_len // self._memory.block_size)
