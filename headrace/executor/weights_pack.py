"""A checkpoint's weights in the native kernels' layouts: chosen by policy, packed once, read ever after.

Owns the packed memory (`NativeWeights`), which lives as long as the executor. Called by `executor.native`.
Invariant: beside the packed bytes at most one slab of source rows exists at a time, however large the model.
Matrices are packed; vectors (norms, biases) stay fp32, biases of gated layers in the packed column order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import ModelFileBroken
from headrace.core.settings import Quantization
from headrace.executor import packed_cache
from headrace.executor.native_parts import glu_weights
from headrace.executor.packed_cache import PackedFile
from headrace.executor.packing_probe import layout_digest
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program, WeightSpec
from headrace.ops.native.library import CPackedWeight, Pool
from headrace.ops.native.linear import (
    BLOCK_COLUMNS,
    TILE_COLUMNS,
    PackedMatrix,
    Source,
    WeightFormat,
    WeightShape,
    interleave_bias,
)
from headrace.quant.policy import choose
from headrace.quant.tensor import Tensor

Floats = NDArray[np.float32]

_SLAB_BLOCKS = 64  # 32-column blocks packed at a time


@dataclass(frozen=True, slots=True)
class NativeWeights:
    """Packed matrices and fp32 vectors by name, and the memory they are views of."""

    matrices: dict[str, PackedMatrix]
    vectors: dict[str, Floats]
    packed: PackedFile
    was_cached: bool

    def structs(self) -> dict[str, CPackedWeight]:
        """Return the C structs of the matrices."""
        return {name: matrix.struct for name, matrix in self.matrices.items()}


def load_weights(
    program: Program,
    checkpoint: Checkpoint,
    pool: Pool,
    *,
    quantization: Quantization,
    cache_dir: Path | None,
    advance: Callable[[float], None] = lambda done: None,
) -> NativeWeights:
    """Read the packed weights, packing them first where no fitting cache file exists.

    cache_dir  directory of packed files; None packs into memory
    advance    hears which share of the packed bytes is there, 0 to 1
    Raises ModelFileBroken when a tensor is missing or has another shape.
    """
    shapes = weight_shapes(program, checkpoint, quantization)
    biases = glu_weights(program)
    vectors = {spec.name: _vector(spec, checkpoint, biases) for spec in program.weights if len(spec.shape) == 1}
    sizes = {name: shape.packed_bytes for name, shape in shapes.items()}
    sizes |= {name: vector.nbytes for name, vector in vectors.items()}
    path, key = None, ""
    if cache_dir is not None:
        layout = layout_digest(pool, shapes.values())
        key = packed_cache.fingerprint(program, checkpoint, f"{quantization} {list(shapes.values())} {layout}")
        path = cache_dir / f"{key[:32]}.hrp"
    packed = None if path is None else packed_cache.try_open(path, key)
    was_cached = packed is not None

    def fill(target: PackedFile) -> None:
        num_done, num_all = 0, sum(sizes.values())
        for spec in program.weights:
            if spec.name in shapes:
                matrix = PackedMatrix(shapes[spec.name], target.tensor(spec.name))
                _pack(matrix, pool, StackedRows([checkpoint.tensor(part) for part in spec.parts], spec.offset))
            else:
                target.tensor(spec.name)[:] = vectors[spec.name].view(np.uint8)
            num_done += sizes[spec.name]
            advance(num_done / num_all)

    if packed is None:
        packed = packed_cache.create(path, packed_cache.lay_out(key, sizes), fill)
    return NativeWeights(
        {name: PackedMatrix(shape, packed.tensor(name)) for name, shape in shapes.items()},
        {name: packed.tensor(name).view(np.float32) for name in vectors},
        packed,
        was_cached,
    )


def weight_shapes(program: Program, checkpoint: Checkpoint, quantization: Quantization) -> dict[str, WeightShape]:
    """Return the packed format of every matrix. Reads tensor headers only.

    Raises ModelFileBroken when a tensor is missing or has another shape.
    """
    interleaved = glu_weights(program)
    shapes: dict[str, WeightShape] = {}
    for spec in program.weights:
        if len(spec.shape) != 2:
            continue
        parts = [checkpoint.tensor(part) for part in spec.parts]
        _check_shape(spec, parts)
        chosen = choose([part.format for part in parts], quantization, spec.shape[1])
        shapes[spec.name] = WeightShape(
            format=WeightFormat[chosen.name],
            n=spec.shape[0],
            k=spec.shape[1],
            group=chosen.group,
            asymmetric=chosen.is_asymmetric,
            interleaved=spec.name in interleaved,
        )
    return shapes


def packed_bytes(program: Program, checkpoint: Checkpoint, quantization: Quantization) -> int:
    """Return the bytes that the packed weights will take. Reads tensor headers only."""
    matrices = sum(shape.packed_bytes for shape in weight_shapes(program, checkpoint, quantization).values())
    return matrices + sum(4 * spec.shape[0] for spec in program.weights if len(spec.shape) == 1)


def _check_shape(spec: WeightSpec, parts: Sequence[Tensor]) -> None:
    """Raise ModelFileBroken unless the parts stack to the weight's shape."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    if shape != spec.shape or any(part.shape[1:] != shape[1:] for part in parts):
        found = ", ".join(f"{part.name} {list(part.shape)}" for part in parts)
        raise ModelFileBroken(
            f"weight '{spec.name}' should be {list(spec.shape)}, the file has {found}; "
            "its config and tensors do not belong together: fetch the model again"
        )


def _vector(spec: WeightSpec, checkpoint: Checkpoint, interleaved: frozenset[str]) -> Floats:
    """Return one vector in fp32, offset added, in the order the kernels read it."""
    parts = [checkpoint.tensor(part) for part in spec.parts]
    _check_shape(spec, parts)
    values = np.concatenate([part.to_float() for part in parts]) + np.float32(spec.offset)
    return interleave_bias(values) if spec.name in interleaved else values


def _pack(matrix: PackedMatrix, pool: Pool, rows: StackedRows) -> None:
    """Pack one matrix slab by slab."""
    shape = matrix.shape
    if shape.interleaved:
        half, step = shape.n // 2, _SLAB_BLOCKS * TILE_COLUMNS
        for first in range(0, half, step):
            last = min(first + step, half)
            source, gate = rows.take(first, last, shape)
            other, up = rows.take(half + first, half + last, shape)
            if source != other:
                source, gate = rows.floats(first, last)
                _, up = rows.floats(half + first, half + last)
            matrix.pack(pool, source, gate, up, block=first // TILE_COLUMNS)
        return
    first = 0
    while first < shape.n:
        last = rows.slab_end(first, _SLAB_BLOCKS * BLOCK_COLUMNS)
        matrix.pack(pool, *rows.take(first, last, shape), block=first // BLOCK_COLUMNS)
        first = last


class StackedRows:
    """The rows of stacked parts, by number."""

    def __init__(self, parts: Sequence[Tensor], offset: float) -> None:
        self._parts = parts
        self._offset = offset
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()

    def slab_end(self, first: int, step: int) -> int:
        """Return where a slab from `first` ends: at a part's end if that falls between column blocks."""
        last = min(first + step, self._starts[-1])
        for start in self._starts:
            if first < start < last and start % BLOCK_COLUMNS == 0:
                return int(start)
        return int(last)

    def take(self, first: int, last: int, shape: WeightShape) -> tuple[Source, NDArray[np.uint8]]:
        """Return rows as stored if they share a format that `shape` takes and need no change; else as fp32."""
        pieces = self._pieces(first, last)
        labels = {part.format.label for part, _, _ in pieces}
        label = labels.pop()
        if labels or self._offset or label not in Source.__members__ or not shape.can_pack(Source[label]):
            return self.floats(first, last)
        stored = [part.data[a:b] for part, a, b in pieces]
        return Source[label], stored[0] if len(stored) == 1 else np.concatenate(stored)

    def floats(self, first: int, last: int) -> tuple[Source, NDArray[np.uint8]]:
        """Return rows decoded to fp32."""
        values = np.concatenate([part.to_float(a, b) for part, a, b in self._pieces(first, last)])
        return Source.F32, np.ascontiguousarray(values + np.float32(self._offset)).view(np.uint8)

    def _pieces(self, first: int, last: int) -> list[tuple[Tensor, int, int]]:
        """Return (part, first row, last row) of each part that the range touches."""
        return [
            (part, max(first - start, 0), min(last - start, part.shape[0]))
            for part, start in zip(self._parts, self._starts, strict=False)
            if start < last and start + part.shape[0] > first
        ]
