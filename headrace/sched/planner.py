"""The rows of the next step: one token of each sequence that decodes, then chunks of prompts.

Owns: how far each sequence is computed, counted from the moment its row is planned, and the counts of prompt tokens
computed for the first time and again. Called by the scheduler and its entrance, with the plan that they fill.
Running sequences come in order of admission, so decoding keeps its rhythm; one that cannot grow sits the step out.
While a step runs, those that it samples for may be planned ahead of their token: see `overlap`.
Source: the single token counter, which knows no prefill phase, follows vLLM's V1 scheduler.
"""

from __future__ import annotations

from headrace.core.step import Row
from headrace.sched.budget import StepBudget, StepPlan
from headrace.sched.limits import SchedulerTotals
from headrace.sched.overlap import can_run_ahead
from headrace.sched.room import Room
from headrace.sched.rows import make_ahead_row, make_row
from headrace.sched.sequence import Sequence, SequenceStatus


class Planner:
    """Fills plans with rows."""

    def __init__(self, budget: StepBudget, room: Room, totals: SchedulerTotals) -> None:
        self._budget = budget
        self._room = room
        self._totals = totals

    def advance(self, running: list[Sequence], plan: StepPlan) -> None:
        """Put the running sequences into the plan: those that decode, then the rest of the prompts."""
        rows, members, budget = plan.rows, plan.members, plan.budget
        prompts: list[tuple[Sequence, int]] = []
        index = num_rows = num_reads = 0
        while budget and index < len(running):  # it shrinks from the end while sequences are preempted
            sequence = running[index]
            index += 1
            start = sequence.num_computed
            count = len(sequence.tokens) - start
            if count > 1:
                prompts.append((sequence, index))
                continue
            is_known = count == 1
            if not (is_known or (plan.is_ahead and can_run_ahead(sequence))):
                continue  # without tokens to compute, its next one is in flight
            if start >= sequence.capacity and not self._room.grow(sequence, running, index):
                continue
            budget -= 1
            num_rows += 1
            num_reads += start if start < sequence.num_seen else sequence.num_seen
            members.append(sequence)
            if is_known:
                rows.append(self._plan(sequence, start, 1))
                continue
            rows.append(make_ahead_row(sequence, start))
            sequence.num_computed = sequence.peak_computed = start + 1
            sequence.num_in_flight += 1
        plan.budget = budget
        plan.shape.num_rows += num_rows
        plan.shape.num_reads += num_reads
        for sequence, index in prompts:
            if sequence.status is not SequenceStatus.RUNNING:
                continue  # an older prompt needed its blocks, as a window moved on
            if sequence.num_computed + 1 > sequence.capacity and not self._room.grow(sequence, running, index):
                continue
            self.add_chunk(sequence, plan)

    def add_chunk(self, sequence: Sequence, plan: StepPlan) -> None:
        """Put as much of a prompt into the plan as the step has room for."""
        start = sequence.num_computed
        count = min(len(sequence.tokens), sequence.capacity) - start
        num_seen = min(start, sequence.num_seen)
        count = min(count, self._budget.chunk_room(plan.shape, plan.budget, num_seen))
        if count > 0:
            plan.budget -= count
            plan.shape.add(num_seen, count)
            plan.rows.append(self._plan(sequence, start, count))
            plan.members.append(sequence)

    def _plan(self, sequence: Sequence, start: int, count: int) -> Row:
        """Make the row that computes `count` tokens from `start`, and take them as computed from now on."""
        row = make_row(sequence, start, count)
        end = start + count
        if start < sequence.peak_computed or start < sequence.prompt_len:
            self._book(sequence, start, end)
        else:
            sequence.peak_computed = end
        sequence.num_computed = end
        sequence.num_in_flight += 1
        return row

    def _book(self, sequence: Sequence, start: int, end: int) -> None:
        """Count computed tokens as new prompt, or as the tax of preemption."""
        peak = sequence.peak_computed
        self._totals.recomputed_tokens += max(0, min(end, peak) - start)
        self._totals.prompt_tokens += max(0, min(end, sequence.prompt_len) - max(start, peak))
        sequence.peak_computed = max(end, peak)
