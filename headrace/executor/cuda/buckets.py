"""Sizes of steps that are recorded as graphs, and which of them a step is padded to.

Pure, and free of torch. Called by `executor.cuda.executor`, and by `forms` for what they take.
A step of single tokens is padded to one of many numbers of rows. A step that holds parts of prompts is padded to a
number of tokens, at each of a few numbers of rows: what rows decide is how attention's reading is spread and how many
lines are drawn from. Tokens go up by 64, since a product of many works on tiles at least as long anyway; below that by
the tiles of the products of few. Steps with more tokens take the device longer than launching them takes the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MOST_TOKENS = 1024  # of a recorded step
_FEW = (16, 32)  # tokens, before multiples of _TOKENS
_TOKENS = 64
_MIXED_ROWS = (4, 16, 64)  # before multiples of _ROWS
_ROWS = 128
_MOST_PARTS = 32  # parts of prompts in a step, beyond tiles that are full


class Bucket(NamedTuple):
    """A size of step that a graph is recorded for.

    rows    most rows, and most tiles of one token
    tokens  most tokens; 0: one of each row
    """

    rows: int
    tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Count the tokens that a step is padded to."""
        return self.tokens or self.rows

    def long_tiles(self, size: int) -> int:
        """Count the long tiles that there is room for: each row of a prompt may leave one unfilled."""
        return self.tokens // size + min(self.rows, _MOST_PARTS)


class Buckets:
    """The sizes that an executor records.

    single  of steps of single tokens, ascending; mixed  of others, by rows and then by tokens
    """

    def __init__(self, max_rows: int, *, chunk_tokens: int, max_tokens: int) -> None:
        """Choose them.

        chunk_tokens  of prompts beside rows that decode; 0: only steps of single tokens are recorded
        max_tokens    of any step
        """
        self.single = tuple(Bucket(rows) for rows in single_rows(max_rows))
        self.mixed = mixed_sizes(max_rows, chunk_tokens=chunk_tokens, max_tokens=max_tokens)
        self.most_rows = max_rows

    def of_single(self, num_rows: int) -> Bucket | None:
        """Return the bucket of a step of single tokens; None if it has too many rows."""
        return next((bucket for bucket in self.single if bucket.rows >= num_rows), None)

    def of_mixed(self, num_rows: int, num_tokens: int, long_tiles: Mapping[int, int]) -> Bucket | None:
        """Return the least bucket of a step; None if it is not among those that are recorded.

        num_rows    rows, or tiles of one token where there are more of these
        long_tiles  by their size, how many there are
        """
        for bucket in self.mixed:
            if bucket.rows >= num_rows and bucket.tokens >= num_tokens:
                is_full = [size for size, count in long_tiles.items() if count > bucket.long_tiles(size)]
                return None if is_full else bucket
        return None


def single_rows(max_rows: int) -> tuple[int, ...]:
    """Return the batch sizes of single tokens: finer where a padded row costs a larger share."""
    sizes = [*(1, 2, 4), *range(8, 64, 8), *range(64, 128, 16), *range(128, max_rows, 32)]
    return (*(size for size in sizes if size < max_rows), max_rows)


def mixed_sizes(max_rows: int, *, chunk_tokens: int, max_tokens: int) -> tuple[Bucket, ...]:
    """Return the sizes of steps with parts of prompts: for each number of rows those that steps of so many can have."""
    if not chunk_tokens:
        return ()
    rows = [size for size in (*_MIXED_ROWS, *range(_ROWS, max_rows, _ROWS)) if size < max_rows]
    found: list[Bucket] = []
    fewer = 0
    for size in (*rows, max_rows):
        most = min(size + chunk_tokens, max_tokens, MOST_TOKENS)
        last = min(-(-most // _TOKENS) * _TOKENS, max_tokens, MOST_TOKENS)
        lengths = [length for length in (*_FEW, *range(_TOKENS, most, _TOKENS)) if fewer + 1 < length < last]
        found += [Bucket(size, length) for length in (*lengths, last)]
        fewer = size
    return tuple(found)
