"""Which backend computes steps here, what it costs in memory, and how its executor is made.

Owns the choice between backends and nothing of their insides. Called by `loading`.
Invariant: `auto` never fails; it says once, with the reason and the cost, when it has to fall back to numpy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from headrace.app.derived import Derived
from headrace.app.hardware import Hardware
from headrace.app.plan import MIB, ModelFacts, Plan
from headrace.app.step_sizes import DeviceRoom, StepSizes, step_sizes
from headrace.core.errors import ConfigError, OutOfMemory
from headrace.core.protocols import Executor, HostMemory
from headrace.core.settings import Backend, EngineSettings, forced_isa
from headrace.executor import ReferenceExecutor, block_bytes
from headrace.executor.cuda import forms
from headrace.executor.native import NativeExecutor, kv_block_bytes
from headrace.executor.native import problem as native_problem
from headrace.executor.weights_pack import packed_bytes
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.ops.cuda import support as cuda_support
from headrace.ops.native import active_isa, available_isas, set_isa
from headrace.ops.native.library import tiles_failed

_DEVICE_SHARE = 0.94  # of free GPU memory: the rest is what allocators and libraries lose
_log = logging.getLogger(__name__)


def choose(wanted: Backend) -> Derived[str]:
    """Return the backend to use. Raises ConfigError if the one that was asked for does not work here."""
    if wanted == "reference":
        return Derived("reference", "engine.backend")
    if wanted == "cuda":
        if (missing := cuda_support.problem()) is not None:
            raise ConfigError(f"backend 'cuda' does not work here: {missing}", param="engine.backend")
        return Derived("cuda", "engine.backend")
    if wanted == "auto" and cuda_support.has_device():
        if (missing := cuda_support.problem()) is None:
            return Derived("cuda", f"the fastest that works here: {cuda_support.device_facts().name}")
        _log.warning("there is a GPU, and steps run on the CPU: %s", missing)
    problem = native_problem()
    if problem is None:
        return Derived("native", "engine.backend" if wanted == "native" else "the fastest that works here")
    if wanted == "native":
        raise ConfigError(f"backend 'native' does not work here: {problem}")
    _log.warning("steps run on numpy, many times slower than native code: %s", problem)
    return Derived("reference", f"the native backend does not work here: {problem}")


def use_isa() -> Derived[str]:
    """Apply HEADRACE_ISA and return the instruction set that native code uses. ConfigError if it is not here."""
    isa = forced_isa()
    if isa is not None:
        set_isa(isa)
    return Derived(active_isa(), "the fastest that works here" if isa is None else "HEADRACE_ISA")


def why_generic() -> str:
    """Say why nothing faster is in use, and what helps."""
    fast = [name for name in available_isas() if name != "generic"]
    if fast:
        return f"HEADRACE_ISA asks for them; without it this machine uses {fast[-1]}"
    return "this CPU, or the virtual machine's view of it, has neither AVX2 with FMA nor ARM's dot products"


def facts(name: str, backend: str, program: Program, checkpoint: Checkpoint, engine: EngineSettings) -> ModelFacts:
    """Size a model for a backend, before anything is loaded. Cost: looks at tensor headers only."""
    layers = program.cache_layers
    if backend == "native":
        weight_bytes = packed_bytes(program, checkpoint, engine.quantization)
        kv_token_bytes = kv_block_bytes(layers, block_size=1, kv_dtype=engine.kv_dtype)
    elif backend == "cuda":
        weight_bytes = forms.weight_bytes(program, checkpoint, engine.quantization)
        kv_token_bytes = forms.kv_block_bytes(layers, block_size=1, kv_dtype=engine.kv_dtype)
    else:
        weight_bytes = sum(4 * math.prod(spec.shape) for spec in program.weights)
        kv_token_bytes = block_bytes(layers, block_size=1, kv_dtype=engine.kv_dtype)
    return ModelFacts(
        name=name,
        max_positions=program.max_positions,
        weight_bytes=weight_bytes,
        kv_token_bytes=kv_token_bytes,
        widest_window=program.widest_window(),
        on_device=backend == "cuda",
    )


def sizes_of(backend: str, hardware: Hardware, program: Program, engine: EngineSettings) -> StepSizes:
    """Return how long steps are, and how many sequences are in one. Cost: on a GPU, a look at its memory."""
    if backend != "cuda":
        return step_sizes(engine, backend)
    free = _device_room(cuda_support.device_facts(), hardware)

    def scratch(tokens: int, seqs: int) -> int:
        return forms.scratch_bytes(program, max_step_tokens=tokens, max_rows=seqs)

    return step_sizes(engine, backend, DeviceRoom(free, scratch))


def memory_of(backend: str, hardware: Hardware, program: Program, engine: EngineSettings, sizes: StepSizes) -> Hardware:
    """Return the machine with the memory that weights and KV pool of a backend come from: a GPU's own, if it is one.

    What a step needs beside them, and a share for the allocator, is taken off.
    Raises ConfigError for a setting that the GPU cannot serve, OutOfMemory if steps alone take more than there is.
    """
    if backend != "cuda":
        return hardware
    device = cuda_support.device_facts()
    if (unserved := cuda_support.unserved(device, engine.quantization)) is not None:
        raise ConfigError(unserved, param="engine.quantization")
    if engine.early_launch and (unserved := cuda_support.unserved_early_launch(device)) is not None:
        raise ConfigError(unserved, param="engine.early_launch")
    seqs, tokens = sizes.seqs.value, sizes.tokens.value
    scratch = forms.scratch_bytes(program, max_step_tokens=tokens, max_rows=seqs)
    free = _device_room(device, hardware)
    if scratch > free:
        raise OutOfMemory(
            f"steps of {tokens:,} tokens in {seqs:,} sequences take "
            f"{scratch // MIB:,} MiB beside the weights; {device.name} has {max(free, 0) // MIB:,} MiB free; lower "
            "engine.max_step_tokens or engine.max_num_seqs, or end what else runs there (see nvidia-smi)"
        )
    return replace(hardware, memory_available=free - scratch)


def _device_room(device: cuda_support.DeviceFacts, hardware: Hardware) -> int:
    """Return the bytes of a GPU's memory that may be taken."""
    return int(device.free_bytes * _DEVICE_SHARE) - hardware.taken


def open_executor(
    plan: Plan,
    program: Program,
    checkpoint: Checkpoint,
    *,
    cache_directory: Path | None = None,
    host: HostMemory | None = None,
    advance: Callable[[float], None] = lambda done: None,
) -> Executor:
    """Load the weights and allocate the pool. `cache_directory` keeps packed weights between starts.

    host  slots that Steps copy blocks to and from, if any
    """
    num_blocks, block_size = plan.num_blocks.value, plan.block_size.value
    if plan.backend.value == "cuda":
        return _open_cuda(plan, program, checkpoint, host=host, advance=advance)
    if plan.backend.value == "native":
        if use_isa().value == "generic":
            _log.warning("steps run on generic instructions, 5 to 30 times slower than with AVX2: %s", why_generic())
        if tiles_failed():
            _log.warning("AMX gave other results than AVX-512 on this machine; steps run on AVX-512")
        return NativeExecutor(
            program,
            checkpoint,
            num_blocks=num_blocks,
            block_size=block_size,
            threads=plan.threads.value,
            max_step_tokens=plan.max_step_tokens.value,
            cache_dir=cache_directory,
            quantization=plan.quantization.value,
            kv_dtype=plan.kv_dtype.value,
            advance=advance,
            host=host,
        )
    return ReferenceExecutor(
        program, checkpoint, num_blocks=num_blocks, block_size=block_size, kv_dtype=plan.kv_dtype.value, host=host
    )


def settle(executor: Executor) -> None:
    """Wait until the executor is as fast as it gets: what is measured before belongs to the start."""
    if isinstance(executor, NativeExecutor):
        executor.settle()


def _open_cuda(
    plan: Plan,
    program: Program,
    checkpoint: Checkpoint,
    *,
    host: HostMemory | None,
    advance: Callable[[float], None],
) -> Executor:
    """Load a model onto the GPU, and say what it takes there. Imports torch."""
    from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions

    facts = cuda_support.device_facts()
    _log.info(
        "%s: %s MiB for weights, %s MiB for the KV pool of %s blocks (engine.kv_memory_mib), of %s MiB free of %s; "
        "steps of up to %s tokens (engine.max_step_tokens) in %s sequences (engine.max_num_seqs)",
        facts.name,
        *(f"{size // MIB:,}" for size in (plan.weight_bytes.value, plan.kv_bytes.value)),
        f"{plan.num_blocks.value:,}",
        *(f"{size // MIB:,}" for size in (facts.free_bytes, facts.total_bytes)),
        *(f"{size:,}" for size in (plan.max_step_tokens.value, plan.max_num_seqs.value)),
    )
    return CudaExecutor(
        program,
        checkpoint,
        num_blocks=plan.num_blocks.value,
        block_size=plan.block_size.value,
        options=DeviceOptions(
            max_step_tokens=plan.max_step_tokens.value,
            max_rows=plan.max_num_seqs.value,
            chunk_tokens=plan.chunk_tokens.value,
            max_context=plan.max_context.value,
            quantization=plan.quantization.value,
            kv_dtype=plan.kv_dtype.value,
            has_reach=plan.reach.value is not None,
            is_invariant=plan.batch_invariant.value,
            launches_early=plan.early_launch.value,
        ),
        host=host,
        advance=advance,
    )


def failed_kernels() -> tuple[str, ...]:
    """Name the GPU kernels that slower ops stand in for. Imports torch: asked only where a GPU is used."""
    from headrace.ops.cuda.launching import failed_kernels

    return failed_kernels()
