"""Tokens rounded to e4m3, each with a scale of its own: what the tensor cores multiply fp8 weights with.

Owns: the layout. Made by `norm`, `finish` and `round_tokens`, read by `long_products`.
A token's scale is its largest number / 448, at least 1e-30; its numbers are those of bf16, divided by the scale and
rounded to nearest. Invariant: a token's numbers depend on that token alone, and are the same wherever they are made.
Division: with the reciprocal r of s rounded to nearest, q = y·r and q + r·(y - q·s) in two fused steps is y / s rounded
to nearest, as the plain op has it, in three instructions.
Letters: T tokens, K numbers of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import INTERPRETED, attempt, early, pieces, start, take_turn
from headrace.ops.cuda.sizes import power_of_2

LARGEST = 448.0
MOST_NUMBERS = 16384  # of a token, for a program to hold in registers
_LEAST_SCALE = 1e-30

_INTERPRETED = tl.constexpr(INTERPRETED)


class Rounded(NamedTuple):
    """values [T, K] e4m3, scales [T, 1] fp32; a number is value · scale."""

    values: torch.Tensor
    scales: torch.Tensor

    def first(self, num_tokens: int) -> Rounded:
        """Return the first tokens of these."""
        return self.some(slice(num_tokens))

    def some(self, tokens: slice) -> Rounded:
        """Return some tokens of these."""
        return Rounded(self.values[tokens], self.scales[tokens])


def multiplies_e4m3(x: torch.Tensor) -> bool:
    """Say whether the device of activations like these multiplies e4m3."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16:
        return False
    return bool(torch.cuda.get_device_capability(x.device) >= (8, 9))


def room_in(slot: torch.Tensor) -> Rounded:
    """Lay rounded tokens over the memory of tokens in bf16, [T, K] contiguous: the values first, then the scales."""
    tokens, k = slot.shape
    held = slot.view(torch.uint8).view(-1)
    values, scales = held[: tokens * k], held[tokens * k : tokens * (k + 4)]
    return Rounded(values.view(torch.float8_e4m3fn).view(tokens, k), scales.view(torch.float32).view(tokens, 1))


@triton.jit
def _nearest(y):
    """Round to a number of e4m3, three bits wide or a multiple of 2**-9: the interpreter's conversion cuts off."""
    bits = y.to(tl.int32, bitcast=True)
    wide = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(y) < 0.015625, (y + 24576.0) - 24576.0, wide)


@triton.jit
def store_token(y, dst, scales, token, cols, inside, n, ROUNDED: tl.constexpr):
    """Store a token's numbers, fp32 and 0 outside, in the type of `dst`, or rounded to e4m3 with its scale."""
    spots = dst + token * n + cols
    if ROUNDED:
        y = y.to(tl.bfloat16).to(tl.float32)
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(y), axis=0), 448.0), 1e-30)
        tl.store(scales + token, scale)
        if _INTERPRETED:
            y = _nearest(tl.div_rn(y, scale))
        else:
            inverse = tl.div_rn(1.0, scale)
            quotient = y * inverse
            y = tl.fma(tl.fma(-quotient, scale, y), inverse, quotient)
        tl.store(spots, y.to(tl.float8e4nv), mask=inside)
    else:
        tl.store(spots, y.to(dst.dtype.element_ty), mask=inside)


@triton.jit
def _round_tokens(x, values, scales, k, BLOCK: tl.constexpr, IS_EARLY: tl.constexpr):
    take_turn(IS_EARLY)
    token = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < k
    y = tl.load(x + token * k + cols, mask=inside, other=0.0).to(tl.float32)
    store_token(y, values, scales, token, cols, inside, k, True)


def round_tokens(x: torch.Tensor) -> Rounded:
    """Round tokens [T, K] bf16 contiguous."""
    tokens, k = x.shape
    into = Rounded(
        torch.empty((tokens, k), dtype=torch.float8_e4m3fn, device=x.device),
        torch.empty((tokens, 1), dtype=torch.float32, device=x.device),
    )

    def launch() -> None:
        block = power_of_2(k)
        start(_round_tokens, (tokens,), x, *into, k, BLOCK=block, **early(), num_warps=warps_for(block))

    if k > 2 * MOST_NUMBERS or not attempt("round_tokens", x, launch):
        round_plain(x, into)
    return into


def warps_for(block: int) -> int:
    """Return the warps of a program that holds so many numbers of a token: 16 for each thread, or more."""
    return max(min(block // 512, 16), 1)


def round_plain(x: torch.Tensor, into: Rounded) -> None:
    """Round tokens by torch ops."""
    for some in pieces(len(x)):
        wide = x[some].bfloat16().float()
        scales = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=_LEAST_SCALE)
        into.scales[some] = scales
        into.values[some] = (wide / scales).to(torch.float8_e4m3fn)
