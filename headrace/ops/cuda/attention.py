"""Attention of packed tokens over a paged cache: a split along the sequence, and its sums in a fixed order.

Owns nothing: parts that have arrived are counted in `counters`. Called by `executor.cuda`.
The specification is `ops.reference.attention`; the kernels are in `attention_kernel`.
A program takes one kv head of one tile of tokens of one row, and one part of the positions these see; all query heads
of the group share what it reads. The program that ends last adds the parts up.

    tile i      tokens tile_first[i] … + tile_count[i] - 1 of the packed batch, all of one row; count 0: nothing to do
    parts       of a tile with positions … h-1: cut at multiples of a length that depends on what the tile sees and on
                the number of parts alone, so never on the rest of the batch

Decode has tiles of one token and many parts, prefill long tiles and one part. With tiles of one token and a fixed
number of parts in both, a token's result has the same bits in any batch and any chunking.
Letters: T tokens, Nq/Nkv query/kv heads, G = Nq / Nkv, D head size, S block size, M block table width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from headrace.ops.cuda.attention_kernel import MOST_PARTS, add_parts, attend
from headrace.ops.cuda.attention_plain import attend_plainly
from headrace.ops.cuda.counters import NUM_COUNTERS, counters_of
from headrace.ops.cuda.launching import attempt, early, start
from headrace.ops.cuda.sizes import power_of_2

LEAST_PART = 128  # positions: shorter parts cost more to add up than to read
HEAD_SIZES = (64, 80, 96, 128, 256)  # that kernels are tuned and compiled for ahead; others up to 256 run as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How a batch is cut for attention.

    rows, first, count  [tiles] int32  the row (its line of the block tables), first packed token and tokens of a tile
    size                most tokens of a tile
    num_parts           parts that the positions are cut into, at most MOST_PARTS
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReach:
    """What tokens see when not all before them: see `core.request.Reach`. A narrower window of the layer comes first.

    windows    [T] int32     the same for all tokens of a row; 0: all before them
    num_sinks  [T] int32     first positions of the sequence that are seen besides
    turned     [T, Nq·D]     queries rotated for the last position that sees everything, window + sinks - 1;
                             written by `rope.qk_write`, read for later positions only
    """

    windows: torch.Tensor
    num_sinks: torch.Tensor
    turned: torch.Tensor


def attention(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
    *,
    scales: torch.Tensor | None = None,
    reach: TokenReach | None = None,
    is_merged: bool = True,
) -> None:
    """Attend every token to its own sequence, itself included; write to `out` [T, Nq·D].

    q          [T, Nq·D]               rotated, and transformed where the cache is int8: as `rope.qk_write` leaves it
    cache      [blocks, 2, Nkv, S, D]  holds this step's K and V already; of the kind of q, or int8; its last two
                                       axes are contiguous
    scales     [blocks, 2, Nkv, S]     bf16, contiguous in its last axis; None unless the cache is int8
    tables     [lines, M] int32        block of the positions S·i … S·i + S-1 at place i
    positions  [T] int32               ascending and contiguous within a row
    is_merged  the last part to arrive adds them up; False: a second launch does, with the same bits
    Cost: reads 2·ΣL·Nkv·D numbers of the cache; writes and reads T·Nq·parts·(D+2) fp32 where there are parts.
    """
    if tiles.num_parts > MOST_PARTS:
        raise ValueError(f"attention in {tiles.num_parts} parts; at most {MOST_PARTS} are added up")

    def launch(*, merged: bool) -> None:
        _launch(q, out, cache, scales, tables, tiles, positions, scoring, reach, is_merged=merged)

    is_merged = is_merged and tiles.num_parts > 1 and len(tiles.rows) * cache.shape[2] <= NUM_COUNTERS
    if is_merged and attempt("attention_merged", q, lambda: launch(merged=True)):
        return
    if not attempt("attention", q, lambda: launch(merged=False)):
        lines = list(zip(tiles.rows.tolist(), tiles.first.tolist(), tiles.count.tolist(), strict=True))
        narrow = None if reach is None else (reach.windows.tolist(), reach.num_sinks.tolist(), reach.turned)
        attend_plainly(
            q, out, cache, scales, tables, lines, positions.tolist(),
            scale=scoring.scale, window=scoring.window, softcap=scoring.softcap, sinks=scoring.sinks, reach=narrow,
        )  # fmt: skip


def tile_size(group: int, head_dim: int) -> int:
    """Return the tokens of a prefill tile: with their query heads they fill the matrix units."""
    wanted = 64 if head_dim > 128 else 128
    return max(wanted // power_of_2(group), 1)


def _launch(
    q: torch.Tensor,
    out: torch.Tensor,
    cache: torch.Tensor,
    scales: torch.Tensor | None,
    tables: torch.Tensor,
    tiles: Tiles,
    positions: torch.Tensor,
    scoring: Scoring,
    reach: TokenReach | None,
    *,
    is_merged: bool,
) -> None:
    _, _, kv_heads, block_size, d = cache.shape
    q_heads = q.shape[1] // d
    padded = power_of_2(q_heads // kv_heads)
    block_m, block_d = max(padded * tiles.size, 16), max(power_of_2(d), 16)
    shape = launch_shape(block_m, block_d, q.element_size(), cache.element_size(), has_reach=reach is not None)
    parts, window = tiles.num_parts, scoring.window or 0
    partial = stats = counters = out
    if parts > 1:
        partial = torch.empty((len(tiles.rows) * tiles.size, q_heads, parts, d), dtype=torch.float32, device=q.device)
        stats = torch.empty((len(tiles.rows) * tiles.size, q_heads, parts, 2), dtype=torch.float32, device=q.device)
        counters = counters_of(q.device) if is_merged else out
    sinks = positions if scoring.sinks is None else scoring.sinks
    windows, num_sinks = (positions, positions) if reach is None else (reach.windows, reach.num_sinks)
    of_scales = (0, 0, 0) if scales is None else scales.stride()[:3]
    narrow = {"HAS_WINDOW": window > 0, "HAS_REACH": reach is not None}
    shared = {
        "Q_HEADS": q_heads, "GROUP": q_heads // kv_heads, "D": d, "HAS_SINKS": scoring.sinks is not None,
        "LEAST": LEAST_PART, "TILE": tiles.size, "BLOCK_N": shape.block_n, "BLOCK_D": block_d, "PADDED": padded,
        **early(),
    }  # fmt: skip
    start(
        attend, (len(tiles.rows), kv_heads, parts),
        q, q if reach is None else reach.turned, out, cache, out if scales is None else scales, tables,
        tiles.rows, tiles.first, tiles.count, positions, windows, num_sinks, sinks, partial, stats, counters,
        scoring.scale, scoring.softcap or 1.0, window, parts, tables.stride(0), *cache.stride()[:3], *of_scales,
        HAS_SOFTCAP=scoring.softcap is not None, HAS_SCALES=scales is not None, IS_SPLIT=parts > 1,
        IS_MERGED=is_merged, BLOCK_SIZE=block_size, BLOCK_M=block_m, WAYS=shape.ways, **narrow, **shared,
        num_warps=8 if block_m >= 128 else 4, num_stages=shape.num_stages, maxnreg=shape.max_registers,
    )  # fmt: skip
    if parts > 1 and not is_merged:
        start(
            add_parts, (len(tiles.rows), kv_heads),
            out, tiles.first, tiles.count, positions, windows, num_sinks, sinks, partial, stats, window, parts,
            **narrow, **shared, num_warps=4,
        )  # fmt: skip


class Shape(NamedTuple):
    """How a launch of `attend` is compiled: positions a turn, what share of them is a warp's own, turns under way,
    registers of a thread (None: the compiler's choice)."""

    block_n: int
    ways: int
    num_stages: int
    max_registers: int | None


def launch_shape(block_m: int, block_d: int, size: int, cache_size: int, *, has_reach: bool) -> Shape:
    """Choose by count: three programs of one token on a multiprocessor, and each has 32 to 64 KB under way."""
    block_n = 32 if block_d > 128 or size > 2 else 64
    if has_reach and block_d > 128:
        return Shape(block_n, 1, 1, None)  # two loops' buffers: more than GPUs of compute capability 8.9 have
    if block_m > 16 or block_d > 128:
        return Shape(block_n, 1, 2 if block_m >= 64 else 3, None)
    if size > 2:  # fp32: of fewer positions a warp's share is less than a product takes
        return Shape(64, 4, 1, None)
    turn = 2 * block_n * block_d * cache_size
    num_stages = 3 if turn >= 32 << 10 else 4 if turn >= 16 << 10 else 5
    return Shape(block_n, 4, num_stages, 168 if block_d == 128 and cache_size == 1 and not has_reach else None)
