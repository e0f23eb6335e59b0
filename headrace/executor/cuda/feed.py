"""`Feed`: rows that were planned ahead of their token get it on the device, from what the step before has drawn.

Owns: the last draw, until the next one. Called by `executor.cuda.executor` once before and once after each step's work
is queued.
Invariant: a token that was drawn on the device goes from one step to the next without the host; one that numpy draws
there (a kernel that failed to compile) is waited for. The token of a failed row is any known one: nobody reads what
follows it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.protocols import Pending
from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult
from headrace.executor.cuda.answers import Draw
from headrace.executor.cuda.device_batch import HostBatch
from headrace.ops.cuda import sampling as ops


class Feed:
    """Brings drawn tokens into the next step. For one thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._lines: dict[SeqId, int] = {}
        self._out: torch.Tensor | None = None
        self._step: Step | None = None
        self._pending: Pending[StepResult] | None = None

    def places(self, step: Step, batch: HostBatch) -> NDArray[np.int32]:
        """Return which packed tokens are drawn already, and the lines of the last draw that have them: [2, n].

        What the host has to tell is put into `batch`. Raises ValueError for a row that is ahead of nothing.
        """
        ahead = [i for i, row in enumerate(step.rows) if row.is_ahead]
        places = np.empty((2, len(ahead)), np.int32)
        if not ahead:
            return places
        places[0] = batch.row_ends[ahead] - 1
        missing = [step.rows[i].seq_id for i in ahead if step.rows[i].seq_id not in self._lines]
        if missing:
            raise ValueError(f"sequence {missing[0]} is ahead of a step that did not sample for it")
        if self._out is None:
            known = self._known()
            batch.tokens[places[0]] = [known[step.rows[i].seq_id] for i in ahead]
            return np.empty((2, 0), np.int32)
        places[1] = [self._lines[step.rows[i].seq_id] for i in ahead]
        return places

    def put(self, tokens: torch.Tensor, places: torch.Tensor) -> None:
        """Write drawn tokens into the packed tokens [T] of a step, at `places` that have come to the device."""
        if places.shape[1]:
            assert self._out is not None
            drawn = self._out[places[1].long(), ops.OUT_TOKEN].clamp(0, self._vocab_size - 1)
            tokens[places[0].long()] = drawn.to(tokens.dtype)

    def keep(self, step: Step, draw: Draw, pending: Pending[StepResult]) -> None:
        """Remember what a step draws for the next one."""
        rows = enumerate(draw.rows)
        self._lines = {row.seq_id: line for line, row in rows if row is not None and row.sampling is not None}
        self._out = None if draw.lines.by_numpy else draw.out
        self._step, self._pending = step, pending

    def _known(self) -> dict[SeqId, int]:
        """Wait for the step before and return its tokens; 0 for a row that failed."""
        assert self._step is not None
        assert self._pending is not None
        samples = self._pending.result().samples
        found = zip(self._step.rows, samples, strict=True)
        return {row.seq_id: 0 if sample is None else sample.token_id for row, sample in found}
