"""Which backend computes steps here, what it costs in memory, and how its executor is made.

Owns the choice between backends and nothing of their insides. Called by `loading`.
Invariant: `auto` never fails; it says once, with the reason and the cost, when it has to fall back to numpy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

from headrace.app.plan import Derived, ModelFacts, Plan
from headrace.core.errors import ConfigError
from headrace.core.protocols import Executor, HostMemory
from headrace.core.settings import Backend, EngineSettings, forced_isa
from headrace.executor import ReferenceExecutor, block_bytes
from headrace.executor.native import NativeExecutor, kv_block_bytes
from headrace.executor.native import problem as native_problem
from headrace.executor.weights_pack import packed_bytes
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.ops.native import set_isa
from headrace.ops.native.library import tiles_failed

_log = logging.getLogger(__name__)


def choose(wanted: Backend) -> Derived[str]:
    """Return the backend to use. Raises ConfigError if the one that was asked for does not work here."""
    if wanted == "reference":
        return Derived("reference", "engine.backend")
    if wanted == "cuda":
        raise ConfigError("backend 'cuda' is not in this version; use 'auto', 'native' or 'reference'")
    problem = native_problem()
    if problem is None:
        return Derived("native", "engine.backend" if wanted == "native" else "the fastest that works here")
    if wanted == "native":
        raise ConfigError(f"backend 'native' does not work here: {problem}")
    _log.warning("steps run on numpy, many times slower than native code: %s", problem)
    return Derived("reference", f"the native backend does not work here: {problem}")


def facts(name: str, backend: str, program: Program, checkpoint: Checkpoint, engine: EngineSettings) -> ModelFacts:
    """Size a model for a backend, before anything is loaded. Cost: looks at tensor headers only."""
    layers = program.cache_layers
    if backend == "native":
        weight_bytes = packed_bytes(program, checkpoint, engine.quantization)
        kv_token_bytes = kv_block_bytes(layers, block_size=1, kv_dtype=engine.kv_dtype)
    else:
        weight_bytes = sum(4 * math.prod(spec.shape) for spec in program.weights)
        kv_token_bytes = block_bytes(layers, block_size=1, kv_dtype=engine.kv_dtype)
    return ModelFacts(
        name=name,
        max_positions=program.max_positions,
        weight_bytes=weight_bytes,
        kv_token_bytes=kv_token_bytes,
        widest_window=program.widest_window(),
    )


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
    if plan.backend.value == "native":
        isa = forced_isa()
        if isa is not None:
            set_isa(isa)
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
