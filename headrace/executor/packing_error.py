"""How far packed weights are from what the file holds: one figure per matrix, from rows all over it.

Pure but for the packing of the rows looked at, which uses what packs whole matrices; no model is loaded.
Invariant: a matrix whose codes are kept has an error of exactly zero.
Called by `headrace plan --explain`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from headrace.core.settings import Quantization
from headrace.executor.weights_pack import StackedRows, weight_shapes
from headrace.model.checkpoint import Checkpoint
from headrace.model.program import Program
from headrace.ops.native.library import Pool
from headrace.ops.native.linear import BLOCK_COLUMNS, PackedMatrix, WeightShape

_SLABS = 8  # of 32 rows, evenly spaced: 256 rows tell a matrix's error to a few per cent of it


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingError:
    """One matrix: how it is stored, how it is packed, and the norm of the difference over that of the weights."""

    weight: str
    stored: str
    packed: str
    relative_rms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingSummary:
    """All matrices stored and packed alike."""

    stored: str
    packed: str
    num_matrices: int
    relative_rms: float  # root of the mean square over the matrices
    worst: PackingError


def packing_errors(program: Program, checkpoint: Checkpoint, quantization: Quantization) -> list[PackingError]:
    """Pack rows of every matrix as the native backend would, and compare them with the file's. Seconds per GB."""
    shapes = weight_shapes(program, checkpoint, quantization)
    errors = []
    with Pool(1) as pool:
        for spec in program.weights:
            if spec.name not in shapes:
                continue
            parts = [checkpoint.tensor(part) for part in spec.parts]
            shape = replace(shapes[spec.name], interleaved=False)
            errors.append(
                PackingError(
                    weight=spec.name,
                    stored=" + ".join(sorted({part.format.label for part in parts})),
                    packed=_label(shape),
                    relative_rms=_error(StackedRows(parts, spec.offset), shape, pool),
                )
            )
    return errors


def summarize(errors: Iterable[PackingError]) -> list[PackingSummary]:
    """Return one line per way of storing and packing, the largest error first."""
    kinds: dict[tuple[str, str], list[PackingError]] = {}
    for error in errors:
        kinds.setdefault((error.stored, error.packed), []).append(error)
    lines = [
        PackingSummary(
            stored=stored,
            packed=packed,
            num_matrices=len(found),
            relative_rms=float(np.sqrt(np.mean([error.relative_rms**2 for error in found]))),
            worst=max(found, key=lambda error: error.relative_rms),
        )
        for (stored, packed), found in kinds.items()
    ]
    return sorted(lines, key=lambda line: -line.relative_rms)


def _error(rows: StackedRows, shape: WeightShape, pool: Pool) -> float:
    """Return the relative error over slabs of rows; 0 for a matrix of zeros."""
    slabs = max(1, min(_SLABS, shape.n // BLOCK_COLUMNS))
    lost = size = 0.0
    for slab in range(slabs):
        first = shape.n * slab // slabs
        last = min(shape.n, first + BLOCK_COLUMNS)
        matrix = PackedMatrix(replace(shape, n=last - first))
        matrix.pack(pool, *rows.take(first, last, matrix.shape))
        exact = rows.floats(first, last)[1].view(np.float32).reshape(last - first, shape.k)
        lost += float(np.square(matrix.to_float() - exact, dtype=np.float64).sum())
        size += float(np.square(exact, dtype=np.float64).sum())
    return float(np.sqrt(lost / size)) if size else 0.0


def _label(shape: WeightShape) -> str:
    """Return a packed format as people say it."""
    name = {"F32": "fp32", "BF16": "bf16", "I8": "int8", "I8G": "int8", "I4G": "int4", "I8R": "int8 rotated"}
    group = f", groups of {shape.group}" if shape.group else ""
    return name[shape.format.name] + group + (", with minimum" if shape.asymmetric else "")
