"""Decoders of the K formats: 256 weights in one superblock, whose group scales are themselves quantized.

Each takes uint8 [blocks, block_bytes] and returns fp32 [blocks, 256]. Pure functions, called by `formats.dequantize`
only. All shapes below are per block; G is the group that shares a scale.

    Q2_K  | 16 scale/min nibble pairs | 64 B crumbs | d | dmin |              G 16   w = d·s·q - dmin·m
    Q3_K  | 32 B high bits | 64 B crumbs | 12 B 6-bit scales | d |            G 16   w = d·(s - 32)·q, q in -4 … 3
    Q4_K  | d | dmin | 12 B 6-bit scales and mins | 128 B nibbles |           G 32   w = d·s·q - dmin·m
    Q5_K  | d | dmin | 12 B scales and mins | 32 B fifth bits | 128 B |       G 32   w = d·s·q - dmin·m
    Q6_K  | 128 B low nibbles | 64 B high crumbs | 16 int8 scales | d |       G 16   w = d·s·(q - 32)

d and dmin are fp16. A crumb is two bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.quant.blocks import Bytes, Floats, half

_CRUMB_SHIFTS = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
_NIBBLE_SHIFTS = np.array([0, 4], dtype=np.uint8).reshape(1, 1, 2, 1)
_BIT_SHIFTS = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)


def _crumbs(data: Bytes) -> Bytes:
    """Unpack 64 bytes to 256 values: each half of 32 bytes holds four planes of 32."""
    return (data.reshape(-1, 2, 1, 32) >> _CRUMB_SHIFTS) & np.uint8(3)


def _nibbles(data: Bytes) -> Bytes:
    """Unpack 128 bytes to [blocks, 8, 32]: each 32 bytes hold a low and a high plane."""
    return ((data.reshape(-1, 4, 1, 32) >> _NIBBLE_SHIFTS) & np.uint8(0x0F)).reshape(-1, 8, 32)


def _planes(data: Bytes) -> Bytes:
    """Unpack 32 bytes to [blocks, 8, 32] bits: bit b of byte j is bit j of plane b."""
    return (data.reshape(-1, 1, 32) >> _BIT_SHIFTS) & np.uint8(1)


def _scales_and_mins(data: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack 12 bytes to eight 6-bit scales and eight 6-bit mins.

    Bytes 0-3 hold scales 0-3, bytes 4-7 mins 0-3; their top two bits are the top bits of scales and mins 4-7,
    whose low halves share bytes 8-11 (scale low, min high).
    """
    first, second, shared = data[:, 0:4], data[:, 4:8], data[:, 8:12]
    scales = np.concatenate([first & 63, (shared & 15) | ((first >> 6) << 4)], axis=1)
    mins = np.concatenate([second & 63, (shared >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, mins


def _affine(scale: Floats, minimum: Floats, q: Bytes) -> Floats:
    """Return scale·q - minimum per group: scale and minimum [blocks, groups], q [blocks, groups, G]."""
    out: NDArray[np.float32] = scale[:, :, None] * q.astype(np.float32)
    out -= minimum[:, :, None]
    return out.reshape(-1, 256)


def decode_q2_k(data: Bytes) -> Floats:
    """Decode Q2_K: 84 bytes for 256 weights."""
    packed = data[:, :16]
    scale = half(data[:, 80:82]) * (packed & 15).astype(np.float32)
    minimum = half(data[:, 82:84]) * (packed >> 4).astype(np.float32)
    return _affine(scale, minimum, _crumbs(data[:, 16:80]).reshape(-1, 16, 16))


def decode_q3_k(data: Bytes) -> Floats:
    """Decode Q3_K: 110 bytes for 256 weights. A clear high bit subtracts 4."""
    packed = data[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = (packed[:, None, 8:12] >> _CRUMB_SHIFTS.reshape(1, 4, 1)) & 3
    six_bits = low | (high.reshape(-1, 16) << 4)
    scale = half(data[:, 108:110]) * (six_bits.view(np.int8) - np.int8(32)).astype(np.float32)
    q = _crumbs(data[:, 32:96]).reshape(-1, 8, 32) | (_planes(data[:, :32]) << 2)
    signed = (q.view(np.int8) - np.int8(4)).reshape(-1, 16, 16)
    out: NDArray[np.float32] = scale[:, :, None] * signed.astype(np.float32)
    return out.reshape(-1, 256)


def split_q4_k(data: Bytes) -> tuple[Floats, Floats, Bytes]:
    """Return the scale and the minimum of each group, [blocks, 8], and the numbers, [blocks, 8, 32]."""
    scales, mins = _scales_and_mins(data[:, 4:16])
    return (
        half(data[:, 0:2]) * scales.astype(np.float32),
        half(data[:, 2:4]) * mins.astype(np.float32),
        _nibbles(data[:, 16:144]),
    )


def decode_q4_k(data: Bytes) -> Floats:
    """Decode Q4_K: 144 bytes for 256 weights."""
    return _affine(*split_q4_k(data))


def decode_q5_k(data: Bytes) -> Floats:
    """Decode Q5_K: 176 bytes for 256 weights."""
    scales, mins = _scales_and_mins(data[:, 4:16])
    scale = half(data[:, 0:2]) * scales.astype(np.float32)
    minimum = half(data[:, 2:4]) * mins.astype(np.float32)
    return _affine(scale, minimum, _nibbles(data[:, 48:176]) | (_planes(data[:, 16:48]) << np.uint8(4)))


def decode_q6_k(data: Bytes) -> Floats:
    """Decode Q6_K: 210 bytes for 256 weights; each half block takes 64 low and 32 high bytes."""
    low = ((data[:, :128].reshape(-1, 2, 1, 64) >> _NIBBLE_SHIFTS) & 15).reshape(-1, 8, 32)
    high = _crumbs(data[:, 128:192]).reshape(-1, 8, 32)
    q = (low | (high << 4)).view(np.int8) - np.int8(32)
    scale = half(data[:, 208:210]) * data[:, 192:208].view(np.int8).astype(np.float32)
    out: NDArray[np.float32] = scale[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)
    return out.reshape(-1, 256)
