"""Stored weights made into the numbers that are multiplied, in registers, without tables or the conversion units.

Owns nothing. Called by `linear_kernel`; the layouts are those of `weights`, words of 16 bits in tiles [N, 32].
For bf16 a number is made by placing bits: 0x4300 | q is 128 + q for q < 128, so 4 bits come out by one subtraction; of
8 bits the lower seven make 128 + b, the sign makes 128 or 256, and their difference is the number. Both are exact.
The steps are vectors of two numbers, written in PTX, with fused multiply-adds alone: sums and products of two bf16 came
with compute capability 9.0; for other kinds, and in the interpreter, the same numbers are made
by conversions. What the vectors give is shown in numpy for every byte by `tests/gpu/test_dequantize.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import INTERPRETED

KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)

# Two words of 16 bits: each of their four 4-bit numbers, less 8, times a scale, plus a middle.
_NIBBLES: tl.constexpr = tl.constexpr("""{
.reg .b32 mask, base, one, zero, q0, q1, q2, q3;
mov.b32 mask, 0x000f000f;
mov.b32 base, 0x43004300;
mov.b32 one, 0x3f803f80;
mov.b32 zero, 0xc308c308;
shr.b32 q1, $4, 4;
shr.b32 q2, $4, 8;
shr.b32 q3, $4, 12;
lop3.b32 q0, $4, mask, base, 0xea;
lop3.b32 q1, q1, mask, base, 0xea;
lop3.b32 q2, q2, mask, base, 0xea;
lop3.b32 q3, q3, mask, base, 0xea;
fma.rn.bf16x2 q0, q0, one, zero;
fma.rn.bf16x2 q1, q1, one, zero;
fma.rn.bf16x2 q2, q2, one, zero;
fma.rn.bf16x2 q3, q3, one, zero;
fma.rn.bf16x2 $0, q0, $5, $9;
fma.rn.bf16x2 $1, q1, $6, $10;
fma.rn.bf16x2 $2, q2, $7, $11;
fma.rn.bf16x2 $3, q3, $8, $12;
}""")
# Two words of 16 bits, $2: their lower and upper bytes without the sign, and the signs, over 128 each.
_BYTES = """.reg .b32 seven, sign, base, minus, high, b0, b1, s0, s1;
mov.b32 minus, 0xbf80bf80;
mov.b32 seven, 0x007f007f;
mov.b32 sign, 0x00800080;
mov.b32 base, 0x43004300;
shr.b32 high, $2, 8;
lop3.b32 b0, $2, seven, base, 0xea;
lop3.b32 s0, $2, sign, base, 0xea;
lop3.b32 b1, high, seven, base, 0xea;
lop3.b32 s1, high, sign, base, 0xea;
"""
_SIGNED: tl.constexpr = tl.constexpr(
    "{\n"
    + _BYTES
    + """fma.rn.bf16x2 $0, s0, minus, b0;
fma.rn.bf16x2 $1, s1, minus, b1;
}"""
)
# The same, each times a scale.
_SIGNED_SCALED: tl.constexpr = tl.constexpr(
    "{\n"
    + _BYTES
    + """.reg .b32 nothing;
mov.b32 nothing, 0x80008000;
fma.rn.bf16x2 b0, s0, minus, b0;
fma.rn.bf16x2 b1, s1, minus, b1;
fma.rn.bf16x2 $0, b0, $3, nothing;
fma.rn.bf16x2 $1, b1, $4, nothing;
}"""
)


@triton.jit
def low_half(words, kind: tl.constexpr):
    """Read the lower 16 bits of int32 words as numbers of a kind of 16 bits."""
    return words.to(tl.int16).to(kind, bitcast=True)


@triton.jit
def high_half(words, kind: tl.constexpr):
    """Read the upper 16 bits of int32 words as numbers of a kind of 16 bits."""
    return (words >> 16).to(tl.int16).to(kind, bitcast=True)


@triton.jit
def _across(of_rows, n: tl.constexpr):
    return tl.broadcast_to(of_rows[:, None], (n, 32))


@triton.jit
def nibble(words, place: tl.constexpr, pairs, SCALE_KIND: tl.constexpr, kind: tl.constexpr):
    """Return one tile [N, 32] of `kind`: number `place` of each word, less 8, scaled, plus its row's middle."""
    q = (((words >> (4 * place)) & 15) - 8).to(tl.float32)
    scales, middles = low_half(pairs, SCALE_KIND).to(tl.float32), high_half(pairs, SCALE_KIND).to(tl.float32)
    return (q * scales[:, None] + middles[:, None]).to(kind)


@triton.jit
def nibbles(words, p0, p1, p2, p3, SCALE_KIND: tl.constexpr, kind: tl.constexpr):
    """Return the four tiles of `nibble`, each with its own pairs of scale and middle."""
    if kind == tl.bfloat16 and kind == SCALE_KIND and not _INTERPRETED:
        n: tl.constexpr = words.shape[0]
        return tl.inline_asm_elementwise(
            _NIBBLES, "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r",
            [
                words,
                _across(low_half(p0, SCALE_KIND), n), _across(low_half(p1, SCALE_KIND), n),
                _across(low_half(p2, SCALE_KIND), n), _across(low_half(p3, SCALE_KIND), n),
                _across(high_half(p0, SCALE_KIND), n), _across(high_half(p1, SCALE_KIND), n),
                _across(high_half(p2, SCALE_KIND), n), _across(high_half(p3, SCALE_KIND), n),
            ],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    return (
        nibble(words, 0, p0, SCALE_KIND, kind), nibble(words, 1, p1, SCALE_KIND, kind),
        nibble(words, 2, p2, SCALE_KIND, kind), nibble(words, 3, p3, SCALE_KIND, kind),
    )  # fmt: skip


@triton.jit
def signed(words, kind: tl.constexpr):
    """Return two tiles [N, 32] of `kind`: the lower byte of each word, and the upper one."""
    if kind == tl.bfloat16 and not _INTERPRETED:
        return tl.inline_asm_elementwise(
            _SIGNED, "=r,=r,r", [words], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2
        )
    return ((words << 8) >> 8).to(tl.float32).to(kind), (words >> 8).to(tl.float32).to(kind)


@triton.jit
def signed_scaled(words, pairs, SCALE_KIND: tl.constexpr, kind: tl.constexpr):
    """Return the two tiles of `signed`, times the two scales of their row."""
    s0, s1 = low_half(pairs, SCALE_KIND), high_half(pairs, SCALE_KIND)
    if kind == tl.bfloat16 and kind == SCALE_KIND and not _INTERPRETED:
        n: tl.constexpr = words.shape[0]
        return tl.inline_asm_elementwise(
            _SIGNED_SCALED, "=r,=r,r,r,r", [words, _across(s0, n), _across(s1, n)],
            dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
    lower = ((words << 8) >> 8).to(tl.float32) * s0.to(tl.float32)[:, None]
    upper = (words >> 8).to(tl.float32) * s1.to(tl.float32)[:, None]
    return lower.to(kind), upper.to(kind)
