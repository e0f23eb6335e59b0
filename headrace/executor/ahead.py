"""`Ahead`: gives rows that were made before their token was known the token that the step before has sampled.

Owns: the last step and its result. For executors that do their work when the result is asked, so that the step before
has always ended: there the token is on the host. Called once before and once after each step, in launch order.
"""

from __future__ import annotations

import msgspec

from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult


class Ahead:
    """Fills in the tokens of rows that are ahead. Memory: one step and its result."""

    def __init__(self) -> None:
        self._last: tuple[Step, StepResult] | None = None

    def fill(self, step: Step) -> Step:
        """Return the step with all its tokens known. A row whose sequence has failed keeps its 0, for nothing.

        Raises ValueError if the step before has no such row: a bug of the scheduler.
        """
        if not any(row.is_ahead for row in step.rows):
            return step
        sampled: dict[SeqId, int | None] = {}
        if self._last is not None:
            before, result = self._last
            samples = zip(before.rows, result.samples, strict=True)
            sampled = {row.seq_id: None if sample is None else sample.token_id for row, sample in samples}
        rows = list(step.rows)
        for i, row in enumerate(rows):
            if not row.is_ahead:
                continue
            if row.seq_id not in sampled:
                raise ValueError(f"sequence {row.seq_id} is ahead of a step that it was not in")
            if (token_id := sampled[row.seq_id]) is not None:
                rows[i] = msgspec.structs.replace(row, tokens=(token_id,))
        return msgspec.structs.replace(step, rows=tuple(rows))

    def note(self, step: Step, result: StepResult) -> StepResult:
        """Keep what a step has brought for the next one; return it."""
        self._last = step, result
        return result
