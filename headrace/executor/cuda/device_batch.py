"""A Step as the arrays that the device reads, padded to a bucket where a recorded graph is to run it.

Pure: reads a Step and the host's block tables, owns nothing. Called by `executor.cuda`.
Invariant: padded tokens belong to no tile and write to the slot behind the pool, which nobody reads.
Rows of few tokens become tiles of one token, whose positions are read in parts; longer chunks become long tiles, and so
do rows of few where there would be too many of the short ones.
A row's reach counts where it is narrower than some layer's own window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from headrace.core.step import Row, Step
from headrace.executor.cuda.block_tables import BlockTables

Ints = NDArray[np.int32]

FEW_TOKENS = 4  # rows up to here are cut token by token


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
    max_rows       most tiles of one token, where there are others
    widest_window  of its layers; None: some layer sees everything
    """

    block_size: int
    num_blocks: int
    vocab_size: int
    sizes: tuple[int, ...]
    max_rows: int
    widest_window: int | None = None

    def is_narrowed(self, row: Row) -> bool:
        """Say whether a row's reach leaves its tokens less than the layers would."""
        return row.reach is not None and (self.widest_window is None or row.reach.window < self.widest_window)


def pack_step(step: Step, lines: Ints, tables: BlockTables, shape: BatchShape, *, has_reach: bool = False) -> HostBatch:
    """Pack a step. Raises ValueError where a row has no tokens or no place for them: a bug of the scheduler.

    lines      of the rows in the tables, which have been brought up to date
    has_reach  say of every token what it sees, whether or not some row sees less than all
    """
    rows = step.rows
    lengths = np.array([len(row.tokens) for row in rows], np.int32)
    starts = np.array([row.start for row in rows], np.int32)
    _check(rows, starts + lengths > tables.capacities[lines], shape)
    _check(rows, lengths < 1, shape)
    ends = np.cumsum(lengths, dtype=np.int32)
    total = int(lengths.sum())
    tokens = np.fromiter(chain.from_iterable([row.tokens for row in rows]), np.int32, total)
    positions = np.arange(total, dtype=np.int32) + np.repeat(starts - ends + lengths, lengths)
    reach = None
    if has_reach:
        reach = np.repeat(_reaches(rows, shape), lengths, axis=1)
    is_short = lengths <= FEW_TOKENS if shape.sizes else np.ones(len(rows), bool)
    if shape.sizes and lengths[is_short].sum() > shape.max_rows:
        is_short = lengths == 1
    return HostBatch(
        tokens=tokens,
        positions=positions,
        slots=_slots(np.repeat(lines, lengths), positions, tables, shape),
        row_ends=ends,
        reach=reach,
        short=_tiles(lines, lengths, ends, is_short, 1),
        long=tuple(_tiles(lines, lengths, ends, ~is_short, size) for size in shape.sizes),
        unknown=_take_unknown(tokens, ends, shape),
    )


def pack_single(
    rows: Sequence[Row], lines: Ints, tables: BlockTables, shape: BatchShape, into: Mapping[str, Ints]
) -> dict[int, int]:
    """Pack rows of one token each and pad them; return those with a token outside the vocabulary, and that.

    into  `tokens`, `positions`, `slots`, `short` and, where the kernels ask for it, `reach`: as in a HostBatch, for at
          least as many rows
    Raises ValueError as `pack_step` does.
    """
    count = len(rows)
    tokens, short = into["tokens"], into["short"]
    starts = np.array([row.start for row in rows], np.int32)
    _check(rows, starts >= tables.capacities[lines], shape)
    tokens[:count] = [row.tokens[0] for row in rows]
    into["positions"][:count] = starts
    into["slots"][:count] = _slots(lines, starts, tables, shape)
    short[0, :count] = lines
    short[1, :count] = np.arange(count)
    short[2, :count] = 1
    if count < len(tokens):
        into["positions"][count:] = tokens[count:] = short[:, count:] = 0
        into["slots"][count:] = shape.num_blocks * shape.block_size
    if "reach" in into:
        into["reach"][:, :count] = _reaches(rows, shape)
        into["reach"][:, count:] = 0
    return _take_unknown(tokens[:count], None, shape)


def pad_batch(batch: HostBatch, shape: BatchShape, into: Mapping[str, Ints]) -> None:
    """Write a packed step to the arrays of a longer one.

    into  as for `pack_single`; `kept`, the last token of each row; tiles of one token in `short`, long ones by
          `long_name`
    """
    count, num_rows = batch.num_tokens, len(batch.row_ends)
    ends = batch.row_ends - 1
    for array, name, num in (
        (batch.tokens, "tokens", count),
        (batch.positions, "positions", count),
        (ends, "kept", num_rows),
    ):
        into[name][:num], into[name][num:] = array, 0
    into["slots"][:count], into["slots"][count:] = batch.slots, shape.num_blocks * shape.block_size
    for tiles, name in ((batch.short, "short"), *((tiles, long_name(tiles.size)) for tiles in batch.long)):
        num = tiles.lines.shape[1]
        into[name][:, :num], into[name][:, num:] = tiles.lines, 0
    if batch.reach is not None:
        into["reach"][:, :count], into["reach"][:, count:] = batch.reach, 0


def long_name(size: int) -> str:
    """Name the array of long tiles of a size."""
    return f"long {size}"


def _slots(lines: Ints, positions: Ints, tables: BlockTables, shape: BatchShape) -> Ints:
    places, within = np.divmod(positions, shape.block_size)
    slots: Ints = tables.host_table[lines, places] * shape.block_size + within
    return slots


def _reaches(rows: Sequence[Row], shape: BatchShape) -> Ints:
    """Return window and sinks of each row: [2, R]."""
    found = np.zeros((2, len(rows)), np.int32)
    for i, row in enumerate(rows):
        if row.reach is not None and shape.is_narrowed(row):
            found[:, i] = row.reach.window, row.reach.num_sinks
    return found


def _take_unknown(tokens: Ints, ends: Ints | None, shape: BatchShape) -> dict[int, int]:
    """Put 0 in place of ids outside the vocabulary; return their rows, and the first of each. No `ends`: one a row."""
    is_bad = tokens.view(np.uint32) >= shape.vocab_size
    unknown: dict[int, int] = {}
    if is_bad.any():
        for token in np.flatnonzero(is_bad).tolist():
            row = token if ends is None else int(np.searchsorted(ends, token, side="right"))
            unknown.setdefault(row, int(tokens[token]))
        tokens[is_bad] = 0
    return unknown


def _tiles(lines: Ints, lengths: Ints, ends: Ints, chosen: NDArray[np.bool_], size: int) -> HostTiles:
    """Cut the chosen rows into tiles."""
    kept = np.flatnonzero(chosen)
    counts = -(-lengths[kept] // size)
    num_tiles = int(counts.sum())
    out = np.zeros((3, num_tiles), np.int32)
    if num_tiles:
        owner = np.repeat(kept, counts)
        nth = np.arange(num_tiles) - np.repeat(np.cumsum(counts) - counts, counts)
        out[0] = lines[owner]
        out[1] = (ends - lengths)[owner] + nth * size
        out[2] = np.minimum(size, lengths[owner] - nth * size)
    return HostTiles(lines=out, size=size)


def _check(rows: Sequence[Row], is_wrong: NDArray[np.bool_], shape: BatchShape) -> None:
    if is_wrong.any():
        i = int(np.argmax(is_wrong))
        row = rows[i]
        count = len(row.tokens)
        raise ValueError(
            f"row {i} (sequence {row.seq_id}): {count} tokens ending at position {row.start + count - 1} "
            f"in {len(row.blocks)} blocks of {shape.block_size}"
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
