"""`CudaExecutor`: whole Steps on one GPU; recorded graphs for decode, launched ahead of the result.

Owns the device model, the staging buffers, the block tables and the graphs. Implements `core.protocols.Executor`:
`launch` puts a step on the device's queue and returns; the result is one small copy, waited for when it is asked.
Invariant: a row whose numbers went wrong fails alone. With `is_invariant` a row's tokens have the same bits alone or in
a batch, in one chunk or many; without it, sums may be cut otherwise for another number of rows.
Runs as well on torch's CPU device, where nothing is asynchronous and no graph is recorded: that is how it is proved on
machines without a GPU.
Called by the engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.errors import ConfigError, EngineDead, OutOfMemory
from headrace.core.protocols import HostMemory, Pending
from headrace.core.settings import Quantization
from headrace.core.step import BlockCopy, CopyKind, Row, Step, StepResult
from headrace.executor.cuda.answers import Draw, Scores, read_step, start_copies
from headrace.executor.cuda.block_tables import BlockTables
from headrace.executor.cuda.device_batch import BatchShape, HostBatch, pack_step
from headrace.executor.cuda.graphs import Graphs, buckets
from headrace.executor.cuda.load_weights import load_weights
from headrace.executor.cuda.model import DeviceBatch, DeviceModel
from headrace.executor.cuda.sampling_lines import arrays, device_lines, drawn_lines, scored_lines
from headrace.executor.cuda.staging import Staging
from headrace.executor.pending import Deferred
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.ops.cuda.sampling import try_draw

_SCORE_ROWS = 64  # scored positions whose logits exist at a time: a whole prompt's would be gigabytes

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """How a CudaExecutor computes.

    device           cuda, or cpu for proofs
    dtype            of activations and KV: bfloat16, float16, or float32 for proofs
    max_step_tokens  longest step; scratch memory is proportional to it
    max_rows         most rows in a step
    is_invariant     bits do not depend on the batch; slower
    """

    device: str = "cuda"
    dtype: str = "bfloat16"
    max_step_tokens: int = 512
    max_rows: int = 64
    quantization: Quantization = "auto"
    is_invariant: bool = False


class CudaExecutor:
    """Runs Steps on the device. Not for two threads at once."""

    def __init__(
        self,
        program: Program,
        checkpoint: Checkpoint,
        *,
        num_blocks: int,
        block_size: int,
        options: DeviceOptions,
        host: HostMemory | None = None,
        advance: Callable[[float], None] = lambda done: None,
    ) -> None:
        """Load the weights, allocate the pool, record the graphs. The checkpoint may be closed afterwards.

        host     slots that blocks are saved to and loaded from; None: Steps have no such copies
        advance  hears which share of the weights is there, 0 to 1
        Raises OutOfMemory with the sizes, ConfigError for a dtype that is not served.
        """
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
        if options.dtype not in dtypes:
            raise ConfigError(f"dtype is '{options.dtype}'; the cuda backend computes in {', '.join(dtypes)}")
        self._device = torch.device(options.device)
        self._is_gpu = self._device.type == "cuda"
        self._num_blocks, self._block_size = num_blocks, block_size
        self._options, self._host = options, host
        try:
            with torch.inference_mode():
                matrices, vectors = load_weights(
                    program,
                    checkpoint,
                    quantization=options.quantization,
                    dtype=dtypes[options.dtype],
                    device=self._device,
                    advance=advance,
                )
                self.weight_bytes = sum(weight.num_bytes for weight in matrices.values())
                self._model: DeviceModel | None = DeviceModel(
                    program,
                    matrices,
                    vectors,
                    num_blocks=num_blocks,
                    block_size=block_size,
                    max_tokens=max(options.max_step_tokens, buckets(options.max_rows)[-1]),
                    dtype=dtypes[options.dtype],
                    device=self._device,
                    is_invariant=options.is_invariant,
                )
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the GPU has no room for the weights and a KV pool of {num_blocks:,} blocks of {block_size} tokens; "
                f"lower engine.kv_memory_mib or use a smaller model ({str(error).splitlines()[0]})"
            ) from error
        width = min(num_blocks, -(-(program.max_positions + options.max_step_tokens) // block_size)) + 2
        self._tables = BlockTables(self._device, num_lines=2 * options.max_rows + 2, width=width)
        self._shape = BatchShape(
            block_size=block_size,
            num_blocks=num_blocks,
            vocab_size=program.vocab_size,
            sizes=self._model.tile_sizes(),
        )
        self._staging = Staging(self._device, 1 << 20)
        self._graphs = Graphs(self._device, buckets(options.max_rows))

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        return self._num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._block_size

    @torch.inference_mode()
    def launch(self, step: Step) -> Pending[StepResult]:
        """Queue a step on the device and return; its result waits for it."""
        model = self._alive()
        started = time.perf_counter()
        self._copy_blocks(model, step.copies)
        if not step.rows:
            return Deferred(lambda: StepResult(step.step_id, (), elapsed_s=time.perf_counter() - started))
        bucket = self._graphs.bucket_of(step)
        lines, changes = self._tables.update(step)
        batch = pack_step(step, lines, self._shape, bucket=bucket)
        self._check_length(batch)
        drawn, hidden = self._run(model, step, batch, changes, bucket)
        answers = start_copies(drawn, self._score(model, step, batch, hidden))
        vocab_size = model.vocab_size
        return Deferred(lambda: read_step(step, batch.unknown, answers, vocab_size=vocab_size, started=started))

    @torch.inference_mode()
    def logits(self, step: Step) -> Floats:
        """Run the step and return the logits of each of its tokens, [T, V] in packed order; nothing is sampled.

        For evals and tests. Writes the blocks that the step names, as `launch` does. Cost: 4·T·V bytes.
        """
        model = self._alive()
        lines, changes = self._tables.update(step)
        batch = pack_step(step, lines, self._shape)
        self._check_length(batch)
        device_batch, _ = self._sent(batch, changes, [])
        hidden = model.run(device_batch)
        parts = [model.logits(part).cpu() for part in hidden.split(_SCORE_ROWS)]
        found: Floats = torch.cat(parts).numpy()
        return found

    def shutdown(self) -> None:
        """Free the device's memory. Idempotent; a later launch ends in EngineDead."""
        if self._model is not None:
            self._graphs.forget()
            self._model = None
            if self._is_gpu:
                torch.cuda.synchronize(self._device)
                torch.cuda.empty_cache()

    def _alive(self) -> DeviceModel:
        if self._model is None:
            raise EngineDead("the executor is shut down; start a new engine")
        return self._model

    def _check_length(self, batch: HostBatch) -> None:
        if batch.num_tokens > self._options.max_step_tokens and batch.num_tokens > self._graphs.largest:
            raise ValueError(
                f"a step of {batch.num_tokens} tokens; this executor was made for at most "
                f"{self._options.max_step_tokens}"
            )

    def _sent(
        self, batch: HostBatch, changes: NDArray[np.int32], extra: list[NDArray[np.generic]]
    ) -> tuple[DeviceBatch, list[torch.Tensor]]:
        """Bring a batch to the device in one copy, table changes applied. `extra` arrays stand before the changes."""
        long = [tiles.lines for tiles in batch.long]
        own = [batch.tokens, batch.positions, batch.slots, batch.short.lines, *long]
        sent = self._staging.send([*own, *extra, changes])
        tokens, positions, slots, short = sent[:4]
        self._tables.apply(sent[-1])
        sizes = [tiles.size for tiles in batch.long]
        device_batch = DeviceBatch(
            tokens=tokens,
            positions=positions,
            slots=slots,
            tables=self._tables.device_table,
            short=short,
            long=dict(zip(sizes, sent[4 : 4 + len(sizes)], strict=True)),
        )
        return device_batch, sent[len(own) : -1]

    def _run(
        self, model: DeviceModel, step: Step, batch: HostBatch, changes: NDArray[np.int32], bucket: int | None
    ) -> tuple[Draw, torch.Tensor]:
        """Run the model and draw a token for each row that asks for one; return these and the head's input."""
        rows: list[Row | None]
        if bucket is None:
            rows = [row for row in step.rows if row.sampling is not None]
            ends = batch.row_ends[[i for i, row in enumerate(step.rows) if row.sampling is not None]] - 1
        else:
            rows = [*step.rows, *[None] * (bucket - len(step.rows))]
            ends = np.arange(bucket, dtype=np.int32)
        lines = drawn_lines(rows, vocab_size=model.vocab_size)
        extra = [ends.astype(np.int32), *arrays(lines)]
        device_batch, sent = self._sent(batch, changes, extra)

        def forward() -> tuple[torch.Tensor, torch.Tensor]:
            hidden = model.run(device_batch)
            return hidden, model.logits(hidden[sent[0].long()] if bucket is None else hidden)

        if bucket is not None:
            hidden, logits = self._graphs.run((bucket, self._staging.generation), forward)
        elif rows:
            hidden, logits = forward()
        else:
            return Draw(out=None, logits=None, lines=lines, rows=()), model.run(device_batch)
        ready, adjustments = device_lines(lines, sent[1:])
        out = try_draw(logits, ready, adjustments, num_top=lines.num_top)
        needed = out is None or bool(lines.by_numpy)
        return Draw(out=out, logits=logits if needed else None, lines=lines, rows=tuple(rows)), hidden

    def _score(self, model: DeviceModel, step: Step, batch: HostBatch, hidden: torch.Tensor) -> list[Scores]:
        """Score the known next tokens, a bounded number of positions at a time."""
        wanted: list[tuple[int, int, int]] = []
        for i, row in enumerate(step.rows):
            first = int(batch.row_ends[i]) - len(row.tokens)
            for offset, token in row.score:
                if not 0 <= offset < len(row.tokens):
                    raise ValueError(f"sequence {row.seq_id} scores offset {offset} of {len(row.tokens)} tokens")
                if 0 <= token < model.vocab_size:
                    wanted.append((first + offset, i, token))
        num_top = max((row.num_score_top for row in step.rows if row.score), default=0)
        found: list[Scores] = []
        for first in range(0, len(wanted), _SCORE_ROWS):
            part = wanted[first : first + _SCORE_ROWS]
            at = torch.tensor([place for place, _, _ in part], device=self._device)
            lines = scored_lines([token for _, _, token in part], num_top=num_top)
            logits = model.logits(hidden[at])
            sent = [torch.from_numpy(array).to(self._device) for array in arrays(lines)]
            out = try_draw(logits, device_lines(lines, sent)[0], None, num_top=num_top)
            places = tuple((i, token) for _, i, token in part)
            found.append(Scores(out=out, logits=logits if out is None else None, num_top=num_top, places=places))
        return found

    def _copy_blocks(self, model: DeviceModel, copies: tuple[BlockCopy, ...]) -> None:
        """Carry out block copies in order; each block is one piece of memory."""
        for copy in copies:
            match copy.kind:
                case CopyKind.DUPLICATE:
                    model.pool[copy.target].copy_(model.pool[copy.source])
                case CopyKind.SAVE:
                    self._slot(model, copy.target).copy_(model.pool[copy.source])
                case CopyKind.LOAD:
                    model.pool[copy.target].copy_(self._slot(model, copy.source))
                case _:
                    assert_never(copy.kind)

    def _slot(self, model: DeviceModel, index: int) -> torch.Tensor:
        """Return a host slot's bytes. Raises ValueError if a block does not fit."""
        if self._host is None:
            raise ValueError("a step copies blocks to or from host memory, and this executor was given none")
        view = self._host.slot(index)
        if view.nbytes != model.block_bytes:
            raise ValueError(f"host slot {index} has {view.nbytes} bytes; a block has {model.block_bytes}")
        return torch.frombuffer(view, dtype=torch.uint8)
