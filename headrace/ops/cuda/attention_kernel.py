"""The kernels of paged attention: one part of one tile, and the sum of a tile's parts.

Owns nothing. Launched by `attention`, whose docstring has tiles, parts and letters.
A turn of the loops is in `attention_fold`.
A part writes its sums, waits for all of its threads, and counts, with acquire and release; who counts to the end reads
all parts through L2 and adds them up, in an order that their number decides. The order of arrival never shows.
Source: split KV as in FlashDecoding, Dao et al. 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl

from headrace.ops.cuda.attention_fold import LOG2E, blocks_of, fold, joined
from headrace.ops.cuda.launching import take_turn

MOST_PARTS = 64  # that one tile's sums can be made of

_MOST_PARTS: tl.constexpr = tl.constexpr(MOST_PARTS)
_UNBOUND: tl.constexpr = tl.constexpr(1 << 30)


@triton.jit
def sight(windows, num_sinks, first, window, HAS_WINDOW: tl.constexpr, HAS_REACH: tl.constexpr):
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
def cut(start, count, w, s, num_parts, BLOCK_N: tl.constexpr, LEAST: tl.constexpr):
    """Return (low, high, base, length): a tile sees low … high-1, part i of it begins at base + i * length."""
    high = start + count
    low = tl.where(start >= w + s, start - w + 1, 0)
    base = low // BLOCK_N * BLOCK_N
    length = tl.cdiv(tl.cdiv(high - base, num_parts), BLOCK_N) * BLOCK_N
    return low, high, base, tl.maximum(length, LEAST)


@triton.jit
def _finish(out, at, d, is_row, acc, top, total, sinks, head, D: tl.constexpr, HAS_SINKS: tl.constexpr):
    """Let the sinks take their weight, divide, store."""
    if HAS_SINKS:
        sink = tl.load(sinks + head, mask=is_row, other=0.0) * LOG2E
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
    """Add up the filled parts of a tile, in an order of their own, for the query heads of one kv head."""
    AT_ONCE: tl.constexpr = max(min(4096 // (TILE * PADDED * BLOCK_D), 8), 1)
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
    # Some parts at a time, each in a sum of its own: their loads are under way together.
    held = tl.zeros((TILE * PADDED, AT_ONCE, BLOCK_D), tl.float32)
    inside = is_row[:, None, None] & (d < D)[None, None, :]
    for i in range(0, num_filled, AT_ONCE):
        few = i + tl.arange(0, AT_ONCE)
        at = line[:, None] + few[None, :]
        is_filled = few < num_filled
        spots = partial + at[:, :, None] * D + d[None, None, :]
        sums = tl.load(spots, mask=inside & is_filled[None, :, None], other=0.0, cache_modifier=".cg")
        own = tl.load(
            stats + at * 2, mask=is_row[:, None] & is_filled[None, :], other=float("-inf"), cache_modifier=".cg"
        )
        held += sums * tl.exp2(own - base[:, None])[:, :, None]
    acc = tl.sum(held, axis=1)
    _finish(out, ((first + member) * Q_HEADS + head) * D, d, is_row, acc, top, total, sinks, head, D, HAS_SINKS)


@triton.jit
def deliver(
    acc, top, total, out, partial, stats, counters, sinks, tile, first, count, kv_head, part, num_parts, num_filled,
    member, head, is_row, at,
    Q_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, HAS_SINKS: tl.constexpr, IS_SPLIT: tl.constexpr,
    IS_MERGED: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store a tile's results at `at`, or leave the sums of a part; the last of the filled parts adds them up."""
    d = tl.arange(0, BLOCK_D)
    if not IS_SPLIT:
        _finish(out, at, d, is_row, acc, top, total, sinks, head, D, HAS_SINKS)
    else:
        line = ((tile.to(tl.int64) * TILE + member) * Q_HEADS + head) * num_parts + part
        tl.store(partial + line[:, None] * D + d[None, :], acc, mask=is_row[:, None] & (d < D)[None, :])
        tl.store(stats + line * 2, top, mask=is_row)
        tl.store(stats + line * 2 + 1, total, mask=is_row)
        if IS_MERGED:
            counter = counters + tile * tl.num_programs(1) + kv_head
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
    PADDED: tl.constexpr, WAYS: tl.constexpr, IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Attend one tile's queries of one kv head to one part of what they see."""
    take_turn(IS_EARLY)
    IS_NARROW: tl.constexpr = HAS_WINDOW or HAS_REACH
    # The last tiles of a prompt see the most: they are begun first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    count = tl.load(tile_count + tile)
    first = tl.load(tile_first + tile).to(tl.int64)
    line_of_row = tl.load(tile_rows + tile).to(tl.int64)
    if count > 0:
        start = tl.load(positions + first)
        w, s = sight(windows, num_sinks, first, window, HAS_WINDOW, HAS_REACH)
        low, high, base, length = cut(start, count, w, s, num_parts, BLOCK_N, LEAST)
        begin = base + part * length
        end = tl.minimum(begin + length, high)
        if begin < high:
            # Rows of the tile: GROUP query heads (padded to a power of two) of token 0, then of token 1, …
            table = tables + line_of_row * table_width
            first_block, second_block = blocks_of(table, begin, end - 1, BLOCK_SIZE, BLOCK_N, WAYS)
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
            if WAYS > 1:
                queries = tl.broadcast_to(queries[None, :, :], (WAYS, BLOCK_M, BLOCK_D))
                top = tl.full((WAYS, BLOCK_M), float("-inf"), tl.float32)
                total = tl.zeros((WAYS, BLOCK_M), tl.float32)
                acc = tl.zeros((WAYS, BLOCK_M, BLOCK_D), tl.float32)
            keys = cache + kv_head.to(tl.int64) * stride_head
            key_scales = scales + kv_head.to(tl.int64) * stride_scale_head
            if HAS_REACH:  # noqa: SIM102  (decided at compile time, the inner one as it runs)
                if (part == 0) & (s > 0) & (start + count > w + s):
                    back = tl.load(turned + q_at[:, None] + d[None, :], mask=inside, other=0.0)
                    if WAYS > 1:
                        back = tl.broadcast_to(back[None, :, :], (WAYS, BLOCK_M, BLOCK_D))
                    one, two = blocks_of(table, 0, s - 1, BLOCK_SIZE, BLOCK_N, WAYS)
                    for at in range(0, s, BLOCK_N):
                        next_one, next_two = blocks_of(table, at + BLOCK_N, s - 1, BLOCK_SIZE, BLOCK_N, WAYS)
                        acc, top, total = fold(
                            acc, top, total, back, keys, key_scales, one, two, at, 0, s, position, is_row, w, s,
                            scale, softcap, stride_block, stride_kv, stride_scale_block, stride_scale_kv,
                            D, HAS_SOFTCAP, HAS_SCALES, BLOCK_SIZE, BLOCK_N, BLOCK_D, WAYS, IS_NARROW, 2,
                        )  # fmt: skip
                        one, two = next_one, next_two
            bare = begin
            if TILE > 1 and not IS_NARROW:
                # Whole blocks in front of the tile's first token: nothing to mask.
                bare = tl.maximum(tl.minimum((start + 1) // BLOCK_N * BLOCK_N, end), begin)
                for at in range(begin, bare, BLOCK_N):
                    next_one, next_two = blocks_of(table, at + BLOCK_N, end - 1, BLOCK_SIZE, BLOCK_N, WAYS)
                    acc, top, total = fold(
                        acc, top, total, queries, keys, key_scales, first_block, second_block, at, low, end, position,
                        is_row, w, s, scale, softcap, stride_block, stride_kv, stride_scale_block, stride_scale_kv,
                        D, HAS_SOFTCAP, HAS_SCALES, BLOCK_SIZE, BLOCK_N, BLOCK_D, WAYS, IS_NARROW, 0,
                    )  # fmt: skip
                    first_block, second_block = next_one, next_two
            for at in range(bare, end, BLOCK_N):
                next_one, next_two = blocks_of(table, at + BLOCK_N, end - 1, BLOCK_SIZE, BLOCK_N, WAYS)
                acc, top, total = fold(
                    acc, top, total, queries, keys, key_scales, first_block, second_block, at, low, end, position,
                    is_row, w, s, scale, softcap, stride_block, stride_kv, stride_scale_block, stride_scale_kv,
                    D, HAS_SOFTCAP, HAS_SCALES, BLOCK_SIZE, BLOCK_N, BLOCK_D, WAYS, IS_NARROW, 1,
                )  # fmt: skip
                first_block, second_block = next_one, next_two
            if WAYS > 1:
                acc, top, total = joined(acc, top, total)
            deliver(
                acc, top, total, out, partial, stats, counters, sinks, tile, first, count, kv_head, part, num_parts,
                tl.cdiv(high - base, length), member, head, is_row, q_at,
                Q_HEADS, GROUP, D, HAS_SINKS, IS_SPLIT, IS_MERGED, TILE, PADDED, BLOCK_D,
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
        w, s = sight(windows, num_sinks, first, window, HAS_WINDOW, HAS_REACH)
        _, high, base, length = cut(tl.load(positions + first), count, w, s, num_parts, BLOCK_N, LEAST)
        _merge(
            out, partial, stats, sinks, tile, first, count, tl.program_id(1), num_parts, tl.cdiv(high - base, length),
            Q_HEADS, GROUP, D, HAS_SINKS, TILE, PADDED, BLOCK_D,
        )  # fmt: skip
