"""Time that moves only when told to, for tests and simulation."""

from __future__ import annotations


class VirtualClock:
    """A `core.protocols.Clock` that stands still between calls of `advance`."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        """Return the virtual seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move time forward; it never goes back."""
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds} s")
        self._now += seconds

    def move_to(self, now: float) -> None:
        """Move time forward to a moment, exactly."""
        if now < self._now:
            raise ValueError(f"time cannot go back from {self._now} to {now}")
        self._now = now
