"""The real clock. Its virtual twin is `testing.VirtualClock`."""

from __future__ import annotations

import time


class MonotonicClock:
    """Seconds from the system's monotonic clock."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()
