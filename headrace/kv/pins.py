"""Pinned prefixes: blocks of the prefix cache that are held until their time is up, whoever needs room meanwhile.

Owns: the pins and when they end. A pin is one more holder of each of its blocks, so the pool never gives them up; pins
of prefixes that begin alike share what they share. Called by the scheduler, on the engine thread; `check_room` by any.
Invariant: at most `max_blocks` blocks are pinned. A pin is a wish, not a right: `give_up` ends the one that would end
first, when a sequence that runs alone needs the room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from headrace.core.errors import InvalidRequest
from headrace.kv.pool import BlockPool
from headrace.kv.radix import Node

_SHARE = 2  # at most one block in so many is pinned


class Pins:
    """Pins over the blocks of one pool."""

    def __init__(self, pool: BlockPool) -> None:
        self.max_blocks = pool.num_blocks // _SHARE
        self._pool = pool
        self._ends_s: dict[int, float] = {}  # by the last block of the prefix
        self._paths: dict[int, list[int]] = {}
        self._holds: Counter[int] = Counter()
        self._first_end_s = float("inf")
        self._now = 0.0

    @property
    def num_blocks(self) -> int:
        """Count the pinned blocks."""
        return len(self._holds)

    def check_room(self, num_blocks: int) -> None:
        """Raise InvalidRequest if a prefix of so many blocks can never be pinned here."""
        if num_blocks > self.max_blocks:
            raise InvalidRequest(
                f"the prefix takes {num_blocks:,} blocks; at most {self.max_blocks:,} of this server's "
                f"{self._pool.num_blocks:,} may be pinned; shorten it, or raise engine.kv_memory_mib",
                param="prompt",
            )

    def pin(self, node: Node, for_s: float) -> bool:
        """Hold a prefix for so long; one that is pinned already ends at the later time. False if there is no room."""
        if not node.depth or node.is_dead:
            return False
        last = node.block
        if last not in self._ends_s:
            path = node.path()
            while self.num_blocks + sum(1 for block in path if block not in self._holds) > self.max_blocks:
                if not self.give_up():
                    return False
            self._pool.share(path)
            self._holds.update(path)
            self._paths[last] = path
        self._ends_s[last] = max(self._now + for_s, self._ends_s.get(last, 0.0))
        self._first_end_s = min(self._ends_s.values())
        return True

    def expire(self, now: float) -> None:
        """End the pins whose time is up. Called before each step; costs one comparison when there are none."""
        self._now = now
        if now < self._first_end_s:
            return
        for last in [last for last, end_s in self._ends_s.items() if end_s <= now]:
            self._end(last)

    def give_up(self) -> bool:
        """End the pin that would end first; False if there is none."""
        if not self._ends_s:
            return False
        self._end(min(self._ends_s, key=lambda last: self._ends_s[last]))
        return True

    def blocks(self) -> Iterable[int]:
        """Return the pinned blocks, once for each pin."""
        return self._holds.elements()

    def _end(self, last: int) -> None:
        path = self._paths.pop(last)
        del self._ends_s[last]
        self._holds.subtract(path)
        self._holds = +self._holds
        self._pool.free(path)
        self._first_end_s = min(self._ends_s.values(), default=float("inf"))

    def check(self) -> None:
        """Raise AssertionError unless pins and their blocks agree."""
        assert self._paths.keys() == self._ends_s.keys(), "a pin has no end, or an end no pin"
        expected = Counter(block for path in self._paths.values() for block in path)
        assert expected == self._holds, "pinned blocks are counted wrong"
        assert self.num_blocks <= self.max_blocks, "more blocks are pinned than may be"
