"""How fast the waiting queue drains, measured: what `Retry-After` is made of.

Owns: the times of the last admissions. Written by the scheduler on the engine thread; `wait_s` may be asked from any
thread, a number that is one admission old does no harm.
"""

from __future__ import annotations

from collections import deque

_WINDOW = 64
_LEAST_S, _MOST_S = 1.0, 600.0


class DrainRate:
    """Sequences that leave the queue per second, over the last admissions."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_WINDOW)

    def note(self, now: float) -> None:
        """Record that a sequence has left the queue."""
        self._times.append(now)

    def wait_s(self, num_waiting: int, now: float) -> float:
        """Return the seconds until `num_waiting` sequences have left, between 1 and 600.

        The rate is taken up to `now`, so a queue that has stopped moving promises less and less.
        """
        times = tuple(self._times)
        if len(times) < 2:
            return _LEAST_S
        span = max(now - times[0], 1e-6)
        return min(max(num_waiting * span / len(times), _LEAST_S), _MOST_S)
