"""A turn of paged attention: some positions' keys and values, taken into the sums of a tile's queries.

Owns nothing. Called by the kernels of `attention_kernel`; letters as in `attention`.
Scores are kept as they come from the product; the scale, times log2 e, goes into the exponent, one fused multiply-add
for each. Rows that have seen nothing keep -inf, and what is subtracted from that is 0 then: no NaN of inf - inf.
Tiles of one token have so few rows that warps can only share positions: with WAYS, each has its own of every turn, and
a maximum, a total and sums of its own until the end, so that no turn waits for another warp's. Numbers then have one
axis more in front, of the warps.
Source: online softmax, Milakov & Gimelshein 2018.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.launching import INTERPRETED

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
# Four int8 become two pairs of halves: the low seven bits behind the exponent of 128, less 128 or, if negative, 256.
INT8_TO_BF16: tl.constexpr = tl.constexpr("""{
.reg .b32 x, low, sign, less;
mov.b32 less, 0xbf80bf80;
prmt.b32 x, $2, 0, 0x4140;
lop3.b32 low, x, 0x007f007f, 0x43004300, 0xea;
lop3.b32 sign, x, 0x00800080, 0x43004300, 0xea;
fma.rn.bf16x2 $0, sign, less, low;
prmt.b32 x, $2, 0, 0x4342;
lop3.b32 low, x, 0x007f007f, 0x43004300, 0xea;
lop3.b32 sign, x, 0x00800080, 0x43004300, 0xea;
fma.rn.bf16x2 $1, sign, less, low;
}""")
# All eight bits, the highest turned, behind the exponent of 1024, less 1152.
INT8_TO_FP16: tl.constexpr = tl.constexpr("""{
.reg .b32 x, y, less;
mov.b32 less, 0xe480e480;
xor.b32 x, $2, 0x80808080;
prmt.b32 y, x, 0x64646464, 0x4140;
add.rn.f16x2 $0, y, less;
prmt.b32 y, x, 0x64646464, 0x4342;
add.rn.f16x2 $1, y, less;
}""")


@triton.jit
def dot(a, b):
    """Multiply tiles with sums in fp32; the interpreter has no bf16 products."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _widened(held, kind: tl.constexpr, IS_PURE: tl.constexpr):
    """Turn what a cache holds into the kind of the queries; the interpreter takes int8 for bits of bf16.

    IS_PURE False: in the layout that it was loaded in. Values, which are read across, would otherwise be read from
    shared memory byte by byte; so they are written there again as halves, whose transposed tiles one load brings."""
    if _INTERPRETED:
        return held.to(tl.float32).to(kind)
    elif held.dtype == tl.int8 and kind == tl.bfloat16:
        return tl.inline_asm_elementwise(INT8_TO_BF16, "=r,=r,r", [held], dtype=tl.bfloat16, is_pure=IS_PURE, pack=4)
    elif held.dtype == tl.int8 and kind == tl.float16:
        return tl.inline_asm_elementwise(INT8_TO_FP16, "=r,=r,r", [held], dtype=tl.float16, is_pure=IS_PURE, pack=4)
    else:
        return held.to(kind)


@triton.jit
def _steps(BLOCK_N: tl.constexpr, WAYS: tl.constexpr):
    """Return 0 … BLOCK_N-1, [BLOCK_N], or [WAYS, BLOCK_N / WAYS] where each warp has positions of its own."""
    if WAYS > 1:
        each: tl.constexpr = BLOCK_N // WAYS
        return tl.arange(0, WAYS)[:, None] * each + tl.arange(0, each)[None, :]
    else:
        return tl.arange(0, BLOCK_N)


@triton.jit
def blocks_of(table, at, last, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, WAYS: tl.constexpr):
    """Return the blocks of positions at … at+BLOCK_N-1, none behind that of `last`: of the first half and the second,
    or for each position. Read a turn ahead, so that the loads of keys wait for no other."""
    if BLOCK_SIZE % BLOCK_N == 0:
        first = tl.load(table + tl.minimum(at, last) // BLOCK_SIZE)
        return first, first
    elif BLOCK_N == 2 * BLOCK_SIZE:
        first = tl.load(table + tl.minimum(at, last) // BLOCK_SIZE)
        second = tl.load(table + tl.minimum(at + BLOCK_SIZE, last) // BLOCK_SIZE)
        return first, second
    else:
        each = tl.load(table + tl.minimum(at + _steps(BLOCK_N, WAYS), last) // BLOCK_SIZE)
        return each, each


@triton.jit
def _places(first, second, at, stride, row, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, WAYS: tl.constexpr):
    """Return where positions at … at+BLOCK_N-1 lie in what has `stride` numbers a block and `row` a position."""
    n = _steps(BLOCK_N, WAYS)
    if BLOCK_SIZE % BLOCK_N == 0:
        return first.to(tl.int64) * stride + at % BLOCK_SIZE * row + n * row
    elif BLOCK_N == 2 * BLOCK_SIZE:
        # Chosen before it is multiplied: so compilers see that all places are multiples of what the stride is one of.
        return tl.where(n < BLOCK_SIZE, first, second).to(tl.int64) * stride + n % BLOCK_SIZE * row
    else:
        return first.to(tl.int64) * stride + (at + n) % BLOCK_SIZE * row


@triton.jit
def fetch(
    keys, first, second, at, last, stride_block, stride_kv,
    D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Have keys and values of the positions at … last of a turn brought to the L2 cache; nothing waits for them."""
    if not _INTERPRETED and (BLOCK_SIZE % BLOCK_N == 0 or BLOCK_N == 2 * BLOCK_SIZE):
        line: tl.constexpr = 128 * 8 // keys.dtype.element_ty.primitive_bitwidth  # numbers that are fetched at once
        LINES: tl.constexpr = triton.next_power_of_2((D + line - 1) // line)
        n = tl.minimum(tl.arange(0, BLOCK_N)[:, None], last - at)
        if BLOCK_SIZE % BLOCK_N == 0:
            place = first.to(tl.int64) * stride_block + (at % BLOCK_SIZE + n) * D
        else:
            place = tl.where(n < BLOCK_SIZE, first, second).to(tl.int64) * stride_block + n % BLOCK_SIZE * D
        spots = keys + place + tl.minimum(tl.arange(0, LINES)[None, :] * line, D - 1)
        for some in tl.static_range(2):
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [(spots + some * stride_kv).to(tl.int64)],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip


@triton.jit
def _heads(spots, is_held, d, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Load [… BLOCK_N, BLOCK_D] of the cache."""
    if MASKED:
        held = tl.load(spots, mask=tl.expand_dims(is_held, -1) & (d < D), other=0)
    elif D < BLOCK_D:
        held = tl.load(spots, mask=tl.full(spots.shape, True, tl.int1) & (d < D), other=0)
    else:
        held = tl.load(spots)
    return held


@triton.jit
def bent(scores, softcap):
    """Return softcap * tanh(scores / softcap)."""
    return softcap * (1.0 - 2.0 / (tl.exp(2.0 * scores / softcap) + 1.0))


@triton.jit
def fold(
    acc, top, total, queries, keys, scales, first, second, at, low, end, position, is_row, w, s, scale, softcap,
    stride_block, stride_kv, stride_scale_block, stride_scale_kv,
    D: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SCALES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, WAYS: tl.constexpr, IS_NARROW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Take in the positions at … at+BLOCK_N-1 of low … end-1. MASK 0: all count for every row; 1: those that its
    position sees; 2: all of them, for the rows that see the first s apart."""
    LAST: tl.constexpr = 2 if WAYS > 1 else 1  # axis of the positions
    n = at + _steps(BLOCK_N, WAYS)
    d = tl.arange(0, BLOCK_D)
    is_held = n < end
    if IS_NARROW:
        is_held &= n >= low
    place = _places(first, second, at, stride_block, D, BLOCK_SIZE, BLOCK_N, WAYS)
    spots = keys + tl.expand_dims(place, LAST) + d
    if HAS_SCALES:
        spot = scales + _places(first, second, at, stride_scale_block, 1, BLOCK_SIZE, BLOCK_N, WAYS)
        k_scale, v_scale = tl.load(spot), tl.load(spot + stride_scale_kv)
        if MASK > 0:
            v_scale = tl.where(is_held, v_scale, 0.0)
    k = _widened(_heads(spots, is_held, d, D, BLOCK_D, False), queries.dtype, True)
    scores = dot(queries, tl.permute(k, (0, 2, 1)) if WAYS > 1 else tl.trans(k))
    if HAS_SCALES:
        scores *= tl.expand_dims(k_scale.to(tl.float32), LAST - 1)
    # What the exponent is made of: scores that a cap has bent are scaled already.
    factor = scale * LOG2E
    if HAS_SOFTCAP:
        scores = bent(scores * scale, softcap)
        factor = LOG2E
    own = tl.expand_dims(position, 1)
    if MASK == 1:
        column = tl.expand_dims(n, LAST - 1)
        is_seen = tl.expand_dims(is_held, LAST - 1) & (column <= own)
        if IS_NARROW:
            is_seen &= (column > own - w) | (own < w + s)
        scores = tl.where(is_seen, scores, float("-inf"))
    if MASK == 2:
        is_seen = tl.expand_dims(is_held, LAST - 1) & (tl.expand_dims(is_row, 1) & (own >= w + s))
        scores = tl.where(is_seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=LAST) * factor)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(scores * factor - tl.expand_dims(base, LAST))
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(p, axis=LAST)
    if HAS_SCALES:
        p *= tl.expand_dims(v_scale.to(tl.float32), LAST - 1)
    # What lies behind the end may be another row's, and not finite.
    v = _widened(_heads(spots + stride_kv, is_held, d, D, BLOCK_D, MASK > 0), queries.dtype, False)
    acc = acc * tl.expand_dims(shrink, LAST) + dot(p.to(queries.dtype), v)
    return acc, new_top, total


@triton.jit
def joined(acc, top, total):
    """Add up what the warps have taken in, each its own positions."""
    best = tl.max(top, axis=0)
    base = tl.where(best == float("-inf"), 0.0, best)
    weight = tl.exp2(top - base[None, :])
    return tl.sum(acc * weight[:, :, None], axis=0), best, tl.sum(total * weight, axis=0)
