"""How a skinny product is cut into programs: outputs, tokens, inputs of a turn, and parts of the inputs. Pure.

Owns the rule and the facts of the H200 that it comes from. Called by `linear`. A tiling depends on the weight and on
the bucket of tokens alone, so that all shapes are met at warm-up.
Reading is what costs. 4.3 TB/s with the memory's delay take 48 KB in flight on each of 132 multiprocessors: two to four
small programs or a large one on each, `buffers` deep. All programs of a layer are resident at once where they are few:
they share the memory evenly and end together, however they are spread. Tokens are read from the L2 cache once per
program, so tiles for many tokens are wide; sums of parts are written to it and read back, and stay under what the
weights themselves take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NUM_MULTIPROCESSORS = 132
MOST_TOKENS = 64  # of one program
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


def bucket(num_tokens: int) -> int:
    """Return the tokens of a tile: what kernels are compiled for."""
    return next((size for size in (8, 16, 32) if num_tokens <= size), MOST_TOKENS)


def tiling(
    *,
    n: int,
    k: int,
    chunk: int,
    bytes_per_input: float,
    block_t: int,
    itemsize: int,
    shared_bytes: int = SHARED_BYTES,
) -> Tiling:
    """Return how [n, k] is cut for tiles of `block_t` tokens of `itemsize` bytes a number.

    chunk            inputs that lie together in packed weights; 1: rows of numbers
    bytes_per_input  of the weight, scales included
    shared_bytes     that a program can have on the device: less than an H200's means fewer turns under way
    """
    is_long, is_packed = block_t > 32, chunk > 1
    # A program of many tokens is large and alone on its multiprocessor; of few, some hide each other's delays.
    wanted, most_resident = (1 if is_long else 2 if bytes_per_input > 1.5 else 3), _MOST_RESIDENT
    block_n = 128 if is_packed or block_t > 16 else 64
    if is_long:
        most_resident = 2
        if bytes_per_input < 1.5 and max(n, k) >= 8192 and shared_bytes >= 128 << 10:
            block_n, most_resident = 256, 1  # tokens are read half as often: they weigh more than such weights
    block_k = 64 if bytes_per_input > 1.5 and block_n > 64 else 128
    if itemsize > 2:
        block_k = max(chunk, 32)
    elif chunk == 128 and block_t == 8:
        block_k = 256  # half the turns: their overhead counts beside so few bytes
    if is_packed and not is_long and n * k < wanted * NUM_MULTIPROCESSORS * 2 * block_n * block_k:
        block_n, block_k, wanted, most_resident = 64, max(chunk, block_k // 2), 2 * wanted, 2 * most_resident
    tiles, turns = -(-n // block_n), -(-k // block_k)
    affordable = int(k * bytes_per_input / (8 * block_t))  # sums are fp32, written and read
    at_once = NUM_MULTIPROCESSORS * (1 if is_long else most_resident)
    most = max(min(affordable, turns // 2, _MOST_PARTS, at_once // tiles), 1)
    num_turns = -(-turns // _parts(turns, NUM_MULTIPROCESSORS * wanted / tiles, most))
    parts = -(-turns // num_turns)
    turn_bytes = int(block_n * block_k * max(bytes_per_input, 0.5)) + block_t * block_k * itemsize
    resident = min(-(-tiles * parts // NUM_MULTIPROCESSORS), most_resident)
    buffers = min(max((shared_bytes // resident - 1024) // turn_bytes, 2), 6 if is_long else 4)
    return Tiling(
        block_n=block_n, block_t=block_t, block_k=block_k, num_turns=num_turns, num_parts=parts, buffers=buffers,
        num_warps=8 if is_long else 4 if block_n == 128 or not is_packed else 2,
    )  # fmt: skip


def _parts(turns: int, wanted: float, most: int) -> int:
    """Return how many parts make nearly as many programs as are wanted: with whole turns in each, if that can be."""
    whole = [parts for parts in range(1, most + 1) if turns % parts == 0]
    enough = [parts for parts in whole if parts >= 0.9 * wanted] or [parts for parts in whole if parts >= 0.6 * wanted]
    return min(enough, default=min(most, math.ceil(wanted)))
