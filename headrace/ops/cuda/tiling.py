"""How a skinny product is cut into programs: outputs, tokens, inputs of a turn, and parts of the inputs. Pure.

Owns the rule and the counts of the H200 that it comes from. Called by `linear`. A tiling depends on the weight and on
the bucket of tokens alone, so that all shapes are met at warm-up.
Up to 32 tokens reading the weight is what costs. 4.3 TB/s with the memory's delay take 48 KB in flight on each of 132
multiprocessors: two to four small programs or a large one on each, `buffers` deep. All programs of a layer are resident
at once where they are few: they share the memory evenly and end together, however they are spread. Sums of parts are
written to the L2 cache and read back, and stay under what the weights themselves take.
Beyond, tokens that each program reads from the L2 cache weigh as much, then the matrix units: of the cuts that fit, the
one that `counted` says ends first is taken.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

NUM_MULTIPROCESSORS = 132
MEMORY, CACHE, CLOCK = 4.3e12, 5.5e12, 1.75e9  # bytes from memory and from the L2 cache, clocks, in a second
_READ_BYTES = 40  # of 64 that a multiprocessor can take in from the L2 cache in a clock while others are idle
_PRODUCTS = 2048  # of two numbers of 16 bits that a multiprocessor's matrix units add in a clock
TILE_TOKENS = 128  # the most of one program
INVARIANT_TOKENS = 64  # of every program where results may not depend on the batch
LIBRARY_TOKENS = 64  # the most that are multiplied here with weights that the library takes as they are …
PACKED_TOKENS = 256  # … and with those that it needs decoded to memory first
_MOST_PARTS = 16
_MOST_RESIDENT = 4  # programs of four warps on a multiprocessor
SHARED_BYTES = 227 << 10  # that one program can have


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """`block_n` rows of the weight, `block_t` tokens, `block_k` inputs a turn, `num_turns` turns in each part.

    buffers  turns in shared memory: one is worked on while the others are on their way
    """

    block_n: int
    block_t: int
    block_k: int
    num_turns: int
    num_parts: int
    buffers: int
    num_warps: int

    @property
    def num_stages(self) -> int:
        """Return what the compiler calls these buffers: products of 8 tokens need no buffer while they run."""
        return self.buffers + 1 if self.block_t == 8 else self.buffers


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Seconds that a product takes by each of its limits, and behind them until a tile's last program has summed."""

    memory_s: float
    cache_s: float
    reading_s: float
    matrix_s: float
    summing_s: float

    @property
    def took_s(self) -> float:
        """Return what it takes in all: the limits are met beside each other."""
        return max(self.memory_s, self.cache_s, self.reading_s, self.matrix_s) + self.summing_s


def most_tokens(*, chunk: int, itemsize: int) -> int:
    """Return up to how many tokens of `itemsize` bytes a number are multiplied here; `chunk` as `tiling` has it.

    A packed weight costs the library a pass that decodes it, each step again: some 4 ms for all weights of 8B. Tiles of
    many tokens of four bytes would not fit the registers."""
    return PACKED_TOKENS if chunk > 1 and itemsize <= 2 else LIBRARY_TOKENS


def bucket(num_tokens: int) -> int:
    """Return the tokens that a product is cut for: what kernels are compiled for."""
    return next((size for size in (8, 16, 32, 64, 128) if num_tokens <= size), PACKED_TOKENS)


def counted(tile: Tiling, *, n: int, k: int, bytes_per_input: float, num_tokens: int, itemsize: int) -> Count:
    """Count what [n, k] takes with a tiling on an H200: bytes from memory, bytes through the L2 cache and into the
    multiprocessor that has most to do, its products, and what the program that adds the parts up reads alone."""
    tiles, spans = -(-n // tile.block_n), -(-num_tokens // tile.block_t)
    turns_each = -(-tiles * spans * tile.num_parts // NUM_MULTIPROCESSORS) * tile.num_turns * tile.block_k
    weight, tokens = n * k * bytes_per_input, min(num_tokens, tile.block_t)
    is_summed = tile.num_parts > 1
    through = weight * spans + tiles * k * num_tokens * itemsize + is_summed * 8 * tile.num_parts * num_tokens * n
    return Count(
        memory_s=weight / MEMORY,
        cache_s=through / CACHE,
        reading_s=turns_each * (tile.block_n * bytes_per_input + tokens * itemsize) / (_READ_BYTES * CLOCK),
        matrix_s=turns_each * tile.block_n * tile.block_t / (_PRODUCTS * CLOCK),
        summing_s=is_summed * 4 * tile.num_parts * tile.block_n * tokens / (_READ_BYTES * CLOCK),
    )


@functools.lru_cache(maxsize=4096)
def tiling(
    *,
    n: int,
    k: int,
    chunk: int,
    bytes_per_input: float,
    num_tokens: int,
    itemsize: int,
    shared_bytes: int = SHARED_BYTES,
) -> Tiling:
    """Return how [n, k] is cut for a bucket of `num_tokens` tokens of `itemsize` bytes a number.

    chunk            inputs that lie together in packed weights; 1: rows of numbers
    bytes_per_input  of the weight, scales included
    shared_bytes     that a program can have on the device: less than an H200's means fewer turns under way
    """
    if num_tokens <= 32:
        return _tiling_of_few(n, k, chunk, bytes_per_input, num_tokens, itemsize, shared_bytes)
    cuts = _cuts_of_many(n, k, chunk, bytes_per_input, num_tokens, itemsize, shared_bytes)

    def took(tile: Tiling) -> float:
        count = counted(tile, n=n, k=k, bytes_per_input=bytes_per_input, num_tokens=num_tokens, itemsize=itemsize)
        return count.took_s

    return min(cuts, key=took)


def _tiling_of_few(
    n: int, k: int, chunk: int, bytes_per_input: float, block_t: int, itemsize: int, shared_bytes: int
) -> Tiling:
    """Cut for up to 32 tokens: some programs on each multiprocessor, which hide each other's delays."""
    is_packed = chunk > 1
    wanted, most_resident = 2 if bytes_per_input > 1.5 else 3, _MOST_RESIDENT
    block_n = 128 if is_packed or block_t > 16 else 64
    block_k = 64 if not is_packed and block_n > 64 else 128
    if itemsize > 2:
        block_k = max(chunk, 32)
    elif chunk == 128 and block_t == 8:
        block_k = 256  # half the turns: their overhead counts beside so few bytes
    if is_packed and n * k < wanted * NUM_MULTIPROCESSORS * 2 * block_n * block_k:
        block_n, block_k, wanted, most_resident = 64, max(chunk, block_k // 2), 2 * wanted, 2 * most_resident
    tiles, turns = -(-n // block_n), -(-k // block_k)
    affordable = int(k * bytes_per_input / (8 * block_t))  # sums are fp32, written and read
    most = max(min(affordable, turns // 2, _MOST_PARTS, NUM_MULTIPROCESSORS * most_resident // tiles), 1)
    num_turns = -(-turns // _parts(turns, NUM_MULTIPROCESSORS * wanted / tiles, most))
    parts = -(-turns // num_turns)
    turn_bytes = int(block_n * block_k * max(bytes_per_input, 0.5)) + block_t * block_k * itemsize
    resident = min(-(-tiles * parts // NUM_MULTIPROCESSORS), most_resident)
    return Tiling(
        block_n=block_n, block_t=block_t, block_k=block_k, num_turns=num_turns, num_parts=parts,
        buffers=min(max((shared_bytes // resident - 1024) // turn_bytes, 2), 4),
        num_warps=4 if block_n == 128 or not is_packed else 2,
    )  # fmt: skip


def _cuts_of_many(
    n: int, k: int, chunk: int, bytes_per_input: float, num_tokens: int, itemsize: int, shared_bytes: int
) -> Iterator[Tiling]:
    """Yield what more than 32 tokens can be cut into: large programs, one on a multiprocessor or two; with whole turns
    in each part, if that can be. The narrowest one is there always, however little memory it finds."""
    block_t = min(num_tokens, TILE_TOKENS)
    block_k = max(chunk, 32) if itemsize > 2 else 64 if bytes_per_input > 1.5 else 128
    turns = -(-k // block_k)
    whole = [parts for parts in range(1, min(turns // 2, _MOST_PARTS) + 1) if turns % parts == 0] or [1]
    for block_n in (128, 256):
        turn_bytes = int(block_n * block_k * max(bytes_per_input, 0.5)) + block_t * block_k * itemsize
        for parts in whole:
            programs = -(-n // block_n) * -(-num_tokens // block_t) * parts
            resident = 1 if block_n > 128 or block_t > 64 or programs <= NUM_MULTIPROCESSORS else 2
            buffers = (shared_bytes // resident - 1024) // turn_bytes
            if block_n > 128 and (buffers < 3 or itemsize > 2):
                continue
            yield Tiling(
                block_n=block_n, block_t=block_t, block_k=block_k, num_turns=turns // parts, num_parts=parts,
                buffers=min(max(buffers, 2), 6), num_warps=8,
            )  # fmt: skip


def _parts(turns: int, wanted: float, most: int) -> int:
    """Return how many parts make nearly as many programs as are wanted: with whole turns in each, if that can be."""
    whole = [parts for parts in range(1, most + 1) if turns % parts == 0]
    enough = [parts for parts in whole if parts >= 0.9 * wanted] or [parts for parts in whole if parts >= 0.6 * wanted]
    return min(enough, default=min(most, math.ceil(wanted)))
