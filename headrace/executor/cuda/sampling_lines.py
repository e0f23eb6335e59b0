"""What rows ask of sampling as arrays for the device, and its answers as Samples.

Owns nothing that outlives a step. Called by `executor.cuda`; the drawing itself is `ops.cuda.sampling`.
Rows that the kernels do not draw (typical_p, or kernels that failed to compile) are drawn by the numpy sampler from the
same logits: the same token, a little later.
Invariant: a row's answer depends on its own logits and parameters alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.request import SamplingParams
from headrace.core.step import Row, Sample, ScoredPosition
from headrace.ops.cuda import sampling as ops
from headrace.ops.cuda.sampling import Adjustments, Lines

_GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLines:
    """Lines of logits as `ops.cuda.sampling.Lines`, in host memory, with what adjusts them.

    entries  [4, E] int32: line, id, seen, count; biases [E] fp32
    num_top  the most alternatives that a line asks for; None: no log probabilities
    by_numpy lines that the numpy sampler draws
    """

    floats: NDArray[np.float64]
    ints: NDArray[np.int32]
    entries: NDArray[np.int32]
    biases: NDArray[np.float32]
    num_top: int | None
    by_numpy: tuple[int, ...]

    @property
    def is_plain(self) -> bool:
        """Say whether drawing needs nothing beside the parameters: a recorded graph can do it."""
        return self.num_top is None and not self.entries.shape[1] and not self.by_numpy


def drawn_lines(rows: Sequence[Row | None], *, vocab_size: int) -> HostLines:
    """Describe lines to draw from, one for each row; None: nobody wants this one."""
    floats, ints = _empty(len(rows))
    adjusted: list[NDArray[np.int32]] = []
    biases: list[NDArray[np.float32]] = []
    by_numpy: list[int] = []
    num_top: int | None = None
    for line, row in enumerate(rows):
        params = _GREEDY if row is None or row.sampling is None else row.sampling
        floats[line] = (
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        seed = params.seed % 2**64
        count = 0 if row is None else row.num_output
        words = np.array((seed & 0xFFFFFFFF, seed >> 32, count & 0xFFFFFFFF), np.uint32)
        ints[line] = (*words.view(np.int32), min(params.top_k, vocab_size), -1)
        if row is None or row.sampling is None:
            continue
        if params.logprobs is not None:
            num_top = max(num_top or 0, params.logprobs)
        if params.typical_p < 1.0 and params.temperature > 0.0:
            by_numpy.append(line)
        elif params.needs_history or params.logit_bias or row.banned:
            entry, bias = _adjustment(line, row, params)
            adjusted.append(entry)
            biases.append(bias)
    return HostLines(
        floats=floats,
        ints=ints,
        entries=np.concatenate(adjusted, 1) if adjusted else np.empty((4, 0), np.int32),
        biases=np.concatenate(biases) if biases else np.empty(0, np.float32),
        num_top=num_top,
        by_numpy=tuple(by_numpy),
    )


def scored_lines(targets: Sequence[int], *, num_top: int) -> HostLines:
    """Describe lines whose next token is known."""
    floats, ints = _empty(len(targets))
    ints[:, ops.TARGET] = targets
    return HostLines(
        floats=floats,
        ints=ints,
        entries=np.empty((4, 0), np.int32),
        biases=np.empty(0, np.float32),
        num_top=num_top,
        by_numpy=(),
    )


def device_lines(host: HostLines, sent: Sequence[torch.Tensor]) -> tuple[Lines, Adjustments | None]:
    """Return lines whose arrays (floats, ints, entries, biases) have come to the device."""
    floats, ints, entries, biases = sent
    lines = Lines(floats=floats, ints=ints)
    if not host.entries.shape[1]:
        return lines, None
    line, token, seen, count = entries.unbind()
    return lines, Adjustments(lines=line, ids=token, seen=seen, counts=count, biases=biases)


def arrays(host: HostLines) -> list[NDArray[np.generic]]:
    """Return what `device_lines` wants to be sent."""
    return [host.floats, host.ints, host.entries, host.biases]


def read_sample(line: NDArray[np.float64], row: Row, num_top: int | None) -> Sample | str:
    """Return the sample of a drawn line, or why there is none."""
    status = int(line[ops.OUT_STATUS])
    if status == ops.NOT_FINITE:
        position, peak = row.start + len(row.tokens) - 1, float(line[ops.OUT_PEAK])
        return f"the model's logits are not finite at position {position} (largest is {peak})"
    if status == ops.NOTHING_LEFT:
        return "every token is banned or biased away"
    token = int(line[ops.OUT_TOKEN])
    if row.sampling is None or row.sampling.logprobs is None or num_top is None:
        return Sample(token)
    return Sample(token, float(line[ops.OUT_LOGPROB]), _top(line, num_top, row.sampling.logprobs))


def read_score(line: NDArray[np.float64], token: int, num_top: int, wanted: int) -> ScoredPosition | None:
    """Return a scored line; None where its logits are not finite."""
    if int(line[ops.OUT_STATUS]) != ops.SAMPLED:
        return None
    return ScoredPosition(token, float(line[ops.OUT_LOGPROB]), _top(line, num_top, wanted))


def _top(line: NDArray[np.float64], num_top: int, wanted: int) -> tuple[tuple[int, float], ...]:
    ids = line[ops.OUT_TOP : ops.OUT_TOP + wanted].astype(np.int64).tolist()
    first = ops.OUT_TOP + num_top
    return tuple(zip(ids, line[first : first + wanted].tolist(), strict=True))


def _empty(num_lines: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    return np.zeros((num_lines, ops.NUM_FLOATS), np.float64), np.zeros((num_lines, ops.NUM_INTS), np.int32)


def _adjustment(line: int, row: Row, params: SamplingParams) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return one entry per token that penalties, biases or bans touch: an id stands at most once."""
    history = np.asarray(row.history if params.needs_history and row.history is not None else (), np.int64)
    produced, counts = np.unique(history[row.prompt_len :], return_counts=True)
    biased = np.array([token for token, _ in params.logit_bias], np.int64)
    banned = np.array(row.banned, np.int64)
    ids = np.unique(np.concatenate((history, biased, banned)))
    entry = np.zeros((4, len(ids)), np.int32)
    entry[0], entry[1] = line, ids
    entry[2, np.searchsorted(ids, history)] = params.repetition_penalty != 1.0
    entry[3, np.searchsorted(ids, produced)] = counts
    bias = np.zeros(len(ids), np.float32)
    for token, value in params.logit_bias:
        bias[np.searchsorted(ids, token)] += np.float32(value)
    bias[np.searchsorted(ids, banned)] = -np.inf
    return entry, bias
