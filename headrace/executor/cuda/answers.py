"""From what a step drew on the device to its StepResult: one small copy back, waited for only when it is read.

Owns the host memory of a step's answers until they are read. Called by `executor.cuda.executor`.
Invariant: a row is read from its own line; rows that failed are named with a reason, the others stand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """A step's answers on their way to the host; `wait` returns once they are there."""

    draw: Draw
    scores: tuple[Scores, ...]
    wait: Callable[[], None]


def start_copies(draw: Draw, scores: list[Scores]) -> Answers:
    """Queue the copies to the host behind the work that makes them."""
    made = [draw.out, draw.logits, *(s.out for s in scores), *(s.logits for s in scores)]
    is_gpu = any(tensor is not None and tensor.is_cuda for tensor in made)
    here = Draw(out=_landing(draw.out), logits=_landing(draw.logits), lines=draw.lines, rows=draw.rows)
    there = tuple(
        Scores(out=_landing(s.out), logits=_landing(s.logits), num_top=s.num_top, places=s.places) for s in scores
    )
    if not is_gpu:
        return Answers(draw=here, scores=there, wait=lambda: None)
    event = torch.cuda.Event()
    event.record()
    return Answers(draw=here, scores=there, wait=event.synchronize)


def _landing(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Return host memory that a tensor is being copied to."""
    if tensor is None or not tensor.is_cuda:
        return tensor
    landed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return landed.copy_(tensor, non_blocking=True)


def read_step(
    step: Step, unknown: Mapping[int, int], answers: Answers, *, vocab_size: int, started: float
) -> StepResult:
    """Wait for a step's answers and return its result.

    unknown  rows that hold a token id outside the vocabulary, and the id
    started  when the step was launched, by `time.perf_counter`
    """
    answers.wait()
    failures: dict[SeqId, str] = {
        step.rows[row].seq_id: f"token id {token} is outside the model's vocabulary of {vocab_size:,}"
        for row, token in unknown.items()
    }
    drawn = read_draw(answers.draw)
    by_row: dict[SeqId, Sample | str] = {
        row.seq_id: sample
        for row, sample in zip(answers.draw.rows, drawn, strict=True)
        if row is not None and row.sampling is not None
    }
    for seq_id, sample in by_row.items():
        if isinstance(sample, str):
            failures.setdefault(seq_id, sample)
    scored = _read_scores(step, answers.scores, failures, vocab_size)
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
        elapsed_s=time.perf_counter() - started,
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
    step: Step, scores: tuple[Scores, ...], failures: dict[SeqId, str], vocab_size: int
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
