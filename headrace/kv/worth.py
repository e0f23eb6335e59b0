"""What is worth keeping where room is short: seconds saved by the next use, times its likelihood, by order of use.

Owns: the entries of one bounded place, least recently used first. All entries of a place have about the same size, so
worth per byte is worth. Likelihood: an entry used often and lately is used again; it halves with every doubling of the
time since, from `_SETTLE_S` on.
Cost: O(1) per use; `least` looks at the `_SAMPLE` entries that were used longest ago, not at all of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

_SAMPLE = 16
_MOST_SKIPPED = 256
_SETTLE_S = 30.0


@dataclass(slots=True, kw_only=True)
class Worth:
    """What is known of one entry: seconds its use saves, uses so far, time of the last one."""

    saves_s: float
    used_s: float
    num_uses: int = 0

    def at(self, now: float) -> float:
        """Return the worth now, comparable within one place."""
        return self.saves_s * (1 + self.num_uses) / (max(now - self.used_s, 0.0) + _SETTLE_S)


W = TypeVar("W", bound=Worth)


class Shelf(Generic[W]):
    """Entries by key, in order of last use."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, W] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the keys, least recently used first."""
        return iter(self._entries)

    def get(self, key: bytes) -> W | None:
        """Return an entry without counting it as a use."""
        return self._entries.get(key)

    def put(self, key: bytes, entry: W) -> None:
        """Add an entry as the most recently used one."""
        self._entries[key] = entry
        self._entries.move_to_end(key)

    def use(self, key: bytes, now: float) -> W:
        """Count a use. KeyError if the key is not here."""
        entry = self._entries[key]
        entry.num_uses += 1
        entry.used_s = now
        self._entries.move_to_end(key)
        return entry

    def pop(self, key: bytes) -> W | None:
        """Take an entry out."""
        return self._entries.pop(key, None)

    def least(self, now: float, is_free: Callable[[W], bool] = lambda entry: True) -> bytes | None:
        """Return the key worth least among those used longest ago; None if none of them is free to go."""
        best, least, num_seen = None, float("inf"), 0
        for num_looked, (key, entry) in enumerate(self._entries.items()):
            if num_seen == _SAMPLE or num_looked == _MOST_SKIPPED:
                break
            if not is_free(entry):
                continue
            num_seen += 1
            worth = entry.at(now)
            if worth < least:
                best, least = key, worth
        return best
