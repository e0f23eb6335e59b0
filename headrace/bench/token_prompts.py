"""Prompts of random token ids: exact lengths, and nothing that a prefix cache could have seen before."""

from __future__ import annotations

import random


class TokenPrompts:
    """Draws ids from the middle of a vocabulary, where ordinary words are; specials sit at its ends."""

    def __init__(self, vocab_size: int) -> None:
        self._low, self._high = vocab_size // 8, vocab_size - vocab_size // 8

    def batch(self, count: int, length: int, seed: int) -> list[list[int]]:
        """Return `count` prompts of `length` ids; the same for the same seed."""
        rng = random.Random(seed)
        return [[rng.randrange(self._low, self._high) for _ in range(length)] for _ in range(count)]
