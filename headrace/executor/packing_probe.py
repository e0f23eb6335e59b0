"""What this build's packing makes of fixed numbers, as a digest: it changes exactly when packed bytes do.

Packed files outlive the library that made them. A count of layout changes can be forgotten; this cannot: a build that
would write other bytes gets another key, and one that would not keeps its files.
Called by `executor.weights_pack`. Cost: a few hundred kilobytes are packed, about 20 ms of CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from headrace.ops.native.library import Pool
from headrace.ops.native.linear import PackedMatrix, Source, WeightShape
from headrace.quant.formats import Format

_N, _K = 80, 768  # a last block that is not full; several groups of every length, one super-block of every source
_GATED_N = 2 * 40


def layout_digest(pool: Pool, shapes: Iterable[WeightShape]) -> str:
    """Return a digest of what packing makes of every kind among `shapes`, from every source that it takes."""
    digest = hashlib.sha256()
    kinds = {replace(shape, n=_GATED_N if shape.interleaved else _N, k=_K) for shape in shapes}
    for shape in sorted(kinds, key=repr):
        for source in Source:
            if shape.can_pack(source):
                digest.update(f"{shape}{source}".encode())
                digest.update(_pack(pool, shape, source).data.tobytes())
    return digest.hexdigest()


def _pack(pool: Pool, shape: WeightShape, source: Source) -> PackedMatrix:
    """Pack fixed rows of a source."""
    packed = PackedMatrix(shape)
    packed.data[:] = 0
    random = np.random.default_rng(source)
    if source is Source.F32:
        rows = random.standard_normal((shape.n, shape.k), np.float32)
    else:
        # Any bytes are codes; as halves or bf16, scales among them, they stay finite below 0x40.
        rows = random.integers(0, 0x40, (shape.n, Format[source.name].row_bytes(shape.k)), np.uint8)
    if shape.interleaved:
        packed.pack(pool, source, rows[: shape.n // 2], rows[shape.n // 2 :])
    else:
        packed.pack(pool, source, rows)
    return packed
