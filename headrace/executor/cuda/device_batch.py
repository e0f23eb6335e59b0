"""A Step as the arrays that the device reads, padded to a bucket where a recorded graph is to run it.

Pure: reads a Step and each row's line, owns nothing. Called by `executor.cuda`.
Invariant: padded tokens belong to no tile and write to the slot behind the pool, which nobody reads.
Rows of few tokens become tiles of one token, whose positions are read in parts; longer chunks become long tiles.
A row's reach counts where it is narrower than some layer's own window.
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
    reach        [2, T] int32: window and sinks of each token, 0 for all before it; None: every row sees all
    short        tiles of one token
    long         for each tile size that layers want, tiles of the other rows
    unknown      rows with a token id outside the vocabulary, and the id; 0 was put in its place
    """

    tokens: Ints
    positions: Ints
    slots: Ints
    row_ends: Ints
    reach: Ints | None
    short: HostTiles
    long: tuple[HostTiles, ...]
    unknown: dict[int, int]

    @property
    def num_tokens(self) -> int:
        """Count the packed tokens, padding included."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """What packing needs to know of the executor.

    sizes          the tile sizes of its layers; none: token by token
    widest_window  of its layers; None: some layer sees everything
    """

    block_size: int
    num_blocks: int
    vocab_size: int
    sizes: tuple[int, ...]
    widest_window: int | None = None

    def is_narrowed(self, row: Row) -> bool:
        """Say whether a row's reach leaves its tokens less than the layers would."""
        return row.reach is not None and (self.widest_window is None or row.reach.window < self.widest_window)


def pack_step(
    step: Step, lines: Ints, shape: BatchShape, *, bucket: int | None = None, has_reach: bool = False
) -> HostBatch:
    """Pack a step. Raises ValueError where a row has no tokens or no place for them: a bug of the scheduler.

    bucket     pad to that many rows of one token each
    has_reach  say of every token what it sees, whether or not some row sees less than all
    """
    rows = step.rows
    lengths = np.fromiter((len(row.tokens) for row in rows), np.int32, len(rows))
    total = int(lengths.sum())
    size = total if bucket is None else bucket
    tokens, positions = np.zeros(size, np.int32), np.zeros(size, np.int32)
    slots = np.full(size, shape.num_blocks * shape.block_size, np.int32)
    reach = np.zeros((2, size), np.int32) if has_reach else None
    at = 0
    for i, row in enumerate(rows):
        end = at + len(row.tokens)
        _check(i, row, shape.block_size)
        tokens[at:end] = row.tokens
        if reach is not None and row.reach is not None and shape.is_narrowed(row):
            reach[0, at:end], reach[1, at:end] = row.reach.window, row.reach.num_sinks
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
        reach=reach,
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
    count = len(row.tokens)
    if count < 1 or (len(row.blocks) + row.num_evicted) * block_size < row.start + count:
        raise ValueError(
            f"row {index} (sequence {row.seq_id}): {count} tokens ending at position {row.start + count - 1} "
            f"in {len(row.blocks)} blocks of {block_size}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedTokens:
    """The packed tokens that a step's answers come from. `ends` and `score_places` are places among `tokens`.

    tokens        [R] int32, ascending
    ends          last tokens of the rows that sample
    score_places  tokens whose next one is known; `scores` has the row of each and that token
    """

    tokens: Ints
    ends: Ints
    score_places: Ints
    scores: tuple[tuple[int, int], ...]


def wanted_tokens(step: Step, batch: HostBatch, *, vocab_size: int) -> WantedTokens:
    """Find out which tokens' logits are asked for. Tokens to score that are outside the vocabulary are left out."""
    ends = batch.row_ends[[i for i, row in enumerate(step.rows) if row.sampling is not None]] - 1
    places: list[int] = []
    scores: list[tuple[int, int]] = []
    for i, row in enumerate(step.rows):
        for offset, token in row.score:
            if not 0 <= offset < len(row.tokens):
                raise ValueError(f"sequence {row.seq_id} scores offset {offset} of {len(row.tokens)} tokens")
            if 0 <= token < vocab_size:
                places.append(int(batch.row_ends[i]) - len(row.tokens) + offset)
                scores.append((i, token))
    if not places:
        return WantedTokens(tokens=ends, ends=np.arange(len(ends), dtype=np.int32), score_places=ends[:0], scores=())
    scored = np.array(places, np.int32)
    tokens = np.unique(np.concatenate((ends, scored)))
    found_ends, found_scores = (np.searchsorted(tokens, own).astype(np.int32) for own in (ends, scored))
    return WantedTokens(tokens=tokens, ends=found_ends, score_places=found_scores, scores=tuple(scores))
