"""Formats a weight may be stored in, and the one way from their bytes to fp32.

Owns: the closed set `Format` with block geometry, and `dequantize`. The arithmetic of each family of formats is in
`blocks.py` (one scale per 32 weights) and `superblocks.py` (256 weights, scales of scales).
Invariant: a row of k weights takes k / block_size * block_bytes bytes; blocks never cross rows.
Callers: `quant.tensor`, the readers in `model/`, and backends that repack weights.
Source: block layouts are those of the GGUF file format; the sums are done in fp32 in the order the format defines, so
results are equal to the last bit to other readers of the same file.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from headrace.quant import blocks, superblocks

_CHUNK_WEIGHTS = 1 << 19  # weights decoded at once: temporaries stay near 10 MiB whatever the tensor


class Format(Enum):
    """How numbers are stored: (name, weights per block, bytes per block)."""

    F32 = ("F32", 1, 4)
    F16 = ("F16", 1, 2)
    BF16 = ("BF16", 1, 2)
    Q4_0 = ("Q4_0", 32, 18)
    Q4_1 = ("Q4_1", 32, 20)
    Q5_0 = ("Q5_0", 32, 22)
    Q5_1 = ("Q5_1", 32, 24)
    Q8_0 = ("Q8_0", 32, 34)
    Q2_K = ("Q2_K", 256, 84)
    Q3_K = ("Q3_K", 256, 110)
    Q4_K = ("Q4_K", 256, 144)
    Q5_K = ("Q5_K", 256, 176)
    Q6_K = ("Q6_K", 256, 210)

    def __init__(self, label: str, block_size: int, block_bytes: int) -> None:
        self.label = label
        self.block_size = block_size
        self.block_bytes = block_bytes

    @property
    def is_quantized(self) -> bool:
        """Say whether weights share scales, as opposed to plain floats."""
        return self.block_size > 1

    def row_bytes(self, k: int) -> int:
        """Return the bytes of a row of `k` weights; ValueError when k is not a whole number of blocks."""
        if k % self.block_size:
            raise ValueError(f"{self.label} rows hold a multiple of {self.block_size} weights, not {k}")
        return k // self.block_size * self.block_bytes


Decoder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

_DECODERS: dict[Format, Decoder] = {
    Format.F32: blocks.decode_f32,
    Format.F16: blocks.decode_f16,
    Format.BF16: blocks.decode_bf16,
    Format.Q4_0: blocks.decode_q4_0,
    Format.Q4_1: blocks.decode_q4_1,
    Format.Q5_0: blocks.decode_q5_0,
    Format.Q5_1: blocks.decode_q5_1,
    Format.Q8_0: blocks.decode_q8_0,
    Format.Q2_K: superblocks.decode_q2_k,
    Format.Q3_K: superblocks.decode_q3_k,
    Format.Q4_K: superblocks.decode_q4_k,
    Format.Q5_K: superblocks.decode_q5_k,
    Format.Q6_K: superblocks.decode_q6_k,
}


def dequantize(format: Format, data: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """Decode rows of `k` weights.

    data     uint8 [rows, row_bytes], any strides, need not be aligned
    returns  fp32 [rows, k]
    Cost: one pass; besides the result it allocates about 10 MiB, or a few times one row where a row is longer.
    Raises ValueError when a row's bytes do not hold k weights.
    """
    row_bytes = format.row_bytes(k)
    if data.ndim != 2 or data.shape[1] != row_bytes or data.dtype != np.uint8:
        raise ValueError(f"{format.label} rows of {k} weights are uint8 [rows, {row_bytes}], not {data.shape}")
    rows = data.shape[0]
    out = np.empty((rows, k), dtype=np.float32)
    if rows == 0 or k == 0:
        return out
    decode = _DECODERS[format]
    step = max(1, _CHUNK_WEIGHTS // k)
    with np.errstate(invalid="ignore"):  # a scale that is inf or NaN makes NaN weights, not a warning
        for start in range(0, rows, step):
            chunk = data[start : start + step]
            out[start : start + step] = decode(chunk.reshape(-1, format.block_bytes)).reshape(-1, k)
    return out
