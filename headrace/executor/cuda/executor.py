"""`CudaExecutor`: whole Steps on one GPU; recorded graphs for most of them, launched ahead of the result.

Owns the device model, the staging buffers, the block tables and the graphs. Implements `core.protocols.Executor`:
`launch` puts a step on the device's queue and returns; the result is one small copy, waited for when it is asked.
Invariant: a row whose numbers went wrong fails alone. With `is_invariant` a row's tokens have the same bits alone or in
a batch, in one chunk or many; without it, sums may be cut otherwise for another number of rows.
Runs as well on torch's CPU device, where nothing is asynchronous and no graph is recorded: that is how it is proved on
machines without a GPU.
Called by the engine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.core.errors import ConfigError, EngineDead
from headrace.core.protocols import HostMemory, Pending
from headrace.core.settings import KvDtype, Quantization
from headrace.core.step import Step, StepResult
from headrace.executor.cuda.answers import Landings, Scores, read_step
from headrace.executor.cuda.block_tables import BlockTables
from headrace.executor.cuda.buckets import Bucket, Buckets
from headrace.executor.cuda.device_batch import BatchShape, HostBatch, pack_step, wanted_tokens
from headrace.executor.cuda.eager import SCORE_ROWS, EagerSteps
from headrace.executor.cuda.failures import let_go_of_what_failed, named_failures
from headrace.executor.cuda.feed import Feed
from headrace.executor.cuda.graphs import Graphs
from headrace.executor.cuda.host_pin import HostPin
from headrace.executor.cuda.load_weights import load_weights
from headrace.executor.cuda.model import DeviceModel
from headrace.executor.cuda.queues import Mark, Queue, open_queues
from headrace.executor.cuda.recorded import RecordedSteps
from headrace.executor.cuda.sampling_lines import SamplingLines
from headrace.executor.cuda.staging import Staging
from headrace.executor.cuda.tier_copies import TierCopies
from headrace.executor.cuda.warm_up import eager_rows, graph_rows
from headrace.executor.pending import Deferred
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.ops.cuda.counters import counting_with, new_counters
from headrace.ops.cuda.launching import compiling_ahead, launch_early

_WEIGHTS_SHARE = 0.9  # of loading; the rest is warming up
_STAGING_BYTES, _STAGING_TOKEN_BYTES = 1 << 20, 128  # what graphs read lies in front, and always has room
_TOO_LONG = "lower engine.max_step_tokens"

Floats = NDArray[np.float32]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """How a CudaExecutor computes.

    device           cuda, or cpu for proofs
    dtype            of activations and KV: bfloat16, float16, or float32 for proofs
    max_step_tokens  longest step; scratch memory is proportional to it
    max_rows         most rows in a step
    chunk_tokens     tokens of prompts in a step in which others decode: graphs are recorded for such, up to a length
                     beyond which the device takes longer than the host; 0: they run kernel by kernel
    max_context      positions of one sequence; None: those that the model was trained for
    kv_dtype         int8, or whatever dtype is
    has_reach        rows see less than all before them as a rule: graphs are recorded for such; without it, steps
                     that hold such a row run op by op
    is_invariant     bits do not depend on the batch; slower
    launches_early   kernels are set up while the ones before them run; a GPU of compute capability 9.0, no CPU
    records_graphs   replay steps that fit a bucket; False: the same kernels one by one, to compare with
    is_warmed        go through every kind of step before the first one; None: on a GPU
    """

    device: str = "cuda"
    dtype: str = "bfloat16"
    max_step_tokens: int = 512
    max_rows: int = 64
    chunk_tokens: int = 512
    max_context: int | None = None
    quantization: Quantization = "auto"
    kv_dtype: KvDtype = "auto"
    has_reach: bool = False
    is_invariant: bool = False
    launches_early: bool = False
    records_graphs: bool = True
    is_warmed: bool | None = None


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
        self._is_gpu = is_gpu = self._device.type == "cuda"
        self._num_blocks, self._block_size = num_blocks, block_size
        self._options, self._host = options, host
        launch_early(is_early=options.launches_early and self._is_gpu)
        self._queues = open_queues(self._device)
        self._counters = new_counters(self._device)  # its own: another model may be warmed up beside it
        self._graphs = Graphs(self._device, is_recording=options.records_graphs)
        self._max_tokens = max(options.max_step_tokens, options.max_rows)
        self._buckets = Buckets(options.max_rows, chunk_tokens=options.chunk_tokens, max_tokens=self._max_tokens)
        try:
            with named_failures(
                f"the weights, a KV pool of {num_blocks:,} blocks of {block_size} tokens, and steps of up to "
                f"{options.max_step_tokens:,} tokens",
                "lower engine.kv_memory_mib or engine.max_step_tokens, or use a smaller model",
            ):
                self._load(program, checkpoint, dtypes[options.dtype], advance)
                if self._is_gpu if options.is_warmed is None else options.is_warmed:
                    self._warm_up(advance)
        except BaseException as error:
            let_go_of_what_failed(error)
            self._graphs.forget()
            vars(self).clear()
            if is_gpu:
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()  # whoever tries again asks the device what is free
            raise
        # Last: what fails before it leaves nothing locked.
        self._pin = HostPin(host.whole()) if self._is_gpu and host is not None else None

    @torch.inference_mode()
    def _load(
        self, program: Program, checkpoint: Checkpoint, dtype: torch.dtype, advance: Callable[[float], None]
    ) -> None:
        """Bring the model to the device, and make everything that steps write to."""
        options, num_blocks, block_size = self._options, self._num_blocks, self._block_size
        matrices, vectors = load_weights(
            program,
            checkpoint,
            quantization=options.quantization,
            dtype=dtype,
            device=self._device,
            advance=lambda done: advance(done * _WEIGHTS_SHARE),
        )
        if self._is_gpu:
            torch.cuda.empty_cache()  # what packing took: the pool is one piece
        self.weight_bytes = sum(weight.num_bytes for weight in matrices.values())
        max_tokens, num_lines = self._max_tokens, options.max_rows
        self._model: DeviceModel | None = DeviceModel(
            program,
            matrices,
            vectors,
            num_blocks=num_blocks,
            block_size=block_size,
            max_tokens=max_tokens,
            max_lines=max(num_lines, SCORE_ROWS),
            dtype=dtype,
            device=self._device,
            is_invariant=options.is_invariant,
            has_int8_kv=options.kv_dtype == "int8",
        )
        longest = max(options.max_context or 0, program.max_positions) + options.max_step_tokens
        self._tables = BlockTables(
            self._device, num_lines=2 * options.max_rows + 2, width=-(-longest // block_size) + 2, block_size=block_size
        )
        self._shape = BatchShape(
            block_size=block_size,
            num_blocks=num_blocks,
            vocab_size=program.vocab_size,
            sizes=self._model.tile_sizes(),
            max_rows=options.max_rows,
            widest_window=program.widest_window(),
        )
        self._staging = Staging(self._device, self._queues, _STAGING_BYTES + _STAGING_TOKEN_BYTES * max_tokens)
        self._tiers = TierCopies(self._model.pool, self._queues, self._slot)
        self._feed = Feed(self._device, num_lines)
        self._landings = Landings(num_lines, is_pinned=self._is_gpu)
        self._sampling = SamplingLines(self._tables.num_lines, program.vocab_size)
        shared = self._staging, self._tables, self._feed, self._sampling
        self._eager = EagerSteps(self._model, *shared)
        self._recorded = RecordedSteps(self._model, self._graphs, *shared, self._shape, has_reach=options.has_reach)

    @torch.inference_mode()
    def _warm_up(self, advance: Callable[[float], None]) -> None:
        """Go through every kind of step: kernels are compiled, graphs recorded, and the memory they take is taken."""
        began = time.perf_counter()
        model = self._alive()
        longest = min(self._options.max_step_tokens, self._num_blocks * self._block_size)
        padded, size = self._num_blocks, self._block_size
        recorded = list(graph_rows(self._buckets, padded))
        steps = [*recorded, *eager_rows(self._buckets, longest, padded, size)]
        with counting_with(self._counters):
            with compiling_ahead(len(os.sched_getaffinity(0))) as is_compiling:
                for rows, bucket in steps if is_compiling else ():
                    self._launch(model, Step(0, rows, is_dry_run=True), bucket, is_chosen=True)
            for done, (rows, bucket) in enumerate(steps):
                if done == len(recorded):
                    self._graphs.give_back()
                self._launch(model, Step(0, rows, is_dry_run=True), bucket, is_chosen=True).result()
                advance(_WEIGHTS_SHARE + (1.0 - _WEIGHTS_SHARE) * (done + 1) / len(steps))
        _log.info(
            "warmed up in %.1f s: %d graphs for batches of up to %d rows",
            time.perf_counter() - began, self._graphs.num_recorded, self._options.max_rows,
        )  # fmt: skip

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        return self._num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._block_size

    @property
    def num_graphs(self) -> int:
        """Recorded graphs: two for each bucket of single tokens, one for each with parts of prompts; none on a CPU."""
        return self._graphs.num_recorded

    @torch.inference_mode()
    def launch(self, step: Step) -> Pending[StepResult]:
        """Queue a step on the device and return; its result waits for it.

        Rows that are ahead get their tokens there, from the step that was launched before.
        """
        model = self._alive()
        with named_failures(lambda: _named(step), _TOO_LONG), counting_with(self._counters):
            return self._launch(model, step, None)

    def _launch(
        self, model: DeviceModel, step: Step, bucket: Bucket | None, *, is_chosen: bool = False
    ) -> Pending[StepResult]:
        """Queue a step. `is_chosen`: in this bucket, or kernel by kernel where that is None, whatever suits it."""
        started, began = time.perf_counter(), self._queues.mark(Queue.COMPUTE)
        copied = self._tiers.run(step.copies)
        if not step.rows and bucket is None:
            done = self._queues.mark(Queue.COMPUTE) if copied is None else copied
            return Deferred(lambda: _finished(step, done, started))
        has_reach = self._has_reach(step)
        is_open = not is_chosen and (self._options.has_reach or not has_reach)
        # Lists and not any(): no call for each row.
        is_single = not [row for row in step.rows if len(row.tokens) != 1 or row.score]
        if is_open and is_single:
            bucket = self._buckets.of_single(len(step.rows))
        lines, changes = self._tables.update(step)
        batch: HostBatch | None = None
        if bucket is None or bucket.tokens:
            batch = pack_step(step, lines, self._tables, self._shape, has_reach=has_reach)
            self._check_length(batch)
            if is_open and bucket is None:
                bucket = self._mixed_bucket(step, batch)
        scores: list[Scores] = []
        if bucket is not None:
            drawn, unknown = self._recorded.run(step, bucket, batch, lines, changes)
            landed, held = self._landings.land(drawn)
        else:
            assert batch is not None
            unknown = batch.unknown
            wanted = wanted_tokens(step, batch, vocab_size=model.vocab_size)
            drawn, hidden = self._eager.run(step, batch, wanted, lines, changes)
            landed, held = self._landings.land(drawn)  # before logits are written again
            scores = self._eager.score(step, wanted, hidden)
        ended = self._queues.mark(Queue.COMPUTE)

        vocab_size, landings = model.vocab_size, self._landings

        def read() -> StepResult:
            with named_failures(lambda: _named(step), _TOO_LONG):
                ended.synchronize()
                if copied is not None:
                    copied.synchronize()
                took = ended.seconds_since(began)
            result = read_step(step, unknown, landed, scores, vocab_size=vocab_size, elapsed_s=took)
            landings.give_back(held)
            return result

        pending = Deferred(read)
        self._feed.keep(step, drawn, pending)
        return pending

    @torch.inference_mode()
    def logits(self, step: Step) -> Floats:
        """Run the step and return the logits of each of its tokens, [T, V] in packed order; nothing is sampled.

        For evals and tests. Writes the blocks that the step names, as `launch` does. Cost: 4·T·V bytes.
        """
        model = self._alive()
        lines, changes = self._tables.update(step)
        batch = pack_step(step, lines, self._tables, self._shape, has_reach=self._has_reach(step))
        self._check_length(batch)
        device_batch, sent = self._eager.send(batch, None, [changes])
        self._tables.apply(sent[0])
        with counting_with(self._counters):
            hidden = model.run(device_batch)
            parts = [model.logits(part).to("cpu", copy=True) for part in hidden.split(SCORE_ROWS)]
        found: Floats = torch.cat(parts).numpy()
        return found

    def shutdown(self) -> None:
        """Free the device's memory. Idempotent; a later launch ends in EngineDead."""
        if self._model is None:
            return
        try:
            if self._is_gpu:
                torch.cuda.synchronize(self._device)
        except RuntimeError as error:  # it has failed before: what is left is to let go
            _log.warning("the GPU was lost before its memory was freed: %s", str(error).splitlines()[0])
        self._graphs.forget()
        self._model = None
        if self._pin is not None:
            self._pin.release()
        del self._tables, self._staging, self._tiers, self._feed, self._eager, self._recorded, self._landings
        if self._is_gpu:
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()

    def _alive(self) -> DeviceModel:
        if self._model is None:
            raise EngineDead("the executor is shut down; start a new engine")
        return self._model

    def _check_length(self, batch: HostBatch) -> None:
        if batch.num_tokens > self._max_tokens:
            raise ValueError(
                f"a step of {batch.num_tokens} tokens; this executor was made for at most "
                f"{self._options.max_step_tokens}"
            )

    def _mixed_bucket(self, step: Step, batch: HostBatch) -> Bucket | None:
        """Return the bucket that a step with parts of prompts is padded to; None if no graph does what it asks for, or
        more: where nobody wants a token, no logits are computed."""
        rows = step.rows
        if [row for row in rows if row.score] or not [row for row in rows if row.sampling is not None]:
            return None
        num_rows = max(len(rows), batch.short.lines.shape[1] if self._shape.sizes else 0)
        long_tiles = {tiles.size: tiles.lines.shape[1] for tiles in batch.long}
        return self._buckets.of_mixed(num_rows, batch.num_tokens, long_tiles)

    def _has_reach(self, step: Step) -> bool:
        """Say whether the kernels have to ask what each token sees."""
        return self._options.has_reach or bool(
            [row for row in step.rows if row.reach is not None and self._shape.is_narrowed(row)]
        )

    def _slot(self, index: int) -> torch.Tensor:
        """Return a host slot's bytes. Raises ValueError if a block does not fit."""
        if self._host is None:
            raise ValueError("a step copies blocks to or from host memory, and this executor was given none")
        view = self._host.slot(index)
        if view.nbytes != self._alive().block_bytes:
            raise ValueError(f"host slot {index} has {view.nbytes} bytes; a block has {self._alive().block_bytes}")
        return torch.frombuffer(view, dtype=torch.uint8)


def _named(step: Step) -> str:
    return f"a step of {step.num_tokens:,} tokens"


def _finished(step: Step, done: Mark, started: float) -> StepResult:
    """Return the result of a step of copies alone, once they are done."""
    with named_failures(f"{len(step.copies)} copies of blocks", "lower engine.kv_memory_mib"):
        done.synchronize()
    return StepResult(step.step_id, (), elapsed_s=time.perf_counter() - started)
