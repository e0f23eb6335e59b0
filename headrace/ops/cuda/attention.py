"""Attention of packed tokens over a paged cache: a split along the sequence, and its sums in a fixed order.

Owns nothing. Called by `executor.cuda`. The specification is `ops.reference.attention`.
A program takes one kv head of one tile of tokens of one row, and one part of the positions these see; all query heads
of the group share what it reads. A second kernel adds the parts up, first to last.

    tile i      tokens tile_first[i] … + tile_count[i] - 1 of the packed batch, all of one row; count 0: nothing to do
    parts       of a tile with positions … h-1: cut at multiples of a length that depends on what the tile sees and on
                the number of parts alone, so never on the rest of the batch

Decode has tiles of one token and many parts, prefill long tiles and one part. With tiles of one token and a fixed
number of parts in both, a token's result has the same bits in any batch and any chunking.
Letters: T tokens, Nq/Nkv query/kv heads, G = Nq / Nkv, D head size, S block size, M block table width.
Source: split KV as in FlashDecoding, Dao et al. 2023; online softmax, Milakov & Gimelshein 2018; paging, Kwon 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headrace.ops.cuda.launching import INTERPRETED, attempt

LEAST_PART = 128  # positions: shorter parts cost more to add up than to read
HEAD_SIZES = (64, 80, 96, 128, 256)  # that kernels are tuned and compiled for ahead; others up to 256 run as well

_INTERPRETED: tl.constexpr = tl.constexpr(INTERPRETED)
_LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How a batch is cut for attention.

    rows, first, count  [tiles] int32  the row (its line of the block tables), first packed token and tokens of a tile
    size                most tokens of a tile
    num_parts           parts that the positions are cut into
    """

    rows: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    size: int
    num_parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How scores are made of q·k: see `model.program.Attention`. sinks [Nq] fp32."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


@triton.jit
def dot(a, b):
    """Multiply tiles with sums in fp32; the interpreter has no bf16 products."""
    if _INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _part_of(low, high, part, BLOCK_N: tl.constexpr, NUM_PARTS: tl.constexpr, LEAST: tl.constexpr):
    """Return where a part of the positions low … high-1 begins and ends; empty beyond the last part."""
    base = low // BLOCK_N * BLOCK_N
    length = tl.cdiv(tl.cdiv(high - base, NUM_PARTS), BLOCK_N) * BLOCK_N
    length = tl.maximum(length, LEAST)
    begin = base + part * length
    return begin, tl.minimum(begin + length, high)


@triton.jit
def _attend(
    q, out, cache, tables, tile_rows, tile_first, tile_count, positions, sinks, partial, partial_stats,
    scale, softcap, window, stride_block, stride_kv, table_width,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, NUM_PARTS: tl.constexpr,
    LEAST: tl.constexpr, TILE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    count = tl.load(tile_count + tile)
    if count > 0:
        row = tl.load(tile_rows + tile).to(tl.int64)
        first = tl.load(tile_first + tile).to(tl.int64)
        start = tl.load(positions + first)
        high = start + count
        low = 0
        if HAS_WINDOW:
            low = tl.maximum(start - window + 1, 0)
        begin, end = _part_of(low, high, part, BLOCK_N, NUM_PARTS, LEAST)
        if begin < high:
            # Rows of the tile: GROUP query heads (padded to a power of two) of token 0, then of token 1, …
            padded: tl.constexpr = BLOCK_M // TILE
            m = tl.arange(0, BLOCK_M)
            member = m // padded
            head_in_group = m % padded
            is_row = (member < count) & (head_in_group < GROUP)
            head = kv_head * GROUP + head_in_group
            d = tl.arange(0, BLOCK_D)
            in_head = d < D
            q_at = ((first + member) * Q_HEADS + head) * D
            queries = tl.load(q + q_at[:, None] + d[None, :], mask=is_row[:, None] & in_head[None, :], other=0.0)
            position = start + member
            top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK_M,), tl.float32)
            acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            keys = cache + kv_head.to(tl.int64) * BLOCK_SIZE * D
            for at in range(begin, end, BLOCK_N):
                n = at + tl.arange(0, BLOCK_N)
                is_held = (n < end) & (n >= low)
                block = tl.load(tables + row * table_width + n // BLOCK_SIZE, mask=is_held, other=0).to(tl.int64)
                place = block * stride_block + (n % BLOCK_SIZE) * D
                inside = is_held[:, None] & in_head[None, :]
                k = tl.load(keys + place[:, None] + d[None, :], mask=inside, other=0.0)
                s = dot(queries, tl.trans(k)) * scale
                if HAS_SOFTCAP:
                    s = softcap * (1.0 - 2.0 / (tl.exp(2.0 * s / softcap) + 1.0))
                seen = is_held[None, :] & (n[None, :] <= position[:, None])
                if HAS_WINDOW:
                    seen = seen & (n[None, :] > position[:, None] - window)
                s = tl.where(seen, s * _LOG2E, float("-inf"))
                new_top = tl.maximum(top, tl.max(s, axis=1))
                # A row that has seen nothing yet keeps -inf; subtracting it from itself would be NaN.
                base = tl.where(new_top == float("-inf"), 0.0, new_top)
                p = tl.exp2(s - base[:, None])
                shrink = tl.exp2(top - base)
                total = total * shrink + tl.sum(p, axis=1)
                v = tl.load(keys + stride_kv + place[:, None] + d[None, :], mask=inside, other=0.0)
                acc = acc * shrink[:, None] + dot(p.to(v.dtype), v)
                top = new_top
            if NUM_PARTS == 1:
                if HAS_SINKS:
                    sink = tl.load(sinks + head, mask=is_row, other=0.0) * _LOG2E
                    base = tl.maximum(top, sink)
                    shrink = tl.exp2(top - base)
                    total = total * shrink + tl.exp2(sink - base)
                    acc = acc * shrink[:, None]
                acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
                spots = out + q_at[:, None] + d[None, :]
                tl.store(spots, acc.to(out.dtype.element_ty), mask=is_row[:, None] & in_head[None, :])
            else:
                line = ((tile.to(tl.int64) * TILE + member) * Q_HEADS + head) * NUM_PARTS + part
                inside_m = is_row[:, None] & in_head[None, :]
                tl.store(partial + line[:, None] * D + d[None, :], acc, mask=inside_m)
                tl.store(partial_stats + line * 2, top, mask=is_row)
                tl.store(partial_stats + line * 2 + 1, total, mask=is_row)


@triton.jit
def _add_parts(
    out, tile_first, tile_count, positions, sinks, partial, partial_stats, window,
    Q_HEADS: tl.constexpr, D: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
    NUM_PARTS: tl.constexpr, LEAST: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    member = tl.program_id(1)
    head = tl.program_id(2)
    count = tl.load(tile_count + tile)
    if member < count:
        first = tl.load(tile_first + tile).to(tl.int64)
        start = tl.load(positions + first)
        high = start + count
        low = 0
        if HAS_WINDOW:
            low = tl.maximum(start - window + 1, 0)
        d = tl.arange(0, BLOCK_D)
        in_head = d < D
        line = ((tile.to(tl.int64) * TILE + member) * Q_HEADS + head) * NUM_PARTS
        top = float("-inf")
        total = 0.0
        if HAS_SINKS:
            top = tl.load(sinks + head) * _LOG2E
            total = 1.0
        acc = tl.zeros((BLOCK_D,), tl.float32)
        for part in range(NUM_PARTS):
            begin, _ = _part_of(low, high, part, BLOCK_N, NUM_PARTS, LEAST)
            if begin < high:
                part_top = tl.load(partial_stats + (line + part) * 2)
                part_total = tl.load(partial_stats + (line + part) * 2 + 1)
                part_acc = tl.load(partial + (line + part) * D + d, mask=in_head, other=0.0)
                new_top = tl.maximum(top, part_top)
                base = tl.where(new_top == float("-inf"), 0.0, new_top)
                shrink, grow = tl.exp2(top - base), tl.exp2(part_top - base)
                total = total * shrink + part_total * grow
                acc = acc * shrink + part_acc * grow
                top = new_top
        acc = acc / tl.where(total > 0.0, total, 1.0)
        tl.store(out + ((first + member) * Q_HEADS + head) * D + d, acc.to(out.dtype.element_ty), mask=in_head)


def attention(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
) -> None:
    """Attend every token to its own sequence, itself included; write to `out` [T, Nq·D].

    q          [T, Nq·D]               rotated
    cache      [blocks, 2, Nkv, S, D]  holds this step's K and V already
    tables     [lines, M] int32        block numbers in position order
    positions  [T] int32               ascending and contiguous within a row
    Cost: reads 2·ΣL·Nkv·D numbers of the cache; writes and reads T·Nq·parts·(D+2) fp32 where there are parts.
    """
    if not attempt("attention", q, lambda: _launch(q, out, cache, tables, tiles, positions, scoring)):
        _plain(q, out, cache, tables, tiles, positions, scoring)


def tile_size(group: int, head_dim: int) -> int:
    """Return the tokens of a prefill tile: with their query heads they fill the matrix units."""
    wanted = 64 if head_dim > 128 else 128
    return max(wanted // int(triton.next_power_of_2(group)), 1)


def _launch(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = q.shape[1] // d
    group = q_heads // kv_heads
    padded = max(triton.next_power_of_2(group), 16 // tiles.size)
    block_m, block_d = padded * tiles.size, max(triton.next_power_of_2(d), 16)
    block_n = 32 if block_d > 128 or q.element_size() > 2 else 64
    parts = tiles.num_parts
    partial = stats = out
    if parts > 1:
        partial = torch.empty((len(tiles.rows) * tiles.size, q_heads, parts, d), dtype=torch.float32, device=q.device)
        stats = torch.empty((len(tiles.rows) * tiles.size, q_heads, parts, 2), dtype=torch.float32, device=q.device)
    sinks = positions if scoring.sinks is None else scoring.sinks
    window = scoring.window or 0
    _attend[(len(tiles.rows), kv_heads, parts)](
        q, out, cache, tables, tiles.rows, tiles.first, tiles.count, positions, sinks, partial, stats,
        scoring.scale, scoring.softcap or 1.0, window, cache.stride(0), cache.stride(1), tables.stride(0),
        Q_HEADS=q_heads, KV_HEADS=kv_heads, GROUP=group, D=d,
        HAS_WINDOW=window > 0, HAS_SOFTCAP=scoring.softcap is not None, HAS_SINKS=scoring.sinks is not None,
        NUM_PARTS=parts, LEAST=LEAST_PART, TILE=tiles.size, BLOCK_SIZE=block_size,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d,
        num_warps=8 if block_m >= 128 else 4, num_stages=2 if block_m >= 64 or block_d > 128 else 3,
    )  # fmt: skip
    if parts > 1:
        _add_parts[(len(tiles.rows), tiles.size, q_heads)](
            out, tiles.first, tiles.count, positions, sinks, partial, stats, window,
            Q_HEADS=q_heads, D=d, HAS_WINDOW=window > 0, HAS_SINKS=scoring.sinks is not None,
            NUM_PARTS=parts, LEAST=LEAST_PART, TILE=tiles.size, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=1,
        )  # fmt: skip


def _plain(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
) -> None:
    """Tile by tile over gathered keys: slow, and it waits for the device to know the sizes."""
    _, _, kv_heads, block_size, d = cache.shape
    starts = positions.tolist()
    lines = zip(tiles.rows.tolist(), tiles.first.tolist(), tiles.count.tolist(), strict=True)
    for row, first, count in lines:
        if not count:
            continue
        high = starts[first] + count
        blocks = tables[row, : -(-high // block_size)].long()
        held = cache[blocks].float().permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, d)[:, :, :high]
        heads = q[first : first + count].view(count, kv_heads, -1, d).float().permute(1, 2, 0, 3)
        s = heads @ held[0][:, None].transpose(-1, -2) * scoring.scale
        if scoring.softcap is not None:
            s = scoring.softcap * torch.tanh(s / scoring.softcap)
        places = torch.arange(high, device=q.device)
        own = torch.arange(starts[first], high, device=q.device)[:, None]
        seen = places <= own
        if scoring.window is not None:
            seen &= places > own - scoring.window
        s = s.masked_fill(~seen, float("-inf"))
        if scoring.sinks is not None:
            extra = scoring.sinks.view(kv_heads, -1, 1, 1).expand(*s.shape[:-1], 1)
            weights = torch.softmax(torch.cat((s, extra), -1), -1)[..., :-1]
        else:
            weights = torch.softmax(s, -1)
        result = (weights @ held[1][:, None]).permute(2, 0, 1, 3)
        out[first : first + count] = result.reshape(count, -1).to(out.dtype)
