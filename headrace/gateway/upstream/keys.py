"""The keys of one upstream: which may be used now.

Owns each key's state: good, throttled until a time, or dead. A dead key is tried again once a minute, or as soon as the
place it is kept in holds another one.
Invariant: a key leaves this file only as a request header; `repr` and logs never show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.core.errors import ConfigError
from headrace.core.protocols import Clock

_DEAD_S = 60.0
_REREAD_S = 5.0


@dataclass(slots=True)
class Key:
    """One key and where it is kept. `secret` is None for servers that want none."""

    place: str
    secret: str | None = field(repr=False)
    dead_until_s: float | None = None
    throttled_until_s: float = 0.0
    reread_s: float = 0.0


class KeyRing:
    """The keys of one upstream, in the order of preference.

    read  brings a key from where it is kept; raises ConfigError
    """

    def __init__(self, places: Sequence[str], read: Callable[[str], str], clock: Clock) -> None:
        self._read = read
        self._clock = clock
        self._keys = [Key(place, read(place)) for place in places] or [Key("", None)]

    def __len__(self) -> int:
        return sum(key.secret is not None for key in self._keys)

    @property
    def num_dead(self) -> int:
        """Count the keys that the server rejects."""
        now = self._clock.now()
        return sum(key.dead_until_s is not None and key.dead_until_s > now for key in self._keys)

    @property
    def num_throttled(self) -> int:
        """Count the keys that have to wait."""
        now = self._clock.now()
        return sum(key.throttled_until_s > now for key in self._keys)

    @property
    def are_all_dead(self) -> bool:
        """Say whether no key is worth a try now."""
        return self.num_dead == len(self._keys)

    def wait_s(self) -> float:
        """Return the seconds until a key that is not dead may be used; 0 if one may be used now."""
        now = self._clock.now()
        waits = [max(0.0, key.throttled_until_s - now) for key in self._keys if not self._is_dead(key, now)]
        return min(waits, default=_DEAD_S)

    def try_pick(self) -> Key | None:
        """Return the first key that may be used now, if any."""
        first = self._keys[0]
        if first.dead_until_s is None and not first.throttled_until_s:
            return first  # nearly always
        now = self._clock.now()
        for key in self._keys:
            if not self._is_dead(key, now) and key.throttled_until_s <= now:
                return key
        return None

    def mark_dead(self, key: Key) -> None:
        """The server rejects `key`."""
        key.dead_until_s = self._clock.now() + _DEAD_S

    def mark_throttled(self, key: Key, seconds: float) -> None:
        """The server wants nothing from `key` for that long."""
        key.throttled_until_s = self._clock.now() + seconds

    def mark_good(self, key: Key) -> None:
        """The server has taken `key`."""
        key.dead_until_s = None

    def _is_dead(self, key: Key, now: float) -> bool:
        if key.dead_until_s is None or key.dead_until_s <= now:
            return False
        if key.place.startswith("file:") and key.reread_s <= now:
            key.reread_s = now + _REREAD_S
            try:
                secret = self._read(key.place)
            except ConfigError:
                return True
            if secret != key.secret:
                key.secret, key.dead_until_s = secret, None
                return False
        return True
