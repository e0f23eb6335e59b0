"""Decoders of plain floats and of the formats with one scale per 32 weights.

Each takes uint8 [blocks, block_bytes] and returns fp32 [blocks, block_size]. Pure functions, called by
`formats.dequantize` only. A block of the 4 and 5-bit formats stores weight j in the low and weight j + 16 in the high
half of byte j.

    Q4_0  | d f16 | 16 B nibbles |                    w = d * (q - 8)
    Q4_1  | d f16 | m f16 | 16 B nibbles |            w = d * q + m
    Q5_0  | d f16 | 4 B fifth bits | 16 B nibbles |   w = d * (q - 16)
    Q5_1  | d f16 | m f16 | 4 B fifth bits | 16 B |   w = d * q + m
    Q8_0  | d f16 | 32 B int8 |                       w = d * q
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def half(data: Bytes) -> Floats:
    """Read little-endian fp16 from bytes [..., 2n] as fp32 [..., n]."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def decode_f32(data: Bytes) -> Floats:
    """Decode little-endian fp32."""
    return np.ascontiguousarray(data).view("<f4").astype(np.float32, copy=False)


def decode_f16(data: Bytes) -> Floats:
    """Decode little-endian fp16."""
    return half(data)


def decode_bf16(data: Bytes) -> Floats:
    """Decode bfloat16: the upper half of an fp32."""
    wide = np.ascontiguousarray(data).view("<u2").astype(np.uint32)
    return np.left_shift(wide, np.uint32(16)).view(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """Split 16 bytes into 32 values: low halves first, then high halves."""
    return np.concatenate([data & np.uint8(0x0F), data >> np.uint8(4)], axis=1)


def _fifth_bits(data: Bytes) -> Bytes:
    """Spread 4 bytes over 32 values 0 or 16, least significant bit first."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def decode_q4_0(data: Bytes) -> Floats:
    """Decode Q4_0: 18 bytes for 32 weights."""
    return half(data[:, :2]) * (_nibbles(data[:, 2:]).view(np.int8) - np.int8(8)).astype(np.float32)


def decode_q4_1(data: Bytes) -> Floats:
    """Decode Q4_1: 20 bytes for 32 weights."""
    out = half(data[:, :2]) * _nibbles(data[:, 4:]).astype(np.float32)
    out += half(data[:, 2:4])
    return out


def decode_q5_0(data: Bytes) -> Floats:
    """Decode Q5_0: 22 bytes for 32 weights."""
    q = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return half(data[:, :2]) * (q.view(np.int8) - np.int8(16)).astype(np.float32)


def decode_q5_1(data: Bytes) -> Floats:
    """Decode Q5_1: 24 bytes for 32 weights."""
    q = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    out = half(data[:, :2]) * q.astype(np.float32)
    out += half(data[:, 2:4])
    return out


def decode_q8_0(data: Bytes) -> Floats:
    """Decode Q8_0: 34 bytes for 32 weights."""
    return half(data[:, :2]) * data[:, 2:].view(np.int8).astype(np.float32)
