"""How the reference backend keeps K and V: as fp32, as bf16, or as int8 with a scale per token and kv head.

A layer's cache is one array, K at index 0 and V at index 1, whose elements say which of the three it is:
 - fp32 [2, blocks, S, Nkv, D] float32
 - bf16 [2, blocks, S, Nkv, D] uint16, the upper half of an fp32
 - int8 [2, blocks, S, Nkv] records of `scale` (float32, itself a bf16 number) and `value` [D] int8. K goes through a
   Hadamard transform first, which spreads the few large channels of keys over all of them: one scale per head then
   costs a fraction of the precision (docs/design)
so that a block's bytes are those of `cache[:, block]` in any of them.
Invariant: |value| ≤ 127; a head with a number that is not finite is NaN throughout when read.
Source: the transform as in QuaRot, Ashkboos et al. 2024.
Callers: `ops.reference`, `executor.kv_bytes`, parity tests of the other backends, which keep the same numbers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never, cast

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
KvFormat = Literal["fp32", "bf16", "int8"]
KvArray = NDArray[np.generic]
Records = NDArray[np.void]

_LARGEST = np.float32(127.0)
_NEGLIGIBLE = np.float32(1e-30)  # heads below this are zeros: the inverse of their scale would overflow


class KvShape(NamedTuple):
    """Tokens in a block, kv heads, channels of a head."""

    block_size: int
    kv_heads: int
    head_dim: int


class QuantizedHeads(NamedTuple):
    """Heads as value * scale. values [..., D] int8, scales [...] float32."""

    values: NDArray[np.int8]
    scales: Floats


def token_bytes(kv_format: KvFormat, *, kv_heads: int, head_dim: int) -> int:
    """Return the bytes of one token's K and V in one layer."""
    return 2 * kv_heads * _element(kv_format, head_dim).itemsize


def zeros(kv_format: KvFormat, *, num_blocks: int, shape: KvShape) -> KvArray:
    """Return a layer's cache, untouched pages of zeros."""
    array: KvArray = np.zeros((2, num_blocks, shape.block_size, shape.kv_heads), _element(kv_format, shape.head_dim))
    return array


def shape_of(cache: KvArray) -> KvShape:
    """Return the shape that a cache was made for."""
    head_dim = cache.shape[4] if cache.dtype.names is None else cast(Records, cache)["value"].shape[4]
    return KvShape(cache.shape[2], cache.shape[3], head_dim)


def write(cache: KvArray, blocks: NDArray[np.int64], offsets: NDArray[np.int64], k: Floats, v: Floats) -> None:
    """Write one token per (block, offset). k and v [T, Nkv, D]."""
    for index, heads in enumerate((k, v)):
        if cache.dtype.names is not None:
            records, quantized = cast(Records, cache), quantize(heads if index else hadamard(heads))
            records["value"][index, blocks, offsets] = quantized.values
            records["scale"][index, blocks, offsets] = quantized.scales
        else:
            cache[index, blocks, offsets] = to_bf16(heads) if cache.dtype == np.uint16 else heads


def read(cache: KvArray, blocks: NDArray[np.int32]) -> Floats:
    """Return [2, tokens, Nkv, D]: K and V of the given blocks, one after another."""
    held = cache[:, blocks]
    floats: Floats
    if held.dtype.names is not None:
        records = cast(Records, held)
        floats = records["value"] * records["scale"][..., None]
        floats[0] = hadamard(floats[0]) / np.float32(hadamard_block(floats.shape[-1]))
    elif held.dtype == np.uint16:
        floats = (held.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        floats = held.view(np.float32)
    return floats.reshape(2, -1, *floats.shape[3:])


def quantize(heads: Floats) -> QuantizedHeads:
    """Round each head to 127 steps either way of its largest channel; the scale is rounded up to bf16."""
    largest = np.abs(heads).max(axis=-1)
    is_finite = np.asarray(np.isfinite(heads).all(axis=-1))
    counts = is_finite & (largest > _NEGLIGIBLE)
    exact = np.where(counts, largest, np.float32(1.0)) / _LARGEST
    up = (exact.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
    scales = up.view(np.float32)
    inverse = np.where(counts, np.float32(1.0) / scales, np.float32(0.0))
    steps = np.where(is_finite[..., None], heads, np.float32(0.0)) * inverse[..., None]
    kept = np.where(counts, scales, np.where(is_finite, np.float32(0.0), np.float32(np.nan)))
    return QuantizedHeads(np.rint(steps).astype(np.int8), kept)


def hadamard_block(head_dim: int) -> int:
    """Return the largest power of two that divides the head size."""
    return head_dim & -head_dim


def hadamard(heads: Floats) -> Floats:
    """Return the Walsh-Hadamard transform of each block of channels; twice, it multiplies by the size of a block."""
    out = np.ascontiguousarray(heads)
    half = 1
    while half < hadamard_block(heads.shape[-1]):
        low, high = np.moveaxis(out.reshape(*heads.shape[:-1], heads.shape[-1] // (2 * half), 2, half), -2, 0)
        out = np.stack((low + high, low - high), axis=-2).reshape(heads.shape)
        half *= 2
    return out


def to_bf16(x: Floats) -> NDArray[np.uint16]:
    """Return the upper half of each fp32, rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def _element(kv_format: KvFormat, head_dim: int) -> np.dtype[np.generic]:
    """Return the numpy type of one head of one token."""
    match kv_format:
        case "fp32":
            return np.dtype((np.float32, head_dim))
        case "bf16":
            return np.dtype((np.uint16, head_dim))
        case "int8":
            return np.dtype([("scale", np.float32), ("value", np.int8, head_dim)])
        case _:
            assert_never(kv_format)
