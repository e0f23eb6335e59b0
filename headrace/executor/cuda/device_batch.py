"""A Step as the arrays that the device reads, padded to a bucket where a recorded graph is to run it.

Pure: reads a Step and each row's line, owns nothing. Called by `executor.cuda`.
Invariant: padded tokens belong to no tile and write to the slot behind the pool, which nobody reads.
Rows of few tokens become tiles of one token, whose positions are read in parts; longer chunks become long tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.core.step import Row, Step

Ints = NDArray[np.int32]

_FEW_TOKENS = 4  # rows up to here are cut token by token


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTiles:
    """Tiles [3, n]: line, first token, count."""

    lines: Ints
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBatch:
    """A step of T packed tokens.

    tokens, positions, slots  [T] int32
    short        tiles of one token
    long         for each tile size that layers want, tiles of the other rows
    unknown      rows with a token id outside the vocabulary, and the id; 0 was put in its place
    """

    tokens: Ints
    positions: Ints
    slots: Ints
    row_ends: Ints
    short: HostTiles
    long: tuple[HostTiles, ...]
    unknown: dict[int, int]

    @property
    def num_tokens(self) -> int:
        """Count the packed tokens, padding included."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """What packing needs to know of the executor. `sizes` are the tile sizes of its layers; none: token by token."""

    block_size: int
    num_blocks: int
    vocab_size: int
    sizes: tuple[int, ...]


def pack_step(step: Step, lines: Ints, shape: BatchShape, *, bucket: int | None = None) -> HostBatch:
    """Pack a step. Raises ValueError where a row has no tokens or no place for them: a bug of the scheduler.

    bucket  pad to that many rows of one token each
    """
    rows = step.rows
    lengths = np.fromiter((len(row.tokens) for row in rows), np.int32, len(rows))
    total = int(lengths.sum())
    size = total if bucket is None else bucket
    tokens, positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
    slots = np.full(size, shape.num_blocks * shape.block_size, np.int32)
    at = 0
    for i, row in enumerate(rows):
        end = at + len(row.tokens)
        _check(i, row, shape.block_size)
        tokens[at:end] = row.tokens
        if len(row.tokens) == 1:
            positions[at] = row.start
            place = row.blocks[row.start // shape.block_size - row.num_evicted]
            slots[at] = place * shape.block_size + row.start % shape.block_size
        else:
            own = np.arange(row.start, row.start + len(row.tokens), dtype=np.int32)
            first = row.start // shape.block_size
            held = np.array(row.blocks[first - row.num_evicted :], np.int32)
            positions[at:end] = own
            slots[at:end] = held[own // shape.block_size - first] * shape.block_size + own % shape.block_size
        at = end
    ends = np.cumsum(lengths, dtype=np.int32)
    unknown: dict[int, int] = {}
    bad = np.flatnonzero((tokens < 0) | (tokens >= shape.vocab_size))
    for token in bad:
        unknown.setdefault(int(np.searchsorted(ends, token, side="right")), int(tokens[token]))
    tokens[bad] = 0
    is_short = lengths <= _FEW_TOKENS if shape.sizes else np.ones(len(rows), bool)
    return HostBatch(
        tokens=tokens,
        positions=positions,
        slots=slots,
        row_ends=ends,
        short=_tiles(lines, lengths, ends, is_short, 1, least=bucket or 0),
        long=tuple(_tiles(lines, lengths, ends, ~is_short, size) for size in shape.sizes),
        unknown=unknown,
    )


def _tiles(
    lines: Ints, lengths: Ints, ends: Ints, chosen: NDArray[np.bool_], size: int, *, least: int = 0
) -> HostTiles:
    """Cut the chosen rows into tiles; pad with empty ones to `least`."""
    kept = np.flatnonzero(chosen)
    counts = -(-lengths[kept] // size)
    num_tiles = int(counts.sum())
    out = np.zeros((3, max(num_tiles, least)), np.int32)
    if num_tiles:
        owner = np.repeat(kept, counts)
        nth = np.arange(num_tiles) - np.repeat(np.cumsum(counts) - counts, counts)
        out[0, :num_tiles] = lines[owner]
        out[1, :num_tiles] = (ends - lengths)[owner] + nth * size
        out[2, :num_tiles] = np.minimum(size, lengths[owner] - nth * size)
    return HostTiles(lines=out, size=size)


def _check(index: int, row: Row, block_size: int) -> None:
    if row.reach is not None:
        raise ValueError(f"sequence {row.seq_id} has a reach of its own; this backend attends to all before a token")
    count = len(row.tokens)
    if count < 1 or (len(row.blocks) + row.num_evicted) * block_size < row.start + count:
        raise ValueError(
            f"row {index} (sequence {row.seq_id}): {count} tokens ending at position {row.start + count - 1} "
            f"in {len(row.blocks)} blocks of {block_size}"
        )
