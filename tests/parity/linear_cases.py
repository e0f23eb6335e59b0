"""What the tests of packed linear layers share: shapes, the quantization rule in numpy, guarded memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from headrace.ops.native.linear import WeightFormat, WeightShape

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


def seen_by_kernel(shape: WeightShape, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return x as the product reads it: rounded or quantized, in float64."""
    if shape.format is WeightFormat.F32:
        return x.astype(np.float64)
    if shape.format is WeightFormat.BF16:
        return bf16(x).astype(np.float64)
    codes, scales = quantized(x, shape.group)
    return codes * np.repeat(scales.astype(np.float64), shape.group or shape.k, axis=1)[:, : shape.k]


@contextmanager
def guarded(num_bytes: int) -> Iterator[NDArray[np.uint8]]:
    """Give bytes whose first neighbour behind cannot be touched: reading or writing there ends the process."""
    pages = -(-num_bytes // mmap.PAGESIZE)
    area = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    view = np.frombuffer(area, np.uint8)
    base = view.ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(base + pages * mmap.PAGESIZE)
    assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    try:
        yield view[pages * mmap.PAGESIZE - num_bytes : pages * mmap.PAGESIZE]
    finally:
        libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE)
