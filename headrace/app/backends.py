"""Which backend computes steps here, what it costs in memory, and how its executor is made.

Owns the choice between backends and nothing of their insides. Called by `loading`.
Invariant: `auto` never fails; it says once, with the reason and the cost, when it has to fall back to numpy.
"""

from __future__ import annotations

import importlib
import logging
import math
from typing import cast

from headrace.app.plan import Derived, ModelFacts, Plan
from headrace.core.errors import ConfigError
from headrace.core.protocols import Executor
from headrace.core.settings import Backend
from headrace.executor import ReferenceExecutor, block_bytes
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program

_NATIVE_MODULE = "headrace.executor.native"
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
        raise ConfigError(f"backend 'native' does not work here: {problem}; build it with `make setup`, or use 'auto'")
    _log.warning("steps run on numpy, many times slower than native code: %s; build it with `make setup`", problem)
    return Derived("reference", f"the native backend does not work here: {problem}")


def native_problem() -> str | None:
    """Say why the native backend cannot be used; None if it can."""
    try:
        module = importlib.import_module(_NATIVE_MODULE)
    except (ImportError, OSError) as err:
        return str(err)
    return cast("str | None", module.problem())


def facts(name: str, backend: str, program: Program, checkpoint: Checkpoint) -> ModelFacts:
    """Size a model for a backend, before anything is loaded. Cost: looks at tensor headers only."""
    if backend == "native":
        stored = {part: checkpoint.tensor(part).data.nbytes for spec in program.weights for part in spec.parts}
        weight_bytes, element_bytes = sum(stored.values()), 2
    else:
        weight_bytes, element_bytes = sum(4 * math.prod(spec.shape) for spec in program.weights), 4
    return ModelFacts(
        name=name,
        max_positions=program.max_positions,
        weight_bytes=weight_bytes,
        kv_token_bytes=block_bytes(program.cache_layers, block_size=1, element_bytes=element_bytes),
    )


def open_executor(plan: Plan, program: Program, checkpoint: Checkpoint) -> Executor:
    """Load the weights and allocate the pool."""
    num_blocks, block_size = plan.num_blocks.value, plan.block_size.value
    if plan.backend.value == "native":
        module = importlib.import_module(_NATIVE_MODULE)
        return cast(
            Executor,
            module.NativeExecutor(
                program, checkpoint, num_blocks=num_blocks, block_size=block_size, threads=plan.threads.value
            ),
        )
    return ReferenceExecutor(program, checkpoint, num_blocks=num_blocks, block_size=block_size)
