"""`ReferenceExecutor`: interprets a Program op by op in numpy fp32. Slow, exact, and the oracle of every backend.

Owns the fp32 weights and the KV pool. Implements `core.protocols.Executor`; work is done when the result is asked.
Invariant: a row's result has the same bits alone or in a batch, in one chunk or many (see `ops.reference`), and a row
whose numbers went wrong fails alone.
Called by the engine, and by evals and parity tests through `logits`.
"""

from __future__ import annotations

import time
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import EngineDead
from headrace.core.protocols import HostMemory, Pending
from headrace.core.request import SeqId
from headrace.core.settings import KvDtype
from headrace.core.step import Sample, ScoredPosition, Step, StepResult
from headrace.executor.ahead import Ahead
from headrace.executor.batch import Batch, pack
from headrace.executor.float_weights import float_weights
from headrace.executor.kv_bytes import allocate_pool, copy_blocks
from headrace.executor.pending import Deferred
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Attention, Embed, Head, Linear, Norm, Op, Program, QkWrite
from headrace.ops import reference as ops
from headrace.sampling import sample_rows, score_token

Floats = NDArray[np.float32]
Slots = dict[str, Floats]

_SCORE_ROWS = 64  # scored positions whose logits exist at a time: a whole prompt's would be gigabytes


class ReferenceExecutor:
    """Runs Steps on fp32 weights. Not for two threads at once."""

    def __init__(
        self,
        program: Program,
        checkpoint: Checkpoint,
        *,
        num_blocks: int,
        block_size: int,
        kv_dtype: KvDtype = "auto",
        host: HostMemory | None = None,
    ) -> None:
        """Decode the weights and allocate the pool. The checkpoint may be closed afterwards.

        kv_dtype  auto keeps K and V as fp32
        host      slots that blocks are saved to and loaded from; None: Steps have no such copies
        """
        head = program.ops[-1]
        if not isinstance(head, Head):
            raise ValueError(f"the program ends with {type(head).__name__}; an executor samples from a Head")
        self._program = program
        self._head = head
        self._weights = float_weights(program, checkpoint)
        self._ropes = {op.layer: op.rope for op in program.ops if isinstance(op, QkWrite)}
        self._inv_freqs = [np.array(rope.inv_freq, np.float32) for rope in program.ropes]
        self._cache = allocate_pool(
            program.cache_layers, num_blocks=num_blocks, block_size=block_size, kv_dtype=kv_dtype
        )
        self._host = host
        self._ahead = Ahead()
        self._num_blocks = num_blocks
        self._block_size = block_size

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        return self._num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._block_size

    def launch(self, step: Step) -> Pending[StepResult]:
        """Take the step; it runs when its result is asked, after those that were launched before."""
        return Deferred(lambda: self._ahead.note(step, self._execute(self._ahead.fill(step))))

    def logits(self, step: Step) -> Floats:
        """Run the step and return the logits of each of its tokens, [T, V] in packed order; nothing is sampled.

        For evals and tests. Writes the blocks that the step names, as `launch` does. Cost: 4·T·V bytes.
        """
        batch = pack(step, block_size=self._block_size)
        hidden = self._hidden(batch, batch.tokens)
        return self._apply_head(hidden)

    def shutdown(self) -> None:
        """Free weights and pool. Idempotent; a later launch ends in EngineDead."""
        self._weights = {}
        self._cache = []

    def _execute(self, step: Step) -> StepResult:
        """Run all rows, sample and score, and keep failures to their rows."""
        started = time.perf_counter()
        if step.copies:
            copy_blocks(self._cache, step.copies, self._host)
        if not step.rows:
            return StepResult(step_id=step.step_id, samples=(), elapsed_s=time.perf_counter() - started)
        batch = pack(step, block_size=self._block_size)
        failures: dict[SeqId, str] = {}
        tokens = self._replace_unknown(step, batch, failures)
        hidden = self._hidden(batch, tokens)
        samples = self._sample(step, batch, hidden, failures)
        scored = self._score(step, batch, hidden, failures)
        for row, spec in enumerate(step.rows):
            if spec.seq_id in failures:
                samples[row] = None
                scored[row] = []
        return StepResult(
            step_id=step.step_id,
            samples=tuple(samples),
            scored=tuple(map(tuple, scored)),
            failures=failures,
            elapsed_s=time.perf_counter() - started,
        )

    def _replace_unknown(self, step: Step, batch: Batch, failures: dict[SeqId, str]) -> NDArray[np.int32]:
        """Return the tokens with ids that have no embedding replaced by 0, their rows marked as failed."""
        vocab_size = self._program.vocab_size
        unknown = (batch.tokens < 0) | (batch.tokens >= vocab_size)
        for token in np.flatnonzero(unknown):
            seq_id = step.rows[batch.token_rows[token]].seq_id
            failures.setdefault(
                seq_id, f"token id {batch.tokens[token]} is outside the model's vocabulary of {vocab_size:,}"
            )
        return np.where(unknown, np.int32(0), batch.tokens)

    def _hidden(self, batch: Batch, tokens: NDArray[np.int32]) -> Floats:
        """Run every op but the head; return the head's input, [T, H]."""
        if not self._weights:
            raise EngineDead("the executor is shut down; start a new engine")
        slots: Slots = {}
        # A row may overflow; its NaN is found in its logits. It must not become a warning that hits the whole step.
        with np.errstate(all="ignore"):
            for op in self._program.ops[:-1]:
                self._run(op, batch, tokens, slots)
        return slots[self._head.src]

    def _run(self, op: Op, batch: Batch, tokens: NDArray[np.int32], slots: Slots) -> None:
        """Run one op: read its source slot, write its destination."""
        match op:
            case Embed():
                slots[op.dst] = ops.embed(tokens, self._weights[op.table], scale=op.scale)
            case Norm():
                normed = ops.rms_norm(slots[op.src], self._weights[op.weight], eps=op.eps)
                slots[op.dst] = slots[op.dst] + normed if op.add else normed
            case Linear():
                slots[op.dst] = self._linear(op, slots)
            case QkWrite():
                slots[op.dst] = self._qk_write(op, batch, slots)
            case Attention():
                slots[op.dst] = self._attention(op, batch, slots)
            case Head():
                raise ValueError("a Head may only end a program")
            case _:
                assert_never(op)

    def _linear(self, op: Linear, slots: Slots) -> Floats:
        """Multiply and apply the epilogue."""
        bias = None if op.bias is None else self._weights[op.bias]
        result = ops.linear(slots[op.src], self._weights[op.weight], bias)
        match op.epilogue:
            case "none":
                return result
            case "add":
                return slots[op.dst] + result
            case "glu":
                return ops.glu(result, op.activation)
            case _:
                assert_never(op.epilogue)

    def _qk_write(self, op: QkWrite, batch: Batch, slots: Slots) -> Floats:
        """Rotate, write K and V, return the queries."""
        return ops.qk_write(
            slots[op.src],
            self._cache[op.layer],
            batch.slots,
            batch.positions,
            num_heads=op.num_heads,
            inv_freq=None if op.rope is None else self._inv_freqs[op.rope],
            rope_scale=1.0 if op.rope is None else self._program.ropes[op.rope].scale,
            q_norm=None if op.q_norm is None else self._weights[op.q_norm],
            k_norm=None if op.k_norm is None else self._weights[op.k_norm],
            eps=op.eps,
        )

    def _attention(self, op: Attention, batch: Batch, slots: Slots) -> Floats:
        """Attend every token to what its row may see."""
        rope = self._ropes.get(op.layer)
        return ops.attention(
            slots[op.src],
            self._cache[op.layer],
            batch.block_tables,
            batch.row_starts,
            batch.positions,
            scale=op.scale,
            window=op.window,
            softcap=op.softcap,
            sinks=None if op.sinks is None else self._weights[op.sinks],
            paths=[ops.Path(*path) for path in zip(batch.reaches, batch.num_evicted.tolist(), strict=True)],
            inv_freq=None if rope is None else self._inv_freqs[rope],
        )

    def _apply_head(self, hidden: Floats) -> Floats:
        """Return the logits of the given rows, [R, V]."""
        head = self._head
        with np.errstate(all="ignore"):
            return ops.head(hidden, self._weights[head.table], scale=head.scale, softcap=head.softcap)

    def _sample(self, step: Step, batch: Batch, hidden: Floats, failures: dict[SeqId, str]) -> list[Sample | None]:
        """Draw a token for each row that asks for one."""
        samples: list[Sample | None] = [None] * batch.num_rows
        rows = [step.rows[row] for row in batch.sample_rows]
        drawn = sample_rows(self._apply_head(hidden[batch.sample_tokens]), rows) if rows else []
        for row, sample in zip(batch.sample_rows, drawn, strict=True):
            if isinstance(sample, str):
                failures.setdefault(step.rows[row].seq_id, sample)
            else:
                samples[row] = sample
        return samples

    def _score(
        self, step: Step, batch: Batch, hidden: Floats, failures: dict[SeqId, str]
    ) -> list[list[ScoredPosition]]:
        """Return the log probabilities of the known next tokens, row by row."""
        scored: list[list[ScoredPosition]] = [[] for _ in step.rows]
        for first in range(0, len(batch.score_tokens), _SCORE_ROWS):
            part = slice(first, first + _SCORE_ROWS)
            logits = self._apply_head(hidden[batch.score_tokens[part]])
            for line, row, target in zip(logits, batch.score_rows[part], batch.score_targets[part], strict=True):
                spec = step.rows[row]
                if not 0 <= target < len(line):
                    failures.setdefault(spec.seq_id, f"scored token id {target} is outside the vocabulary")
                elif not np.isfinite(line).all():
                    failures.setdefault(spec.seq_id, "the model's logits are not finite at a scored position")
                else:
                    scored[row].append(score_token(line, int(target), spec.num_score_top))
        return scored
