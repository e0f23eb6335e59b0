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
from headrace.sampling import sample_rows, score_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Lines that were drawn from, one for each of `rows`; None: a padded line, or a row that samples nothing.

    out     [R, …] fp64 as `ops.cuda.sampling.try_draw` returns it; None: numpy draws all lines
    logits  [R, V] where numpy draws some
    """

    out: torch.Tensor | None
    logits: torch.Tensor | None
    lines: HostLines
    rows: tuple[Row | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Lines whose next token is known: `places` are (row, token) of each."""

    out: torch.Tensor | None
    logits: torch.Tensor | None
    num_top: int
    places: tuple[tuple[int, int], ...]


def landing(tensor: torch.Tensor) -> torch.Tensor:
    """Return host memory that a tensor is being copied to, behind the work that makes it: read it after a mark."""
    if not tensor.is_cuda:
        return tensor.clone()
    landed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return landed.copy_(tensor, non_blocking=True)


def landing_draw(draw: Draw) -> Draw:
    """Return a draw whose numbers are on their way to the host."""
    out, logits = (None if tensor is None else landing(tensor) for tensor in (draw.out, draw.logits))
    return Draw(out=out, logits=logits, lines=draw.lines, rows=draw.rows)


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
    failures: dict[SeqId, str] = {
        step.rows[row].seq_id: f"token id {token} is outside the model's vocabulary of {vocab_size:,}"
        for row, token in unknown.items()
    }
    drawn = read_draw(draw)
    by_row: dict[SeqId, Sample | str] = {
        row.seq_id: sample
        for row, sample in zip(draw.rows, drawn, strict=True)
        if row is not None and row.sampling is not None
    }
    for seq_id, sample in by_row.items():
        if isinstance(sample, str):
            failures.setdefault(seq_id, sample)
    scored = _read_scores(step, scores, failures, vocab_size)
    samples: list[Sample | None] = []
    for row in step.rows:
        found = by_row.get(row.seq_id)
        samples.append(found if isinstance(found, Sample) and row.seq_id not in failures else None)
    return StepResult(
        step_id=step.step_id,
        samples=tuple(samples),
        scored=tuple(
            () if row.seq_id in failures else tuple(found) for row, found in zip(step.rows, scored, strict=True)
        ),
        failures=failures,
        elapsed_s=elapsed_s,
    )


def read_draw(draw: Draw) -> list[Sample | str]:
    """Return what was drawn from each line, or why nothing was."""
    lines: NDArray[np.float64] | None = None if draw.out is None else draw.out.numpy()
    logits: NDArray[np.float32] | None = None if draw.logits is None else draw.logits.numpy()
    found: list[Sample | str] = []
    for i, row in enumerate(draw.rows):
        if row is None or row.sampling is None:
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
