"""Decode attention that norms and rotates for itself: from the QKV product to attention's output in one launch.

Owns nothing; writes the cache slots of the tokens it is given. Called by `executor.cuda.model` where every row of a
step is one token; elsewhere `rope.qk_write` and `attention.attention` are two launches.
A program is that of `attention`: one part of what one token sees, for one kv head. It rotates its query heads, as
`qk_write` rounds them, and its key. The program of the last part takes the new key and value from its registers, as
the first numbers of its sums, and writes them; the others count nothing at that position. So no program needs what
another one of the launch writes, and their order never shows.
Not served: int8 KV, whose transform takes as long as a launch; tokens that see less than all but for a layer's window.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.attention import LEAST_PART, Scoring, Tiles, launch_shape
from headrace.ops.cuda.attention_fold import LOG2E, bent, blocks_of, fetch, fold, joined
from headrace.ops.cuda.attention_kernel import cut, deliver, sight
from headrace.ops.cuda.counters import NUM_COUNTERS, counters_of
from headrace.ops.cuda.launching import INTERPRETED, attempt, early, start, take_turn
from headrace.ops.cuda.rope import Rotation, angle, frequencies, inverse_norm, partners, turn
from headrace.ops.cuda.sizes import power_of_2

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)


@triton.jit
def _asked(
    source, norm, is_head, cols, D: tl.constexpr, HALF: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_NORM: tl.constexpr
):  # fmt: skip
    """Load heads [H, D] and the channels that theirs are paired with, and the weights of both."""
    y = tl.load(source + cols, mask=is_head & (cols < D), other=0.0)
    other = y
    weight = 1.0
    other_weight = 1.0
    if HAS_NORM:
        weight = tl.load(norm + cols, mask=cols < D, other=0.0)
    if HAS_ROPE:
        partner = partners(cols, HALF)
        other = tl.load(source + partner, mask=is_head & (cols < 2 * HALF), other=0.0)
        if HAS_NORM:
            other_weight = tl.load(norm + partner, mask=cols < 2 * HALF, other=0.0)
    return y, other, weight, other_weight


@triton.jit
def _rotated(
    y, other, weight, other_weight, cos, sin, eps, cols,
    D: tl.constexpr, HALF: tl.constexpr, HAS_ROPE: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Norm heads and rotate them, in fp32."""
    kind: tl.constexpr = y.dtype
    y = y.to(tl.float32)
    other = other.to(tl.float32)
    if HAS_NORM:
        inverse = inverse_norm(y, eps, D)
        y = y * inverse * weight
        other = other * inverse * other_weight
    if HAS_ROPE:
        y = turn(y, other, cos, sin, cols < 2 * HALF)
    return y.to(kind)


@triton.jit
def repeated(x, ROWS: tl.constexpr):
    """Return [ROWS, …] of the rows of x, over and over."""
    if x.shape[0] == ROWS:
        return x
    times: tl.constexpr = ROWS // x.shape[0]
    if len(x.shape) == 1:
        return tl.reshape(tl.broadcast_to(x[None, :], (times, x.shape[0])), (ROWS,))
    else:
        return tl.reshape(tl.broadcast_to(x[None, :, :], (times, x.shape[0], x.shape[1])), (ROWS, x.shape[1]))


@triton.jit
def _as_if_loaded(x, spots, never):
    """Return x, as what a load did not bring: compilers bring what is loaded into the registers of a product once, what
    is computed they would put into shared memory and read again in every turn."""
    if _INTERPRETED:
        return x
    spots = tl.broadcast_to(spots, x.shape)
    return tl.load(spots, mask=tl.full(x.shape, True, tl.int1) & never, other=x)


@triton.jit(
    do_not_specialize=["num_parts", "window"],
    do_not_specialize_on_alignment=["tile_rows", "tile_first", "tile_count", "positions"],
)
def attend_single(
    qkv, out, cache, tables, tile_rows, tile_first, tile_count, positions, inv_freq, q_norm, k_norm, sinks,
    partial, stats, counters, rope_scale, eps, scale, softcap, window, num_parts, table_width,
    stride_block, stride_kv, stride_head,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HAS_ROPE: tl.constexpr,
    HAS_Q_NORM: tl.constexpr, HAS_K_NORM: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr, IS_SPLIT: tl.constexpr, LEAST: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PADDED: tl.constexpr, WAYS: tl.constexpr,
    IS_EARLY: tl.constexpr,
):  # fmt: skip
    """Attend one token's queries of one kv head to one part of what it sees; the last part writes its key and value."""
    take_turn(IS_EARLY)
    GROUP: tl.constexpr = Q_HEADS // KV_HEADS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    count = tl.load(tile_count + tile)
    first = tl.load(tile_first + tile).to(tl.int64)
    line_of_row = tl.load(tile_rows + tile).to(tl.int64)
    if count > 0:
        # What is to be rotated is asked for before the position is waited for.
        start = tl.load(positions + first)
        cols = tl.arange(0, BLOCK_D)[None, :]
        heads = tl.arange(0, PADDED)[:, None]
        is_head = heads < GROUP
        token = qkv + first * ((Q_HEADS + 2 * KV_HEADS) * D)
        q_from = token + (kv_head * GROUP + heads) * D
        k_from = token + (Q_HEADS + kv_head) * D
        q, q_other, q_weight, q_other_weight = _asked(q_from, q_norm, is_head, cols, D, HALF, HAS_ROPE, HAS_Q_NORM)
        is_key = tl.full((1, 1), True, tl.int1)
        k, k_other, k_weight, k_other_weight = _asked(k_from, k_norm, is_key, cols, D, HALF, HAS_ROPE, HAS_K_NORM)
        v = tl.load(k_from + KV_HEADS * D + cols, mask=cols < D, other=0.0)
        if HAS_ROPE:
            freq = frequencies(inv_freq, cols, HALF)
        w, s = sight(positions, positions, first, window, HAS_WINDOW, False)
        low, high, base, length = cut(start, 1, w, s, num_parts, BLOCK_N, LEAST)
        begin = base + part * length
        if begin < high:
            table = tables + line_of_row * table_width
            last = tl.minimum(begin + length, high) - 1
            first_block, second_block = blocks_of(table, begin, last, BLOCK_SIZE, BLOCK_N, WAYS)
            own_block = tl.load(table + start // BLOCK_SIZE).to(tl.int64)
            cos = 1.0
            sin = 0.0
            if HAS_ROPE:
                cos, sin = angle(start, freq, cols, rope_scale, HALF)
            # While heads are rotated, the first keys and values are on their way.
            keys = cache + kv_head.to(tl.int64) * stride_head
            fetch(keys, first_block, second_block, begin, last, stride_block, stride_kv, D, BLOCK_SIZE, BLOCK_N)
            queries = _rotated(q, q_other, q_weight, q_other_weight, cos, sin, eps, cols, D, HALF, HAS_ROPE, HAS_Q_NORM)
            key = _rotated(k, k_other, k_weight, k_other_weight, cos, sin, eps, cols, D, HALF, HAS_ROPE, HAS_K_NORM)
            is_last = last == start
            own = keys + own_block * stride_block + start % BLOCK_SIZE * D + cols
            num_kept = tl.where(is_last, D, 0)
            tl.store(own, key, mask=cols < num_kept)
            tl.store(own + stride_kv, v, mask=cols < num_kept)
            # The new position is what the sums of the last part begin with: its weight is 1 until a larger score comes.
            score = tl.sum(queries.to(tl.float32) * key.to(tl.float32), axis=1)
            if HAS_SOFTCAP:
                score = bent(score * scale, softcap) * LOG2E
            else:
                score *= scale * LOG2E
            # The matrix units want 16 rows: the same heads again and again.
            queries = _as_if_loaded(repeated(queries, BLOCK_M), out + cols, start < 0)
            score = repeated(score, BLOCK_M)
            m = tl.arange(0, BLOCK_M)
            if WAYS > 1:
                queries = tl.broadcast_to(queries[None, :, :], (WAYS, BLOCK_M, BLOCK_D))
                is_first = (tl.arange(0, WAYS) < tl.where(is_last, 1, 0))[:, None]
                top = tl.where(is_first, score[None, :], float("-inf"))
                total = tl.broadcast_to(tl.where(is_first, 1.0, 0.0), (WAYS, BLOCK_M))
                acc = tl.where(is_first[:, :, None], v.to(tl.float32)[None, :, :], 0.0)
                acc = tl.broadcast_to(acc, (WAYS, BLOCK_M, BLOCK_D))
            else:
                top = tl.where(is_last, score, float("-inf"))
                total = tl.where(is_last, tl.full((BLOCK_M,), 1.0, tl.float32), 0.0)
                acc = tl.broadcast_to(tl.where(is_last, v.to(tl.float32), 0.0), (BLOCK_M, BLOCK_D))
            end = tl.minimum(last + 1, start)
            position = start + tl.zeros((BLOCK_M,), tl.int32)
            for at in range(begin, end, BLOCK_N):
                next_one, next_two = blocks_of(table, at + BLOCK_N, last, BLOCK_SIZE, BLOCK_N, WAYS)
                acc, top, total = fold(
                    acc, top, total, queries, keys, keys, first_block, second_block, at, low, end, position,
                    position, w, s, scale, softcap, stride_block, stride_kv, 0, 0,
                    D, HAS_SOFTCAP, False, BLOCK_SIZE, BLOCK_N, BLOCK_D, WAYS, HAS_WINDOW, 1,
                )  # fmt: skip
                first_block, second_block = next_one, next_two
            if WAYS > 1:
                acc, top, total = joined(acc, top, total)
            head = kv_head * GROUP + m
            deliver(
                acc, top, total, out, partial, stats, counters, sinks, tile, first, 1, kv_head, part, num_parts,
                tl.cdiv(high - base, length), m // BLOCK_M, head, m < GROUP, (first * Q_HEADS + head) * D,
                Q_HEADS, GROUP, D, HAS_SINKS, IS_SPLIT, IS_SPLIT, 1, PADDED, BLOCK_D,
            )  # fmt: skip


def single_attention(
    qkv: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
    rotation: Rotation,
) -> bool:
    """Norm and rotate each row's one token, write its key and value, attend. False: nothing is done, no kernel is here.

    qkv    [T, (Nq + 2·Nkv)·D]  as `rope.qk_write` takes it
    tiles  of one token each, no two of a row
    Others as `attention.attention` has them; a token's slot is where its row's table says.
    """
    if len(tiles.rows) * cache.shape[2] > NUM_COUNTERS:
        return False
    return attempt(
        "attention_single", qkv, lambda: _launch(qkv, out, cache, tables, tiles, positions, scoring, rotation)
    )


def _launch(
    qkv: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
    rotation: Rotation,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = out.shape[1] // d
    padded = power_of_2(q_heads // kv_heads)
    block_m, block_d = max(padded, 16), max(power_of_2(d), 16)
    shape = launch_shape(block_m, block_d, qkv.element_size(), cache.element_size(), has_reach=False)
    parts = tiles.num_parts
    partial = stats = counters = out
    if parts > 1:
        partial = torch.empty((len(tiles.rows), q_heads, parts, d), dtype=torch.float32, device=qkv.device)
        stats = torch.empty((len(tiles.rows), q_heads, parts, 2), dtype=torch.float32, device=qkv.device)
        counters = counters_of(qkv.device)
    vectors = (rotation.inv_freq, rotation.q_norm, rotation.k_norm, scoring.sinks)
    start(
        attend_single, (len(tiles.rows), kv_heads, parts),
        qkv, out, cache, tables, tiles.rows, tiles.first, tiles.count, positions,
        *(qkv if vector is None else vector for vector in vectors), partial, stats, counters,
        rotation.scale, rotation.eps, scoring.scale, scoring.softcap or 1.0, scoring.window or 0, parts,
        tables.stride(0), *cache.stride()[:3],
        Q_HEADS=q_heads, KV_HEADS=kv_heads, D=d, HALF=0 if rotation.inv_freq is None else len(rotation.inv_freq),
        HAS_ROPE=rotation.inv_freq is not None, HAS_Q_NORM=rotation.q_norm is not None,
        HAS_K_NORM=rotation.k_norm is not None, HAS_WINDOW=bool(scoring.window),
        HAS_SOFTCAP=scoring.softcap is not None, HAS_SINKS=scoring.sinks is not None, IS_SPLIT=parts > 1,
        LEAST=LEAST_PART, BLOCK_SIZE=block_size, BLOCK_M=block_m, BLOCK_N=shape.block_n, BLOCK_D=block_d,
        PADDED=padded, WAYS=shape.ways, **early(),
        num_warps=8 if block_m >= 128 else 4, num_stages=shape.num_stages,
        maxnreg=168 if block_d == 128 and qkv.element_size() == 2 else None,
    )  # fmt: skip
