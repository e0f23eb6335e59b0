"""What the result of a step means for the sequences of its rows.

Owns: `num_in_flight` downwards, the scores of prompts, and the count of generated tokens. Called by the scheduler once
per step, in the order in which they were launched.
A row whose sequence has left the running ones meanwhile says nothing any more; if it was the last that read the blocks,
they are freed here. A failed row ends its sequence, or the search it belongs to, and nobody else.
"""

from __future__ import annotations

from headrace.core.delta import FinishReason
from headrace.core.step import Step, StepResult
from headrace.sched.beams import BeamGroup
from headrace.sched.endings import Endings
from headrace.sched.limits import SchedulerTotals
from headrace.sched.memory import Memory
from headrace.sched.roster import Roster
from headrace.sched.searches import Searches
from headrace.sched.sequence import Sequence, SequenceEvent, SequenceStatus


class Results:
    """Takes results in, row by row."""

    def __init__(
        self, roster: Roster, memory: Memory, endings: Endings, searches: Searches, totals: SchedulerTotals
    ) -> None:
        self._roster = roster
        self._memory = memory
        self._endings = endings
        self._searches = searches
        self._totals = totals

    def take(self, step: Step, members: list[Sequence], result: StepResult, now: float) -> list[SequenceEvent]:
        """Apply the result of a step to the sequences of its rows; return what happened, in row order."""
        events: list[SequenceEvent] = []
        failures, rows = result.failures, step.rows
        has_scores = bool(result.scored)
        searches: dict[int, BeamGroup] = {}
        num_finished = num_tokens = 0
        for index, sequence in enumerate(members):
            sequence.num_in_flight -= 1
            if sequence.status is not SequenceStatus.RUNNING:
                if not sequence.num_in_flight:
                    self._memory.tables.release(sequence)
                continue
            if has_scores and (scores := result.scored[index]):
                sequence.scored.extend(scores)
                sequence.num_scored += len(scores)
            if failures and sequence.seq_id in failures:
                self._memory.withdraw(sequence)
                error = failures[sequence.seq_id]
                if (group := sequence.beams) is not None:
                    events += self._searches.end(group, FinishReason.ERROR, error)
                    continue
                events.append(self._endings.finish(sequence, None, FinishReason.ERROR, error=error))
                num_finished += 1
                continue
            if sequence.num_computed >= sequence.next_publish:
                self._memory.publish(sequence, rows[index])
            if (sample := result.samples[index]) is not None:
                num_tokens += 1
                if (group := sequence.beams) is not None:
                    group.offer(sequence, sample)
                    searches[id(group)] = group
                    continue
                event = self._endings.extend(sequence, sample, now)
            elif not (sequence.max_tokens or sequence.num_in_flight) and sequence.num_computed >= sequence.prompt_len:
                event = self._endings.finish(sequence, None, FinishReason.LENGTH)
            else:
                continue
            events.append(event)
            num_finished += event.finish is not None
        for group in searches.values():
            if group.is_ready and not group.is_over:
                events += self._searches.go_on(group, now)
        if num_finished:
            self._roster.drop_ended()
        self._totals.generated_tokens += num_tokens
        return events
