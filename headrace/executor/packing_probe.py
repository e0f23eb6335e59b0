"""What this build's packing makes of fixed numbers, as a digest: it changes exactly when packed bytes do.

Packed files outlive the library that made them. A count of layout changes can be forgotten; this cannot: a build that
would write other bytes gets another key, and one that would not keeps its files.
Called by `executor.weights_pack`. Cost: two or three milliseconds of CPU for each kind of weight, to pack it
from each source and to digest 100 to 250 kB; some 20 ms once at a start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.ops.native.library import Pool
from headrace.ops.native.linear import PackedMatrix, Source, WeightShape
from headrace.quant.formats import Format

Rows = NDArray[np.uint8] | NDArray[np.float32]

# A last block that is not full, of gate and of up rows too; groups of every length and whole super-blocks, several.
_N, _K = 80, 768


def layout_digest(pool: Pool, shapes: Iterable[WeightShape]) -> str:
    """Return a digest of what packing makes of every kind among `shapes`, from every source that it takes."""
    digest = hashlib.sha256()
    rows: dict[Source, Rows] = {}  # drawn once for all kinds: to draw them costs more than to pack them
    for shape in sorted({replace(shape, n=_N, k=_K) for shape in shapes}, key=repr):
        for source in Source:
            if shape.can_pack(source):
                if source not in rows:
                    rows[source] = _rows(source)
                digest.update(f"{shape}{source}".encode())
                digest.update(_pack(pool, shape, source, rows[source]).data.tobytes())
    return digest.hexdigest()


def _rows(source: Source) -> Rows:
    """Return fixed rows of a source."""
    random = np.random.default_rng(source)
    if source is Source.F32:
        return random.standard_normal((_N, _K), np.float32)
    # Any bytes are codes; as halves or bf16, scales among them, they stay finite below 0x40.
    return random.integers(0, 0x40, (_N, Format[source.name].row_bytes(_K)), np.uint8)


def _pack(pool: Pool, shape: WeightShape, source: Source, rows: Rows) -> PackedMatrix:
    """Pack rows of a source into zeroed memory."""
    packed = PackedMatrix(shape)
    packed.data[:] = 0
    if shape.interleaved:
        packed.pack(pool, source, rows[: _N // 2], rows[_N // 2 :])
    else:
        packed.pack(pool, source, rows)
    return packed
