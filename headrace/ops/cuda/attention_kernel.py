"""The kernels of paged attention: one part of one tile, and the sum of a tile's parts.

Owns nothing. Launched by `attention`, whose docstring has tiles, parts and letters.
Scores are kept as they come from the product; the scale, times log2 e, goes into the exponent, one fused multiply-add
for each. Rows that have seen nothing keep -inf, and what is subtracted from that is 0 then: no NaN of inf - inf.
A part writes its sums, waits for all of its threads, and counts, with acquire and release; who counts to the end reads
all parts, from the first to the last, through L2. The order of arrival never shows.
Source: split KV as in FlashDecoding, Dao et al. 2023; online softmax, Milakov & Gimelshein 2018.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.launching import INTERPRETED, take_turn

MOST_PARTS = 64  # that one tile's sums can be made of

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
_MOST_PARTS: tl.constexpr = tl.constexpr(MOST_PARTS)
_UNBOUND: tl.constexpr = tl.constexpr(1 << 30)


@triton.jit
def dot(a, b):
    """Multiply tiles with sums in fp32; the interpreter has no bf16 products."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _widened(held, kind: tl.constexpr):
    """Turn what a cache holds into the kind of the queries; the interpreter takes int8 for bits of bf16."""
    if _INTERPRETED:
        return held.to(tl.float32).to(kind)
    return held.to(kind)


@triton.jit
def _sight(windows, num_sinks, first, window, HAS_WINDOW: tl.constexpr, HAS_REACH: tl.constexpr):
    """Return (w, s) of a row: from position w + s on, tokens see the last w positions and the first s."""
    w = _UNBOUND
    s = 0
    if HAS_WINDOW:
        w = window
    if HAS_REACH:
        wanted = tl.load(windows + first)
        is_narrower = (wanted > 0) & (wanted < w)
        s = tl.where(is_narrower, tl.load(num_sinks + first), 0)
        w = tl.where(is_narrower, wanted, w)
    return w, s


@triton.jit
def _cut(start, count, w, s, num_parts, BLOCK_N: tl.constexpr, LEAST: tl.constexpr):
    """Return (low, high, base, length): a tile sees low … high-1, part i of it begins at base + i * length."""
    high = start + count
    low = tl.where(start >= w + s, start - w + 1, 0)
    base = low // BLOCK_N * BLOCK_N
    length = tl.cdiv(tl.cdiv(high - base, num_parts), BLOCK_N) * BLOCK_N
    return low, high, base, tl.maximum(length, LEAST)


@triton.jit
def _heads(base, place, d, is_held, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Load [BLOCK_N, BLOCK_D] of the cache."""
    spots = base + place[:, None] + d[None, :]
    if MASKED:
        held = tl.load(spots, mask=is_held[:, None] & (d < D)[None, :], other=0)
    elif D < BLOCK_D:
        held = tl.load(spots, mask=(d < D)[None, :], other=0)
    else:
        held = tl.load(spots)
    return held


@triton.jit
def _fold(
    acc, top, total, queries, keys, scales, table, at, low, end, position, is_row, w, s, scale, softcap,
    stride_block, stride_kv, stride_scale_block, stride_scale_kv,
    D: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SCALES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, IS_NARROW: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Take in the positions at … at+BLOCK_N-1 of low … end-1. MASK 0: all count for every row; 1: those that its
    position sees; 2: all of them, for the rows that see the first s apart."""
    n = at + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    is_held = (n < end) & (n >= low)
    if MASK == 0:
        block = tl.load(table + n // BLOCK_SIZE).to(tl.int64)
    else:
        block = tl.load(table + n // BLOCK_SIZE, mask=is_held, other=0).to(tl.int64)
    place = block * stride_block + (n % BLOCK_SIZE) * D
    k = _heads(keys, place, d, is_held, D, BLOCK_D, MASK > 0)
    scores = dot(queries, tl.trans(_widened(k, queries.dtype)))
    spot = scales + block * stride_scale_block + n % BLOCK_SIZE
    if HAS_SCALES:
        scores *= tl.load(spot, mask=is_held, other=0.0).to(tl.float32)[None, :]
    # What the exponent is made of: scores that a cap has bent are scaled already.
    factor = scale * _LOG2E
    if HAS_SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * (scores * scale) / softcap) + 1.0))
        factor = _LOG2E
    if MASK == 1:
        is_seen = is_held[None, :] & (n[None, :] <= position[:, None])
        if IS_NARROW:
            is_seen &= (n[None, :] > position[:, None] - w) | (position < w + s)[:, None]
        scores = tl.where(is_seen, scores, float("-inf"))
    if MASK == 2:
        scores = tl.where(is_held[None, :] & (is_row & (position >= w + s))[:, None], scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, axis=1) * factor)
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(scores * factor - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(p, axis=1)
    if HAS_SCALES:
        p *= tl.load(spot + stride_scale_kv, mask=is_held, other=0.0).to(tl.float32)[None, :]
    v = _widened(_heads(keys + stride_kv, place, d, is_held, D, BLOCK_D, MASK > 0), queries.dtype)
    acc = acc * shrink[:, None] + dot(p.to(queries.dtype), v)
    return acc, new_top, total


@triton.jit
def _finish(out, at, d, is_row, acc, top, total, sinks, head, D: tl.constexpr, HAS_SINKS: tl.constexpr):
    """Let the sinks take their weight, divide, store."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0) * _LOG2E
        base = tl.maximum(top, sink)
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.exp2(sink - base)
        acc = acc * shrink[:, None]
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    inside = is_row[:, None] & (d < D)[None, :]
    tl.store(out + at[:, None] + d[None, :], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _merge(
    out, partial, stats, sinks, tile, first, count, kv_head, num_parts, num_filled,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, HAS_SINKS: tl.constexpr, TILE: tl.constexpr,
    PADDED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add up the filled parts of a tile, first to last, for the query heads of one kv head."""
    m = tl.arange(0, TILE * PADDED)
    member = m // PADDED
    head = kv_head * GROUP + m % PADDED
    is_row = (member < count) & (m % PADDED < GROUP)
    d = tl.arange(0, BLOCK_D)
    line = ((tile.to(tl.int64) * TILE + member) * Q_HEADS + head) * num_parts
    part = tl.arange(0, _MOST_PARTS)
    is_part = is_row[:, None] & (part < num_filled)[None, :]
    # `.cg`: what other multiprocessors wrote lies in L2.
    pairs = stats + (line[:, None] + part[None, :]) * 2
    tops = tl.load(pairs, mask=is_part, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(pairs + 1, mask=is_part, other=0.0, cache_modifier=".cg")
    top = tl.max(tops, axis=1)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(totals * tl.exp2(tops - base[:, None]), axis=1)
    acc = tl.zeros((TILE * PADDED, BLOCK_D), tl.float32)
    inside = is_row[:, None] & (d < D)[None, :]
    for i in tl.range(0, num_filled, loop_unroll_factor=4):
        own = tl.load(stats + (line + i) * 2, mask=is_row, other=float("-inf"), cache_modifier=".cg")
        spots = partial + (line + i)[:, None] * D + d[None, :]
        acc += tl.load(spots, mask=inside, other=0.0, cache_modifier=".cg") * tl.exp2(own - base)[:, None]
    _finish(out, ((first + member) * Q_HEADS + head) * D, d, is_row, acc, top, total, sinks, head, D, HAS_SINKS)


@triton.jit(
    do_not_specialize=["num_parts", "window"],
    do_not_specialize_on_alignment=["tile_rows", "tile_first", "tile_count", "positions", "windows", "num_sinks"],
)
def attend(
    q, turned, out, cache, scales, tables, tile_rows, tile_first, tile_count, positions, windows, num_sinks, sinks,
    partial, stats, counters, scale, softcap, window, num_parts, table_width,
    stride_block, stride_kv, stride_head, stride_scale_block, stride_scale_kv, stride_scale_head,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_REACH: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SCALES: tl.constexpr,
    IS_SPLIT: tl.constexpr, IS_MERGED: tl.constexpr, LEAST: tl.constexpr, TILE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PADDED: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Attend one tile's queries of one kv head to one part of what they see."""
    take_turn(IS_EARLY)
    IS_NARROW: tl.constexpr = HAS_WINDOW or HAS_REACH
    # The last tiles of a prompt see the most: they are begun first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    count = tl.load(tile_count + tile)
    if count > 0:
        first = tl.load(tile_first + tile).to(tl.int64)
        start = tl.load(positions + first)
        w, s = _sight(windows, num_sinks, first, window, HAS_WINDOW, HAS_REACH)
        low, high, base, length = _cut(start, count, w, s, num_parts, BLOCK_N, LEAST)
        begin = base + part * length
        end = tl.minimum(begin + length, high)
        if begin < high:
            # Rows of the tile: GROUP query heads (padded to a power of two) of token 0, then of token 1, …
            each: tl.constexpr = BLOCK_M // TILE
            m = tl.arange(0, BLOCK_M)
            member = m // each
            head = kv_head * GROUP + m % each
            is_row = (member < count) & (m % each < GROUP)
            d = tl.arange(0, BLOCK_D)
            inside = is_row[:, None] & (d < D)[None, :]
            q_at = ((first + member) * Q_HEADS + head) * D
            queries = tl.load(q + q_at[:, None] + d[None, :], mask=inside, other=0.0)
            position = start + member
            top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_M,), tl.float32)
            acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            keys = cache + kv_head.to(tl.int64) * stride_head
            key_scales = scales + kv_head.to(tl.int64) * stride_scale_head
            table = tables + tl.load(tile_rows + tile).to(tl.int64) * table_width
            if HAS_REACH:  # noqa: SIM102  (decided at compile time, the inner one as it runs)
                if (part == 0) & (s > 0) & (start + count > w + s):
                    back = tl.load(turned + q_at[:, None] + d[None, :], mask=inside, other=0.0)
                    for at in range(0, s, BLOCK_N):
                        acc, top, total = _fold(
                            acc, top, total, back, keys, key_scales, table, at, 0, s, position, is_row, w, s, scale,
                            softcap, stride_block, stride_kv, stride_scale_block, stride_scale_kv,
                            D, HAS_SOFTCAP, HAS_SCALES, BLOCK_SIZE, BLOCK_N, BLOCK_D, IS_NARROW, 2,
                        )  # fmt: skip
            bare = begin
            if TILE > 1 and not IS_NARROW:
                # Whole blocks in front of the tile's first token: nothing to mask.
                bare = tl.maximum(tl.minimum((start + 1) // BLOCK_N * BLOCK_N, end), begin)
                for at in range(begin, bare, BLOCK_N):
                    acc, top, total = _fold(
                        acc, top, total, queries, keys, key_scales, table, at, low, end, position, is_row, w, s, scale,
                        softcap, stride_block, stride_kv, stride_scale_block, stride_scale_kv,
                        D, HAS_SOFTCAP, HAS_SCALES, BLOCK_SIZE, BLOCK_N, BLOCK_D, IS_NARROW, 0,
                    )  # fmt: skip
            for at in range(bare, end, BLOCK_N):
                acc, top, total = _fold(
                    acc, top, total, queries, keys, key_scales, table, at, low, end, position, is_row, w, s, scale,
                    softcap, stride_block, stride_kv, stride_scale_block, stride_scale_kv,
                    D, HAS_SOFTCAP, HAS_SCALES, BLOCK_SIZE, BLOCK_N, BLOCK_D, IS_NARROW, 1,
                )  # fmt: skip
            if not IS_SPLIT:
                _finish(out, q_at, d, is_row, acc, top, total, sinks, head, D, HAS_SINKS)
            else:
                line = ((tile.to(tl.int64) * TILE + member) * Q_HEADS + head) * num_parts + part
                tl.store(partial + line[:, None] * D + d[None, :], acc, mask=inside)
                tl.store(stats + line * 2, top, mask=is_row)
                tl.store(stats + line * 2 + 1, total, mask=is_row)
                if IS_MERGED:
                    counter = counters + tile * tl.num_programs(1) + kv_head
                    num_filled = tl.cdiv(high - base, length)
                    tl.debug_barrier()  # one thread counts for all of them, once all have written
                    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_filled - 1:
                        tl.debug_barrier()  # … and has seen what the others wrote before any thread reads it
                        tl.store(counter, 0)
                        _merge(
                            out, partial, stats, sinks, tile, first, count, kv_head, num_parts, num_filled,
                            Q_HEADS, GROUP, D, HAS_SINKS, TILE, PADDED, BLOCK_D,
                        )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_parts", "window"],
    do_not_specialize_on_alignment=["tile_first", "tile_count", "positions", "windows", "num_sinks"],
)
def add_parts(
    out, tile_first, tile_count, positions, windows, num_sinks, sinks, partial, stats, window, num_parts,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_REACH: tl.constexpr,
    HAS_SINKS: tl.constexpr, LEAST: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PADDED: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Add up the parts that `attend` left, in a launch of its own."""
    take_turn(IS_EARLY)
    tile = tl.program_id(0)
    count = tl.load(tile_count + tile)
    if count > 0:
        first = tl.load(tile_first + tile).to(tl.int64)
        w, s = _sight(windows, num_sinks, first, window, HAS_WINDOW, HAS_REACH)
        _, high, base, length = _cut(tl.load(positions + first), count, w, s, num_parts, BLOCK_N, LEAST)
        _merge(
            out, partial, stats, sinks, tile, first, count, tl.program_id(1), num_parts, tl.cdiv(high - base, length),
            Q_HEADS, GROUP, D, HAS_SINKS, TILE, PADDED, BLOCK_D,
        )  # fmt: skip
