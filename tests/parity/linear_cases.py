"""What the tests of packed linear layers share: shapes, the quantization rule in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.ops.native.library import Pool
from headrace.ops.native.linear import PackedMatrix, WeightFormat, WeightShape

# (format, group, asymmetric)
FORMATS = [
    (WeightFormat.F32, 0, False),
    (WeightFormat.BF16, 0, False),
    (WeightFormat.I8, 0, False),
    *(
        (kind, group, asym)
        for kind in (WeightFormat.I8G, WeightFormat.I4G)
        for group in (32, 64, 128)
        for asym in (False, True)
    ),
    *((WeightFormat.I8R, group, False) for group in (64, 192, 256)),
]
ROW_COUNTS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 64, 100)
# Not multiples of a block, a tile, a step or a group; one block; several blocks per thread.
SIZES = ((1, 1), (33, 100), (32, 64), (70, 257), (129, 576), (200, 31))


def shape_of(case: tuple[WeightFormat, int, bool], n: int, k: int, *, interleaved: bool = False) -> WeightShape:
    kind, group, asymmetric = case
    return WeightShape(format=kind, n=n, k=k, group=group, asymmetric=asymmetric, interleaved=interleaved)


def bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to bf16, nearest even, and back."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def quantized(x: NDArray[np.float32], group: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Quantize by the rule of csrc/gemm_prepare_impl.h, group 0 = the row: codes [m, k], scales [m, groups]."""
    m, k = x.shape
    group = group or k
    groups = -(-k // group)
    padded = np.zeros((m, groups * group), np.float32)
    padded[:, :k] = x
    grouped = padded.reshape(m, groups, group)
    amax = np.maximum(np.abs(grouped).max(axis=2), np.float32(1e-30))
    inverse = np.float32(127) / amax
    codes = np.rint(grouped * inverse[:, :, None]).astype(np.int64)
    return codes.reshape(m, -1)[:, :k], amax / np.float32(127)


def hadamard(order: int) -> NDArray[np.float64]:
    """Return the Walsh-Hadamard matrix of a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def rotated(x: NDArray[np.float32], group: int) -> NDArray[np.float32]:
    """Pad rows to whole groups and multiply each 64 numbers by H, in the order of additions of csrc/layout.h."""
    out = np.zeros((len(x), -(-x.shape[1] // group) * group), np.float32)
    out[:, : x.shape[1]] = x
    for half in (1, 2, 4, 8, 16, 32):
        pairs = out.reshape(-1, 2, half)
        low, high = pairs[:, 0].copy(), pairs[:, 1].copy()
        pairs[:, 0], pairs[:, 1] = low + high, low - high
    return out


def seen_by_kernel(shape: WeightShape, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return x as the product reads it: rounded or quantized, in float64."""
    if shape.format is WeightFormat.F32:
        return x.astype(np.float64)
    if shape.format is WeightFormat.BF16:
        return bf16(x).astype(np.float64)
    if shape.format is WeightFormat.I8R:
        codes, scales = quantized(rotated(x, shape.group), shape.group)
        turned = (codes * np.repeat(scales.astype(np.float64), shape.group, axis=1)).reshape(-1, 64)
        return (turned @ hadamard(64) / 64).reshape(len(x), -1)[:, : shape.k]
    codes, scales = quantized(x, shape.group)
    return codes * np.repeat(scales.astype(np.float64), shape.group or shape.k, axis=1)[:, : shape.k]


def exact_product(
    pool: Pool, shape: WeightShape, source: NDArray[np.float32], x: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the product of what is packed and what is prepared, and the same of absolute values."""
    whole = -(-shape.k // shape.group) * shape.group if shape.format is WeightFormat.I8R else shape.k
    padding = ((0, 0), (0, whole - shape.k))  # a rotation reaches into it
    wide = replace(shape, k=whole)
    decoded = PackedMatrix.from_float(pool, wide, np.pad(source, padding)).to_float().astype(np.float64)
    seen = seen_by_kernel(wide, np.pad(x, padding))
    return seen @ decoded.T, np.abs(seen) @ np.abs(decoded).T
