"""The Walsh-Hadamard transform of heads, and their rounding to int8: how K and V are kept with one scale per head.

Owns nothing. Called by `rope`. The specification is `ops.kv_values.hadamard` and `quantize`, number by number.
A block of channels is the largest power of two that divides the head size, 2^t. Its matrix is a product of two: of the
channels mod 16 and of the channels over 16, each a small matrix of ±1 that the matrix units multiply with in three tf32
terms, as exact as sums in fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import INTERPRETED

_NEGLIGIBLE: tl.constexpr = tl.constexpr(1e-30)  # heads below this are zeros
_PRECISION: tl.constexpr = tl.constexpr("ieee" if INTERPRETED else "tf32x3")


@triton.jit
def _times_signs(x, SIZE: tl.constexpr):
    """Multiply [R, 16] by 16 / SIZE Hadamard matrices of SIZE along the diagonal."""
    i = tl.arange(0, 16)[:, None]
    j = tl.arange(0, 16)[None, :]
    odd = i & j & (SIZE - 1)
    odd = (odd ^ (odd >> 1) ^ (odd >> 2) ^ (odd >> 3)) & 1
    signs = tl.where(i // SIZE == j // SIZE, 1.0 - 2.0 * odd.to(tl.float32), 0.0)
    return tl.dot(x, signs, input_precision=_PRECISION)


@triton.jit
def transform(x, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, SPAN: tl.constexpr):
    """Transform each SPAN channels of fp32 [HEADS, BLOCK_D]; HEADS * BLOCK_D of 256 or more."""
    if SPAN > 1:
        low: tl.constexpr = SPAN if SPAN < 16 else 16
        high: tl.constexpr = SPAN // low
        x = _times_signs(tl.reshape(x, (HEADS * BLOCK_D // 16, 16)), low)
        if high > 1:
            x = tl.permute(tl.reshape(x, (HEADS * BLOCK_D // SPAN, high, 16)), (0, 2, 1))
            x = _times_signs(tl.reshape(x, (HEADS * BLOCK_D // 16, 16)), high)
            x = tl.permute(tl.reshape(x, (HEADS * BLOCK_D // SPAN, 16, high)), (0, 2, 1))
        x = tl.reshape(x, (HEADS, BLOCK_D))
    return x


@triton.jit
def quantize(x):
    """Return (values int8 [H, D], scales [H] fp32 that are bf16 numbers); a head that is not finite has a NaN scale."""
    sizes = tl.abs(x)
    is_finite = tl.min((sizes < float("inf")).to(tl.int32), axis=1) > 0
    largest = tl.max(tl.where(is_finite[:, None], sizes, 0.0), axis=1)
    counts = largest > _NEGLIGIBLE
    exact = tl.div_rn(tl.where(counts, largest, 1.0), tl.full(largest.shape, 127.0, tl.float32))
    up = (exact.to(tl.int32, bitcast=True) + 0xFFFF) & -65536
    scale = up.to(tl.float32, bitcast=True)
    inverse = tl.where(counts, tl.div_rn(tl.full(largest.shape, 1.0, tl.float32), scale), 0.0)
    # Adding and taking away 1.5 * 2^23 rounds to the nearest integer, ties to even.
    steps = (tl.where(is_finite[:, None], x, 0.0) * inverse[:, None] + 12582912.0) - 12582912.0
    kept = tl.where(counts, scale, tl.where(is_finite, 0.0, float("nan")))
    return steps.to(tl.int8), kept


def span_of(head_dim: int) -> int:
    """Return how many channels are transformed together."""
    return head_dim & -head_dim


def transform_plainly(x: torch.Tensor) -> torch.Tensor:
    """Transform fp32 [..., D]; twice, it multiplies by the span."""
    d, half = x.shape[-1], 1
    while half < span_of(d):
        low, high = x.reshape(*x.shape[:-1], d // (2 * half), 2, half).unbind(-2)
        x = torch.stack((low + high, low - high), -2).reshape(x.shape)
        half *= 2
    return x


def quantize_plainly(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (values int8 [..., D], scales [...] bf16)."""
    is_finite = x.isfinite().all(-1)
    largest = torch.where(is_finite[..., None], x, 0.0).abs().amax(-1)
    counts = largest > 1e-30
    up = (torch.where(counts, largest, 1.0) / 127.0).view(torch.int32) + 0xFFFF & -65536
    scale = up.view(torch.float32)
    inverse = torch.where(counts, 1.0 / scale, 0.0)
    steps = torch.where(is_finite[..., None], x, 0.0) * inverse[..., None]
    kept = torch.where(counts, scale, torch.where(is_finite, 0.0, torch.nan))
    return steps.round().to(torch.int8), kept.bfloat16()
