"""`StepArrays`: Steps written into preallocated arrays that the native interpreter reads, and its results read back.

Owns the arrays of one executor; a fill is valid until the next one. What changes rarely is written rarely: each
sequence has an entry, a line of the block tables and of the sampling parameters, rewritten only when it differs.
Invariant: entries hold what the last Step said of their sequence; a sequence that is not in a Step may lose its entry.
Cost: under a microsecond per row that only decodes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Sample, ScoredPosition, Step
from headrace.ops.native.step import NOTHING_LEFT, ROW, SAMPLE, SAMPLED, SAMPLING, SCORE, UNKNOWN_TOKEN, StepIn

_PACK_ROW = struct.Struct("=12i2q")
assert _PACK_ROW.size == ROW.itemsize


@dataclass(slots=True)
class _Entry:
    """One sequence's line in the tables."""

    index: int
    blocks: tuple[int, ...] = ()
    sampling: SamplingParams | None = None


class StepArrays:
    """Converts Steps of at most `max_tokens` tokens. For one thread."""

    def __init__(
        self, *, max_tokens: int, num_blocks: int, block_size: int, max_positions: int, vocab_size: int
    ) -> None:
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._capacity = max(2 * max_tokens, 64)
        self._max_tokens = max_tokens
        self._entries: dict[SeqId, _Entry] = {}
        self._free = list(range(self._capacity - 1, -1, -1))
        width = min(num_blocks, -(-(max_positions + max_tokens) // block_size)) + 2
        self._tables = np.zeros((self._capacity, width), np.int32)
        self._samplings = np.zeros(self._capacity, SAMPLING)
        self._rows = np.zeros(max_tokens, ROW)
        self._row_bytes = self._rows.view(np.uint8).data.cast("B")
        self._tokens = np.zeros(max_tokens, np.int32)
        self._samples = np.zeros(max_tokens, SAMPLE)
        self._scores = np.zeros(0, SCORE)
        self._scored = np.zeros(0, SAMPLE)
        self._ids = np.zeros(1, np.int32)
        self._bias_ids = np.zeros(1, np.int32)
        self._bias_values = np.zeros(1, np.float32)
        self._has_extras = False
        self._in = StepIn()
        self._point()

    def fill(self, step: Step) -> StepIn:
        """Write a Step into the arrays. Raises ValueError where it cannot be run: a bug of the scheduler."""
        tokens: list[int] = []
        ids: list[int] = []
        biased: list[tuple[int, SamplingParams]] = []
        entries, buffer, at = self._entries, self._row_bytes, 0
        self._check(step)
        has_extras = False
        for row in step.rows:
            entry = entries.get(row.seq_id)
            if entry is None:
                entry = self._add(row.seq_id, step)
            if entry.blocks is not row.blocks and entry.blocks != row.blocks:
                self._set_blocks(entry, row.blocks)
            sampling = row.sampling
            if sampling is not None:
                if sampling is not entry.sampling:
                    self._set_sampling(entry, sampling)
                if sampling.logprobs is not None:
                    has_extras = True
                if sampling.logit_bias:
                    biased.append((entry.index, sampling))
            reach = row.reach
            num_history = num_banned = history_at = banned_at = 0
            if row.history is not None and sampling is not None and sampling.needs_history:
                history_at, num_history = len(ids), len(row.history)
                ids.extend(row.history)
            if row.banned:
                banned_at, num_banned = len(ids), len(row.banned)
                ids.extend(row.banned)
            if row.score:
                has_extras = True
            tokens.extend(row.tokens)
            _PACK_ROW.pack_into(
                buffer,
                at,
                len(row.tokens),
                row.start,
                entry.index,
                row.num_output,
                sampling is not None,
                num_history,
                row.prompt_len,
                num_banned,
                0 if reach is None else reach.window,
                0 if reach is None else reach.num_sinks,
                row.num_evicted,
                0,
                history_at,
                banned_at,
            )
            at += _PACK_ROW.size
        self._tokens[: len(tokens)] = tokens
        self._has_extras = has_extras
        must_point = False
        if ids:
            self._ids, must_point = np.array(ids, np.int32), True
        if biased:
            self._set_biases(biased)
            must_point = True
        num_scores = self._set_scores(step) if has_extras else 0
        if must_point or has_extras:
            self._point()
        step_in = self._in
        step_in.num_rows, step_in.num_tokens, step_in.num_scores = len(step.rows), len(tokens), num_scores
        return step_in

    def results(
        self, step: Step
    ) -> tuple[tuple[Sample | None, ...], tuple[tuple[ScoredPosition, ...], ...], dict[SeqId, str]]:
        """Read back (samples, scored, failures) of the Step that was filled last and has run."""
        rows, out = step.rows, self._samples[: len(step.rows)]
        failures: dict[SeqId, str] = {}
        if not self._has_extras and not out["status"].any():
            drawn = out["token"].tolist()
            samples = tuple(
                Sample(token) if row.sampling is not None else None for token, row in zip(drawn, rows, strict=True)
            )
            return samples, ((),) * len(rows), failures
        scored = self._read_scores(step, failures)
        listed: list[Sample | None] = []
        for i, row in enumerate(rows):
            record = out[i]
            if int(record["status"]) != SAMPLED:
                failures.setdefault(row.seq_id, self._reason(record, row))
            is_drawn = row.sampling is not None and row.seq_id not in failures
            listed.append(_sample(record, row) if is_drawn else None)
        kept = tuple(() if row.seq_id in failures else tuple(scored[i]) for i, row in enumerate(rows))
        return tuple(listed), kept, failures

    def _check(self, step: Step) -> None:
        """Refuse steps that are too long, and rows without room."""
        num_tokens = 0
        for i, row in enumerate(step.rows):
            count = len(row.tokens)
            num_tokens += count
            if count < 1 or (len(row.blocks) + row.num_evicted) * self._block_size < row.start + count:
                raise ValueError(
                    f"row {i} (sequence {row.seq_id}): {count} tokens ending at position {row.start + count - 1} "
                    f"in {len(row.blocks)} blocks of {self._block_size}"
                )
        if num_tokens > self._max_tokens:
            raise ValueError(f"a step of {num_tokens} tokens; this executor was made for at most {self._max_tokens}")

    def _point(self) -> None:
        """Write the arrays' addresses into the step struct."""
        step_in = self._in
        step_in.table_width = self._tables.shape[1]
        for name in StepIn._fields_[4:-1]:
            array: np.ndarray = getattr(self, f"_{name[0]}" if name[0] != "block_tables" else "_tables")
            setattr(step_in, name[0], array.ctypes.data)

    def _add(self, seq_id: SeqId, step: Step) -> _Entry:
        """Give a new sequence an entry; sequences that are not in this Step make room if need be."""
        if not self._free:
            present = {row.seq_id for row in step.rows}
            for old in [known for known in self._entries if known not in present]:
                self._free.append(self._entries.pop(old).index)
        entry = _Entry(self._free.pop())
        self._entries[seq_id] = entry
        return entry

    def _set_blocks(self, entry: _Entry, blocks: tuple[int, ...]) -> None:
        """Rewrite a sequence's block table."""
        if len(blocks) > self._tables.shape[1]:
            wider = np.zeros((self._capacity, 2 * len(blocks)), np.int32)
            wider[:, : self._tables.shape[1]] = self._tables
            self._tables = wider
            self._point()
        self._tables[entry.index, : len(blocks)] = blocks
        entry.blocks = blocks

    def _set_sampling(self, entry: _Entry, params: SamplingParams) -> None:
        """Rewrite a sequence's sampling parameters."""
        self._samplings[entry.index] = sampling_record(params, self._vocab_size)
        entry.sampling = params

    def _set_biases(self, biased: list[tuple[int, SamplingParams]]) -> None:
        """Lay the logit biases of this Step behind each other."""
        pairs: list[tuple[int, float]] = []
        for index, params in biased:
            self._samplings["bias_at"][index] = len(pairs)
            pairs.extend(params.logit_bias)
        self._bias_ids = np.array([token for token, _ in pairs], np.int32)
        self._bias_values = np.array([value for _, value in pairs], np.float32)

    def _set_scores(self, step: Step) -> int:
        """List the scored positions; return how many."""
        lines: list[tuple[int, int, int, int]] = []
        first = 0
        for row in step.rows:
            for offset, target in row.score:
                if not 0 <= offset < len(row.tokens):
                    raise ValueError(f"sequence {row.seq_id} scores offset {offset} of {len(row.tokens)} tokens")
                lines.append((first + offset, target, row.num_score_top, 0))
            first += len(row.tokens)
        self._scores = np.array(lines, SCORE)
        self._scored = np.zeros(max(len(lines), 1), SAMPLE)
        return len(lines)

    def _read_scores(self, step: Step, failures: dict[SeqId, str]) -> list[list[ScoredPosition]]:
        """Return the scored positions row by row; rows that cannot be scored go to `failures`."""
        scored: list[list[ScoredPosition]] = [[] for _ in step.rows]
        at = 0
        for i, row in enumerate(step.rows):
            for _, target in row.score:
                record = self._scored[at]
                at += 1
                if int(record["status"]) == UNKNOWN_TOKEN:
                    failures.setdefault(row.seq_id, f"scored token id {target} is outside the vocabulary")
                elif int(record["status"]) != SAMPLED:
                    failures.setdefault(row.seq_id, "the model's logits are not finite at a scored position")
                else:
                    scored[i].append(ScoredPosition(target, float(record["logprob"]), _top(record)))
        return scored

    def _reason(self, record: np.void, row: Row) -> str:
        """Say why a row failed."""
        status = int(record["status"])
        if status == UNKNOWN_TOKEN:
            return f"token id {record['token']} is outside the model's vocabulary of {self._vocab_size:,}"
        if status == NOTHING_LEFT:
            return "every token is banned or biased away"
        position = row.start + len(row.tokens) - 1
        return f"the model's logits are not finite at position {position} (largest is {float(record['peak'])})"


def sampling_record(params: SamplingParams, vocab_size: int) -> NDArray[np.void]:
    """Return sampling parameters as the native sampler reads them; the place of the biases is left 0."""
    values = (
        params.temperature,
        params.top_p,
        params.min_p,
        params.typical_p,
        params.seed % 2**64,
        params.repetition_penalty,
        params.frequency_penalty,
        params.presence_penalty,
        min(params.top_k, vocab_size),
        -1 if params.logprobs is None else params.logprobs,
        len(params.logit_bias),
        0,
    )
    return np.array(values, SAMPLING)


def _sample(record: np.void, row: Row) -> Sample:
    """Return the sample of a row that asked for one."""
    token = int(record["token"])
    if row.sampling is None or row.sampling.logprobs is None:
        return Sample(token)
    return Sample(token, float(record["logprob"]), _top(record))


def _top(record: np.void) -> tuple[tuple[int, float], ...]:
    """Return the best alternatives."""
    count = int(record["num_top"])
    return tuple(zip(record["top_ids"][:count].tolist(), record["top_logprobs"][:count].tolist(), strict=True))
