"""`NativeExecutor`: whole Steps in one native call on the CPU: embedding, layers, head, sampling.

Owns the packed weights (one piece of memory), the worker threads, the KV pool and the step arrays. Implements
`core.protocols.Executor`; work is done inline, at launch, on the calling thread and the workers; the interpreter lock
is free meanwhile.
Invariant: a row's tokens have the same bits alone or in a batch, in one chunk or many, on any number of threads; a row
whose numbers went wrong fails alone.
Called by the engine; `problem()` by whoever has to choose a backend.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ConfigError, EngineDead, OutOfMemory
from headrace.core.protocols import HostMemory, Pending
from headrace.core.settings import KvDtype, Quantization
from headrace.core.step import BlockCopy, CopyKind, Step, StepResult
from headrace.executor.native_parts import program_parts
from headrace.executor.pending import Deferred
from headrace.executor.settling import Settling
from headrace.executor.step_arrays import StepArrays
from headrace.executor.weights_pack import NativeWeights, load_weights, packed_bytes
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import CacheLayer, Head, Program
from headrace.ops.native.library import Pool
from headrace.ops.native.step import BLOCK_COPY, KV_LANES, NativeProgram, kv_head_bytes, step_library


def problem() -> str | None:
    """Say why this backend cannot run here; None if it can."""
    try:
        step_library()
    except ConfigError as error:
        return str(error)
    return None


def kv_block_bytes(layers: tuple[CacheLayer, ...], *, block_size: int, kv_dtype: KvDtype = "auto") -> int:
    """Return the bytes of one block over all layers: head sizes rounded up to 16 channels, int8 with its scales."""
    kv_type = _kv_type(kv_dtype)
    return sum(
        2 * layer.kv_heads * kv_head_bytes(kv_type, block_size=block_size, head_dim=layer.head_dim) for layer in layers
    )


def _kv_type(kv_dtype: KvDtype) -> str:
    """Return what the native code calls it."""
    return "bf16" if kv_dtype == "auto" else kv_dtype


class NativeExecutor:
    """Runs Steps natively. Not for two threads at once."""

    def __init__(
        self,
        program: Program,
        checkpoint: Checkpoint,
        *,
        num_blocks: int,
        block_size: int,
        threads: int | None = None,
        max_step_tokens: int = 512,
        cache_dir: Path | None = None,
        quantization: Quantization = "auto",
        kv_dtype: KvDtype = "auto",
        host: HostMemory | None = None,
        advance: Callable[[float], None] = lambda done: None,
    ) -> None:
        """Map or pack the weights, start the workers, allocate the pool. The checkpoint may be closed afterwards.

        threads          None: one per core this process may use
        max_step_tokens  longest step; scratch memory is proportional to it
        cache_dir        where packed weights are kept between starts; None packs into memory at every start
        kv_dtype         auto keeps K and V as bf16
        host             slots that blocks are saved to and loaded from; None: Steps have no such copies
        advance          hears which share of the weights is packed, 0 to 1
        Raises OutOfMemory with the sizes before anything is loaded, ConfigError for a block size that is not served.
        """
        if not isinstance(program.ops[-1], Head):
            raise ValueError(f"the program ends with {type(program.ops[-1]).__name__}; an executor samples from a Head")
        if block_size % KV_LANES:
            raise ConfigError(f"block_size is {block_size}; the native backend takes multiples of {KV_LANES}: try 32")
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._vocab_size = program.vocab_size
        self._caller = 0
        self._host = host
        self._pool = Pool(threads or len(os.sched_getaffinity(0)))
        _check_memory(
            packed_bytes(program, checkpoint, quantization),
            num_blocks * kv_block_bytes(program.cache_layers, block_size=block_size, kv_dtype=kv_dtype),
        )
        self._weights: NativeWeights | None = load_weights(
            program,
            checkpoint,
            self._pool,
            quantization=quantization,
            cache_dir=None if cache_dir is None else cache_dir / "packed",
            advance=advance,
        )
        self._program: NativeProgram | None = NativeProgram(
            self._pool,
            program_parts(program, self._weights.structs(), self._weights.vectors),
            num_blocks=num_blocks,
            block_size=block_size,
            max_tokens=max_step_tokens,
            kv_type=_kv_type(kv_dtype),
        )
        self._arrays = StepArrays(
            max_tokens=max_step_tokens,
            num_blocks=num_blocks,
            block_size=block_size,
            max_positions=program.max_positions,
            vocab_size=program.vocab_size,
        )
        self._settling = Settling(self._weights.packed.memory)

    @property
    def num_blocks(self) -> int:
        """Blocks in the KV pool."""
        return self._num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._block_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return 0 if self._weights is None else self._weights.packed.num_bytes

    def launch(self, step: Step) -> Pending[StepResult]:
        """Take the step; it runs when its result is asked."""
        return Deferred(lambda: self._execute(step))

    def logits(self, step: Step) -> NDArray[np.float32]:
        """Run the step and return the logits of each of its tokens, [T, V] in packed order; nothing is sampled.

        For evals and tests. Writes the blocks that the step names, as `launch` does. Cost: 4·T·V bytes.
        """
        program = self._alive()
        out = np.empty((step.num_tokens, self._vocab_size), np.float32)
        step_in = self._arrays.fill(step)
        step_in.logits = out.ctypes.data
        try:
            program.run(step_in)
        finally:
            step_in.logits = None
        return out

    def times(self, *, on: bool) -> dict[str, int]:
        """Switch per-region timing; return the nanoseconds by kind of region since the last call."""
        return self._alive().times(on=on)

    def settle(self) -> None:
        """Wait until the weights are in the pages they stay in: steps are a little slower before. For measurements."""
        self._settling.finish()

    def shutdown(self) -> None:
        """Free pool and weights and stop the workers. Idempotent; a later launch ends in EngineDead."""
        if self._program is not None:
            self._settling.stop()
            self._program.close()
            self._program = None
            self._weights = None
            self._pool.close()

    def _alive(self) -> NativeProgram:
        """Return the program; EngineDead after shutdown."""
        if self._program is None:
            raise EngineDead("the executor is shut down; start a new engine")
        return self._program

    def _pin_caller(self) -> None:
        """Pin a thread of the engine's kind to its core, once: unpinned, it may share one with a spinning worker.

        Never the main thread: processes and threads that it starts would inherit the one core.
        """
        caller = threading.get_ident()
        if caller != self._caller:
            self._caller = caller
            if caller != threading.main_thread().ident:
                self._pool.pin_caller()

    def _execute(self, step: Step) -> StepResult:
        """Fill, run, read back."""
        program = self._alive()
        self._pin_caller()
        started = time.perf_counter()
        if step.copies:
            program.copy_blocks(self._copies(step.copies))
        if not step.rows:
            return StepResult(step_id=step.step_id, samples=(), elapsed_s=time.perf_counter() - started)
        program.run(self._arrays.fill(step))
        samples, scored, failures = self._arrays.results(step)
        return StepResult(
            step_id=step.step_id,
            samples=samples,
            scored=scored,
            failures=failures,
            elapsed_s=time.perf_counter() - started,
        )

    def _copies(self, copies: tuple[BlockCopy, ...]) -> NDArray[np.void]:
        """Return copies as the native code takes them: host slots by address."""
        records = np.empty(len(copies), BLOCK_COPY)
        for i, copy in enumerate(copies):
            match copy.kind:
                case CopyKind.DUPLICATE:
                    records[i] = (copy.kind, copy.target, copy.source)
                case CopyKind.SAVE:
                    records[i] = (copy.kind, copy.source, self._address(copy.target))
                case CopyKind.LOAD:
                    records[i] = (copy.kind, copy.target, self._address(copy.source))
                case _:
                    assert_never(copy.kind)
        return records

    def _address(self, slot: int) -> int:
        """Return where a host slot's bytes are. Raises ValueError if a block does not fit."""
        if self._host is None:
            raise ValueError("a step copies blocks to or from host memory, and this executor was given none")
        view = self._host.slot(slot)
        if view.nbytes != self._alive().block_bytes():
            raise ValueError(f"host slot {slot} has {view.nbytes} bytes; a block has {self._alive().block_bytes()}")
        return int(np.frombuffer(view, np.uint8).ctypes.data)


def _check_memory(weight_bytes: int, kv_bytes: int) -> None:
    """Raise OutOfMemory if weights and KV pool cannot fit into what the system has free."""
    available = _available_bytes()
    if available is not None and weight_bytes + kv_bytes > available:
        mib = [f"{value / 2**20:,.0f} MiB" for value in (weight_bytes, kv_bytes, available)]
        raise OutOfMemory(
            f"the weights take {mib[0]} and the KV pool {mib[1]}, but only {mib[2]} are free; "
            "lower engine.kv_memory_mib or use a smaller model"
        )


def _available_bytes() -> int | None:
    """Return what the system says is available; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
