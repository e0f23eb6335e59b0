"""`Feed`: rows that were planned ahead of their token get it on the device, from what the step before has drawn.

Owns: the last draw, until the next one, at an address that never moves, so that recorded graphs write and read it.
Called by `executor.cuda` once before and once after each step's work is queued.
Invariant: a token that was drawn on the device goes from one step to the next without the host; one that numpy draws
there (a kernel that failed to compile) is waited for. The token of a failed row is any known one: nobody reads what
follows it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.protocols import Pending
from headrace.core.request import SeqId
from headrace.core.step import Row, Step, StepResult
from headrace.executor.cuda.answers import Draw
from headrace.ops.cuda import sampling as ops


class Feed:
    """Brings drawn tokens into the next step. For one thread.

    drawn  [N, OUT_TOP] fp64: the first columns of the last draw, for up to N lines
    """

    def __init__(self, device: torch.device, num_lines: int) -> None:
        self.drawn = torch.zeros((num_lines, ops.OUT_TOP), dtype=torch.float64, device=device)
        self._lines: dict[SeqId, int] = {}
        self._has_all = True  # `drawn` holds every token of the last step
        self._step: Step | None = None
        self._pending: Pending[StepResult] | None = None

    def fill(
        self, rows: Sequence[Row], tokens: NDArray[np.int32], ahead: NDArray[np.int32], ends: slice | NDArray[np.int32]
    ) -> None:
        """Say which tokens [T] are drawn already, in `ahead` [T]: the line of `drawn` that has it, else -1.

        ends  place of each row's last token. What the host has to tell is put into `tokens`.
        Raises ValueError for a row that is ahead of nothing.
        """
        ahead[:] = -1
        if True not in [row.is_ahead for row in rows]:
            return
        known = self._lines
        lines = [known.get(row.seq_id, -2) if row.is_ahead else -1 for row in rows]
        if -2 in lines:
            raise ValueError(f"sequence {rows[lines.index(-2)].seq_id} is ahead of a step that did not sample for it")
        if self._has_all:
            ahead[ends] = lines
            return
        drawn = self._known()
        told = [drawn[row.seq_id] if row.is_ahead else -1 for row in rows]
        tokens[ends] = np.where(np.array(told) < 0, tokens[ends], told)

    def keep(self, step: Step, draw: Draw, pending: Pending[StepResult]) -> None:
        """Remember what a step draws for the next one."""
        self._lines = {row.seq_id: line for line, row in enumerate(draw.rows) if row.sampling is not None}
        self._has_all = draw.out is not None and not draw.lines.by_numpy
        if draw.out is not None and draw.lines.num_top is not None:
            self.drawn[: len(draw.out)].copy_(draw.out[:, : ops.OUT_TOP])
        self._step, self._pending = step, pending

    def _known(self) -> dict[SeqId, int]:
        """Wait for the step before and return its tokens; 0 for a row that failed."""
        assert self._step is not None
        assert self._pending is not None
        samples = self._pending.result().samples
        found = zip(self._step.rows, samples, strict=True)
        return {row.seq_id: 0 if sample is None else sample.token_id for row, sample in found}
