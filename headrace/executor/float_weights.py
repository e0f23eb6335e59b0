"""A Program's weights as dense fp32 arrays: what the reference backend multiplies with.

Owns nothing: the arrays belong to the caller. Parts are stacked and offsets added here, once.
Invariant: at most one slab of _SLAB_ROWS decoded rows exists beside the result, however large the tensor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ModelFileBroken, OutOfMemory
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program, WeightSpec
from headrace.quant.tensor import Tensor

_SLAB_ROWS = 4096


def float_weights(program: Program, checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """Decode every weight of the Program, by name.

    Raises ModelFileBroken when a tensor is missing or has another shape, OutOfMemory when they do not fit.
    """
    return {spec.name: _stack(spec, checkpoint) for spec in program.weights}


def _stack(spec: WeightSpec, checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Decode the parts of one weight below each other."""
    parts = [checkpoint.tensor(part) for part in spec.parts]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if shape != spec.shape or any(part.shape[1:] != shape[1:] for part in parts):
        found = ", ".join(f"{part.name} {list(part.shape)}" for part in parts)
        raise ModelFileBroken(
            f"weight '{spec.name}' should be {list(spec.shape)}, the file has {found}; "
            "its config and tensors do not belong together: fetch the model again"
        )
    try:
        weight = np.empty(spec.shape, np.float32)
    except MemoryError as error:
        raise OutOfMemory(
            f"weight '{spec.name}' takes {np.prod(spec.shape) * 4 / 2**20:,.0f} MiB in fp32, "
            "more than the system gives; use a smaller model or backend 'native'"
        ) from error
    first = 0
    for part in parts:
        _decode(part, weight[first : first + part.shape[0]])
        first += part.shape[0]
    if spec.offset:
        weight += np.float32(spec.offset)
    return weight


def _decode(part: Tensor, out: NDArray[np.float32]) -> None:
    """Decode one tensor into `out`, slab by slab."""
    if out.ndim == 1:
        out[:] = part.to_float()
        return
    for first in range(0, len(out), _SLAB_ROWS):
        out[first : first + _SLAB_ROWS] = part.to_float(first, min(first + _SLAB_ROWS, len(out)))
