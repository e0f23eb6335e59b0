"""A model whose every token is a hash of all tokens before it, read back through the block tables.

Owns a fake KV store: the token id that was last written to each slot. A row's next token is computed from what its
block table finds there, not from what the row says, so a wrong table, a block freed too early, a skipped position,
two sequences in one block or a block copied late or from the wrong place give a different token. `next_token` is the
same function without a store: the answer alone.
Implements `core.protocols.Executor`. The next tokens are spread evenly over the vocabulary.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence

from headrace.core.protocols import HostMemory
from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.step import BlockCopy, CopyKind, Row, Sample, ScoredPosition, Step, StepResult

_MAX_PENDING = 2
TOKEN_BYTES = 8  # of a token in a host slot


def next_token(history: Sequence[int], sampling: SamplingParams, vocab_size: int, banned: Sequence[int] = ()) -> int:
    """Return the token that follows `history` [L]; the next higher one, cyclically, if it is banned."""
    token_id = _digest(history, sampling.seed) % vocab_size
    while token_id in banned:
        token_id = (token_id + 1) % vocab_size
    return token_id


def seen_positions(length: int, reach: Reach | None) -> list[int]:
    """Return the positions that the last of `length` tokens attends to."""
    if reach is None or length <= reach.num_seen:
        return list(range(length))
    return [*range(reach.num_sinks), *range(length - reach.window, length)]


def token_logprob(history: Sequence[int], token_id: int) -> float:
    """Return a made-up log probability of `token_id` after `history`, between -8 and 0."""
    return -(_digest(history, token_id) % 8000) / 1000


def _digest(history: Sequence[int], salt: int) -> int:
    return zlib.crc32(array("q", history).tobytes(), salt & 0xFFFFFFFF)


class UniformModel:
    """Runs steps on a fake KV store. `fail_row` may name a reason to fail a row, `on_step` may raise."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        fail_row: Callable[[Row], str | None] = lambda row: None,
        on_step: Callable[[Step], None] = lambda step: None,
        host: HostMemory | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.is_shut_down = False
        self._vocab_size = vocab_size
        self._fail_row = fail_row
        self._on_step = on_step
        self._host = host
        self._slots: list[int | None] = [None] * (num_blocks * block_size)
        self._pending: list[Step] = []
        self._sampled: dict[SeqId, int | None] = {}  # by the step that ran last; None: its row failed

    @property
    def num_pending(self) -> int:
        """Count the steps that are launched and not run."""
        return len(self._pending)

    def launch(self, step: Step) -> _PendingStep:
        """Start a step; its work is done when the result is asked for."""
        if self.num_pending >= _MAX_PENDING:
            raise RuntimeError(f"step {step.step_id} launched with {self.num_pending} steps pending")
        self._check_writes(step)
        self._pending.append(step)
        return _PendingStep(self, step)

    def shutdown(self) -> None:
        """Forget the store."""
        self.is_shut_down = True
        self._slots.clear()

    def run(self, step: Step) -> StepResult:
        """Write all rows to the store, then read each history back and sample."""
        self._pending.remove(step)
        self._on_step(step)
        for copy in step.copies:
            self._copy(copy)
        for row in step.rows:
            if row.is_ahead and row.seq_id not in self._sampled:
                raise RuntimeError(f"sequence {row.seq_id} is ahead of a step that it was not in")
            tokens = (self._sampled[row.seq_id],) if row.is_ahead else row.tokens
            for position, token_id in enumerate(tokens, row.start):
                self._slots[self._slot(row, position)] = token_id
        samples: list[Sample | None] = []
        scored: list[tuple[ScoredPosition, ...]] = []
        failures: dict[SeqId, str] = {}
        for row in step.rows:
            reason = self._fail_row(row)
            if reason is not None:
                failures[row.seq_id] = reason
            samples.append(self._sample(row) if reason is None else None)
            scored.append(tuple(self._score(row, offset, token_id) for offset, token_id in row.score))
        found = zip(step.rows, samples, strict=True)
        self._sampled = {row.seq_id: None if sample is None else sample.token_id for row, sample in found}
        return StepResult(step.step_id, tuple(samples), tuple(scored) if any(scored) else (), failures, 1e-3)

    def _check_writes(self, step: Step) -> None:
        """Raise RuntimeError if a row writes to a block that another sequence names, here or in a pending step."""
        rows = [row for earlier in (*self._pending, step) for row in earlier.rows]
        users: dict[int, set[SeqId]] = {}
        for row in rows:
            for block in row.blocks:
                users.setdefault(block, set()).add(row.seq_id)
        for row in rows:
            first, last = (
                position // self.block_size - row.num_evicted
                for position in (row.start, row.start + len(row.tokens) - 1)
            )
            for block in row.blocks[first : last + 1]:
                if len(users[block]) > 1:
                    others = sorted(users[block] - {row.seq_id})
                    raise RuntimeError(f"sequence {row.seq_id} writes to block {block} of sequence {others[0]}")

    def _copy(self, copy: BlockCopy) -> None:
        """Copy a block's tokens; a host slot holds `TOKEN_BYTES` for each, -1 where nothing was written."""
        if copy.kind is CopyKind.LOAD:
            found = [None if token_id < 0 else token_id for token_id in self._host_tokens(copy.source)]
        else:
            found = self._slots[copy.source * self.block_size : (copy.source + 1) * self.block_size]
        if copy.kind is CopyKind.SAVE:
            view = self._host_tokens(copy.target)
            for offset, token_id in enumerate(found):
                view[offset] = -1 if token_id is None else token_id
        else:
            self._slots[copy.target * self.block_size : (copy.target + 1) * self.block_size] = found

    def _host_tokens(self, slot: int) -> memoryview:
        if self._host is None:
            raise RuntimeError("a step copies blocks to or from host memory, and this model was given none")
        return self._host.slot(slot).cast("q")

    def _slot(self, row: Row, position: int) -> int:
        place = position // self.block_size
        if row.num_evicted and (row.reach is None or position >= row.reach.num_sinks):
            place -= row.num_evicted
        block = row.blocks[place] if place >= 0 else -1
        if not 0 <= block < self.num_blocks:
            raise RuntimeError(f"row of sequence {row.seq_id} names block {block} of {self.num_blocks}")
        return block * self.block_size + position % self.block_size

    def _read(self, row: Row, length: int) -> list[int]:
        """Read what the last of `length` tokens of a row sees back from the store; -1 where nothing was written."""
        found = [self._slots[self._slot(row, position)] for position in seen_positions(length, row.reach)]
        return [-1 if token_id is None else token_id for token_id in found]

    def _sample(self, row: Row) -> Sample | None:
        if row.sampling is None:
            return None
        history = self._read(row, row.start + len(row.tokens))
        token_id = next_token(history, row.sampling, self._vocab_size, row.banned)
        count = row.sampling.logprobs
        if count is None:
            return Sample(token_id)
        top = sorted(((i, token_logprob(history, i)) for i in range(self._vocab_size)), key=lambda pair: -pair[1])
        return Sample(token_id, token_logprob(history, token_id), tuple(top[:count]))

    def _score(self, row: Row, offset: int, token_id: int) -> ScoredPosition:
        history = self._read(row, row.start + offset + 1)
        top = sorted(((i, token_logprob(history, i)) for i in range(self._vocab_size)), key=lambda pair: -pair[1])
        return ScoredPosition(token_id, token_logprob(history, token_id), tuple(top[: row.num_score_top]))


class _PendingStep:
    """A step of a UniformModel that runs when its result is asked for."""

    def __init__(self, model: UniformModel, step: Step) -> None:
        self._model = model
        self._step = step

    def result(self) -> StepResult:
        """Run the step; asked for once."""
        return self._model.run(self._step)
