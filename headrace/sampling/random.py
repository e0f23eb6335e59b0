"""Counter-based random numbers: a token's draw depends on its seed and its place, on nothing else.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so that numpy, C++ and GPU code
reproduce each other exactly and the batch a sequence sits in never changes a sample.

    key     = (seed mod 2^32, (seed >> 32) mod 2^32)           seed is taken modulo 2^64
    counter = (num_output mod 2^32, domain, 0, 0)              domain 0: drawing a token, 1: deriving a choice's seed
    round   hi0:lo0 = 0xD2511F53 * c0,  hi1:lo1 = 0xCD9E8D57 * c2
            (c0, c1, c2, c3) = (hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0)
            ten rounds; between rounds k0 += 0x9E3779B9, k1 += 0xBB67AE85, modulo 2^32
    uniform = ((w0 << 32 | w1) >> 11) * 2^-53                  w0, w1: the first two words; 0 ≤ uniform < 1
"""

from __future__ import annotations

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF
_DRAW, _DERIVE = 0, 1


def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return four random 32-bit words for a 64-bit key and a 128-bit counter."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0 = 0xD2511F53 * c0
        p1 = 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0 = (k0 + 0x9E3779B9) & _MASK32
        k1 = (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def uniform(seed: int, num_output: int) -> float:
    """Return the number in [0, 1) that decides output token `num_output` of the sequence with this seed."""
    w0, w1, _, _ = philox4x32((seed & _MASK32, seed >> 32 & _MASK32), (num_output & _MASK32, _DRAW, 0, 0))
    return float((w0 << 32 | w1) >> 11) * 2.0**-53


def derive_seed(seed: int, index: int) -> int:
    """Return the seed of choice `index` of a request: its own for index 0, unrelated 64-bit numbers for the others."""
    if index == 0:
        return seed & _MASK64
    w0, w1, _, _ = philox4x32((seed & _MASK32, seed >> 32 & _MASK32), (index & _MASK32, _DERIVE, 0, 0))
    return w0 << 32 | w1
