"""Pool of fixed-size KV blocks: which block is free and how many hold each of the others.

Owns: reference counts and the free list. Numbers only; the executor moves the bytes.
Invariant: free + held == num_blocks, checked by `check()`, which tests call after each step.
Order: last freed, first taken, so that a quiet server touches few pages. A sequence's blocks are freed from the
tail, so its head is taken again first. Called by the scheduler alone, on the engine thread.
Source: PagedAttention, Kwon et al. 2023, §4.2.
"""

from __future__ import annotations

from collections.abc import Sequence


class BlockPool:
    """Hands out block numbers 0 … num_blocks-1. Each call costs O(1) per block."""

    __slots__ = ("_free", "_refs", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"a KV pool needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Count the blocks that `allocate` could hand out now."""
        return len(self._free)

    def allocate(self, n: int) -> list[int] | None:
        """Take `n` free blocks, each with one holder; None, and nothing taken, if fewer are free."""
        free, refs = self._free, self._refs
        if n > len(free):
            return None
        if n == 1:
            block = free.pop()
            refs[block] = 1
            return [block]
        taken = free[len(free) - n :]
        del free[len(free) - n :]
        taken.reverse()
        for block in taken:
            refs[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Add one holder to each block; all must be held already."""
        for block in blocks:
            if self._refs[block] == 0:
                raise ValueError(f"block {block} is free and cannot be shared")
        for block in blocks:
            self._refs[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one holder of each block, tail first; a block without holders becomes free."""
        refs, free = self._refs, self._free
        for block in reversed(blocks):
            count = refs[block]
            if count == 0:
                raise ValueError(f"block {block} is freed twice")
            refs[block] = count - 1
            if count == 1:
                free.append(block)

    def check(self) -> None:
        """Raise AssertionError unless every block is either free once or held."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is in the free list twice"
        assert all(0 <= block < self.num_blocks for block in free), "the free list names a block outside the pool"
        held = sum(1 for count in self._refs if count > 0)
        assert all(self._refs[block] == 0 for block in free), "a free block has a holder"
        assert len(free) + held == self.num_blocks, f"{len(free)} free + {held} held != {self.num_blocks}"
