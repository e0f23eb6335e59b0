"""Grids and tiles in whole numbers, for launches. Triton's own `cdiv` and `next_power_of_2` take 3 us each on the host,
and a layer asks ten times."""

from __future__ import annotations


def cdiv(count: int, each: int) -> int:
    """Return how many parts of `each` hold `count`."""
    return -(-count // each)


def power_of_2(count: int) -> int:
    """Return the least power of two that is not below `count`, which is at least 1."""
    return 1 << (count - 1).bit_length()
