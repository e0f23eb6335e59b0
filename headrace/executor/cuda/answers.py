"""From what a step drew on the device to its StepResult: one small copy back, waited for only when it is read.

Owns the host memory of a step's answers until they are read. Called by `executor.cuda.executor`.
Invariant: a row is read from its own line; rows that failed are named with a reason, the others stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.request import SeqId
from headrace.core.step import Row, Sample, ScoredPosition, Step, StepResult
from headrace.executor.cuda.sampling_lines import HostLines, read_sample, read_score
from headrace.ops.cuda import sampling as ops
from headrace.sampling import sample_rows, score_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Lines that were drawn from, one for each of `rows`; nobody reads that of a row without `sampling`.

    out     [R, …] fp64 as `ops.cuda.sampling.try_draw` returns it; None: numpy draws all lines
    logits  [R, V] where numpy draws some
    """

    out: torch.Tensor | None
    logits: torch.Tensor | None
    lines: HostLines
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Lines whose next token is known: `places` are (row, token) of each."""

    out: torch.Tensor | None
    logits: torch.Tensor | None
    num_top: int
    places: tuple[tuple[int, int], ...]


class Landings:
    """Host memory for the answers of steps on their way, used again once they are read. For one thread.

    Memory: as many lines as a step may draw, for each step on its way.
    """

    def __init__(self, num_lines: int, *, is_pinned: bool) -> None:
        self._num_lines, self._is_pinned = num_lines, is_pinned
        self._free: list[torch.Tensor] = []

    def land(self, draw: Draw) -> tuple[Draw, torch.Tensor | None]:
        """Return a draw whose numbers are on their way to the host, and what to `give_back` when they are read."""
        out, logits = draw.out, None if draw.logits is None else landing(draw.logits)
        if out is None or draw.lines.num_top is not None:
            out = None if out is None else landing(out)
            return Draw(out=out, logits=logits, lines=draw.lines, rows=draw.rows), None
        held = self._free.pop() if self._free else self._make()
        landed = held[: len(out)].copy_(out, non_blocking=True)
        return Draw(out=landed, logits=logits, lines=draw.lines, rows=draw.rows), held

    def give_back(self, held: torch.Tensor | None) -> None:
        """Let memory be used again."""
        if held is not None:
            self._free.append(held)

    def _make(self) -> torch.Tensor:
        return torch.empty((self._num_lines, ops.OUT_TOP), dtype=torch.float64, pin_memory=self._is_pinned)


def landing(tensor: torch.Tensor) -> torch.Tensor:
    """Return host memory that a tensor is being copied to, behind the work that makes it: read it after a mark."""
    if not tensor.is_cuda:
        return tensor.clone()
    landed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return landed.copy_(tensor, non_blocking=True)


def read_step(
    step: Step,
    unknown: Mapping[int, int],
    draw: Draw,
    scores: Sequence[Scores],
    *,
    vocab_size: int,
    elapsed_s: float,
) -> StepResult:
    """Return a step's result from answers that have come.

    unknown    rows that hold a token id outside the vocabulary, and the id
    elapsed_s  the device's time for the step
    """
    if not (unknown or scores) and (samples := _read_plain(step, draw)) is not None:
        return StepResult(step_id=step.step_id, samples=samples, elapsed_s=elapsed_s)
    failures: dict[SeqId, str] = {
        step.rows[row].seq_id: f"token id {token} is outside the model's vocabulary of {vocab_size:,}"
        for row, token in unknown.items()
    }
    drawn = zip(draw.rows, read_draw(draw), strict=True)
    by_row = {row.seq_id: sample for row, sample in drawn if row.sampling is not None}
    for seq_id, sample in by_row.items():
        if isinstance(sample, str):
            failures.setdefault(seq_id, sample)
    scored = _read_scores(step, scores, failures, vocab_size)
    kept: list[Sample | None] = []
    for row in step.rows:
        found = by_row.get(row.seq_id)
        kept.append(found if isinstance(found, Sample) and row.seq_id not in failures else None)
    return StepResult(
        step_id=step.step_id,
        samples=tuple(kept),
        scored=tuple(
            () if row.seq_id in failures else tuple(found) for row, found in zip(step.rows, scored, strict=True)
        ),
        failures=failures,
        elapsed_s=elapsed_s,
    )


def _read_plain(step: Step, draw: Draw) -> tuple[Sample | None, ...] | None:
    """Return the samples of single tokens, if nothing else was asked for and no row failed; else None."""
    if draw.out is None or not draw.lines.is_plain or draw.rows is not step.rows:
        return None
    lines: NDArray[np.float64] = draw.out.numpy()[: len(draw.rows)]
    if lines[:, ops.OUT_STATUS].any():
        return None
    tokens: list[int] = lines[:, ops.OUT_TOKEN].astype(np.int64).tolist()
    if None not in [row.sampling for row in step.rows]:
        return tuple(map(Sample, tokens))
    return tuple(
        [None if row.sampling is None else Sample(token) for token, row in zip(tokens, step.rows, strict=True)]
    )


def read_draw(draw: Draw) -> list[Sample | str]:
    """Return what was drawn from each line, or why nothing was."""
    lines: NDArray[np.float64] | None = None if draw.out is None else draw.out.numpy()
    logits: NDArray[np.float32] | None = None if draw.logits is None else draw.logits.numpy()
    found: list[Sample | str] = []
    for i, row in enumerate(draw.rows):
        if row.sampling is None:
            found.append("nobody asked for a token")
        elif lines is None or i in draw.lines.by_numpy:
            assert logits is not None
            found.append(sample_rows(logits[i : i + 1], [row])[0])
        else:
            found.append(read_sample(lines[i], row, draw.lines.num_top))
    return found


def _read_scores(
    step: Step, scores: Sequence[Scores], failures: dict[SeqId, str], vocab_size: int
) -> list[list[ScoredPosition]]:
    """Return the scored positions row by row; rows that cannot be scored go to `failures`."""
    scored: list[list[ScoredPosition]] = [[] for _ in step.rows]
    for row in step.rows:
        for _, token in row.score:
            if not 0 <= token < vocab_size:
                failures.setdefault(row.seq_id, f"scored token id {token} is outside the vocabulary")
    for part in scores:
        for line, (i, token) in enumerate(part.places):
            wanted = step.rows[i].num_score_top
            position = read_line(part, line, token, wanted)
            if position is None:
                failures.setdefault(step.rows[i].seq_id, "the model's logits are not finite at a scored position")
            else:
                scored[i].append(position)
    return scored


def read_line(scores: Scores, line: int, token: int, wanted: int) -> ScoredPosition | None:
    """Return one scored line; None where its logits are not finite."""
    if scores.out is not None:
        return read_score(scores.out[line].numpy(), token, scores.num_top, wanted)
    assert scores.logits is not None
    logits: NDArray[np.float32] = scores.logits[line].numpy()
    return score_token(logits, token, wanted) if np.isfinite(logits).all() else None
