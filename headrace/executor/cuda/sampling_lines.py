"""What rows ask of sampling as arrays for the device, and its answers as Samples.

Owns: the parameters of every sequence that has a line, as numbers, written once: they are the same in all its steps.
Called by `executor.cuda`; the drawing itself is `ops.cuda.sampling`.
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
_NO_ENTRIES, _NO_BIASES = np.empty((4, 0), np.int32), np.empty(0, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLines:
    """Lines of logits as `ops.cuda.sampling.Lines`, in host memory, with what adjusts them.

    floats, ints  of the lines, padded ones included
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

    @property
    def is_greedy(self) -> bool:
        """Say whether no line has a temperature."""
        return not self.floats[:, ops.TEMPERATURE].any()


class SamplingLines:
    """Describes lines of logits to draw from. `num_lines` is that of the block tables, whose lines these are."""

    def __init__(self, num_lines: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._floats, self._ints = empty_lines(num_lines)
        self._is_special = np.zeros(num_lines, np.bool_)
        self._params: list[SamplingParams | None] = [None] * num_lines

    def describe(
        self, rows: Sequence[Row], lines: NDArray[np.int32], floats: NDArray[np.float64], ints: NDArray[np.int32]
    ) -> HostLines:
        """Describe lines to draw from, one for each row, in the first of `floats` and `ints`, which are kept.

        A row without `sampling` is drawn from as well; nobody reads that.
        """
        known, params = self._params, [row.sampling for row in rows]
        for line, given in zip(lines.tolist(), params, strict=True):
            if known[line] is not given:
                self._write(line, given)
        floats[: len(rows)] = self._floats[lines]
        ints[: len(rows)] = self._ints[lines]
        ints[: len(rows), ops.COUNTER] = np.array([row.num_output for row in rows], np.int64)
        if not (self._is_special[lines].any() or [row for row in rows if row.banned]):
            return HostLines(
                floats=floats, ints=ints, entries=_NO_ENTRIES, biases=_NO_BIASES, num_top=None, by_numpy=()
            )
        return self._special(rows, floats, ints)

    def _write(self, line: int, params: SamplingParams | None) -> None:
        self._params[line] = params
        params = _GREEDY if params is None else params
        self._floats[line] = (
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        seed = params.seed % 2**64
        words = np.array((seed & 0xFFFFFFFF, seed >> 32, 0), np.uint32)
        self._ints[line] = (*words.view(np.int32), min(params.top_k, self._vocab_size), -1)
        self._is_special[line] = (
            params.logprobs is not None or params.needs_history or bool(params.logit_bias) or _is_by_numpy(params)
        )

    def _special(self, rows: Sequence[Row], floats: NDArray[np.float64], ints: NDArray[np.int32]) -> HostLines:
        """Describe lines of which some need more than their parameters."""
        adjusted, biases = [_NO_ENTRIES], [_NO_BIASES]
        by_numpy: list[int] = []
        num_top: int | None = None
        for line, row in enumerate(rows):
            params = row.sampling
            if params is None:
                continue
            if params.logprobs is not None:
                num_top = max(num_top or 0, params.logprobs)
            if _is_by_numpy(params):
                by_numpy.append(line)
            elif params.needs_history or params.logit_bias or row.banned:
                entry, bias = _adjustment(line, row, params)
                adjusted.append(entry)
                biases.append(bias)
        return HostLines(
            floats=floats,
            ints=ints,
            entries=np.concatenate(adjusted, 1),
            biases=np.concatenate(biases),
            num_top=num_top,
            by_numpy=tuple(by_numpy),
        )


def scored_lines(targets: Sequence[int], *, num_top: int) -> HostLines:
    """Describe lines whose next token is known."""
    floats, ints = empty_lines(len(targets))
    ints[:, ops.TARGET] = targets
    return HostLines(
        floats=floats,
        ints=ints,
        entries=_NO_ENTRIES,
        biases=_NO_BIASES,
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


def empty_lines(num_lines: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return room for lines; as they are, they are greedy."""
    floats, ints = np.zeros((num_lines, ops.NUM_FLOATS), np.float64), np.zeros((num_lines, ops.NUM_INTS), np.int32)
    ints[:, ops.TARGET] = -1
    return floats, ints


def _is_by_numpy(params: SamplingParams) -> bool:
    return params.typical_p < 1.0 and params.temperature > 0.0


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
