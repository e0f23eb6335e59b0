"""Beam searches from round to round, and how they end: with answers, by a failure, or because nobody waits for them.

Owns: the end of each group of beams (`is_over`) and its beams' step to PARKED. Called by the scheduler and its results;
who goes on with what is `beams`' to decide, the blocks are moved by `beam_blocks`.
Invariant: the beams of a search end together. Those that bear answers have an event each; the others end without one.
"""

from __future__ import annotations

from headrace.core.delta import FinishReason
from headrace.sched.beams import BeamGroup
from headrace.sched.endings import Endings
from headrace.sched.memory import Memory
from headrace.sched.roster import Roster
from headrace.sched.sequence import SequenceEvent, SequenceStatus


class Searches:
    """Moves searches on and ends them."""

    def __init__(self, roster: Roster, memory: Memory, endings: Endings) -> None:
        self._roster = roster
        self._memory = memory
        self._endings = endings

    def go_on(self, group: BeamGroup, now: float) -> list[SequenceEvent]:
        """Move a search on by one token, or end it with its answers."""
        members = group.members
        if not (moves := group.advance()):
            self._dissolve(group)
            return [
                self._endings.finish(member, None, answer.finish, stop_token=answer.stop_token, tokens=answer.tokens)
                for member, answer in zip(members, group.answers(), strict=False)
                if member.seq_id in self._roster.live
            ]
        if members[0].first_token_s is None:
            for member in members:
                member.first_token_s = now
        for child, parent, token_id in moves:
            if child == parent:
                members[child].tokens.append(token_id)
            else:
                self._memory.beam_blocks.fork(members[child], members[parent], token_id)
        return []

    def end(self, group: BeamGroup, finish: FinishReason, error: str | None) -> list[SequenceEvent]:
        """End a search without answers, because one beam has failed or nobody waits for one of its answers any more."""
        self._dissolve(group)
        live = [member for member in group.members if member.seq_id in self._roster.live]
        return [self._endings.finish(member, None, finish, error=error) for member in live]

    def _dissolve(self, group: BeamGroup) -> None:
        """Let no beam of a search compute any more; those that bear no answer end here, without an event."""
        if group.is_over:
            return
        group.is_over = True
        self._memory.beam_blocks.leave(group)
        for member in group.members:
            if member.status in (SequenceStatus.WAITING, SequenceStatus.RUNNING):
                self._roster.remove(member)
            member.status = SequenceStatus.PARKED
            if self._memory.prefixes is not None:
                self._memory.prefixes.leave(member)
            if not group.bears_answer(member):
                self._endings.finish(member, None, FinishReason.ABORT)
            elif not member.num_in_flight:
                self._memory.tables.release(member)
