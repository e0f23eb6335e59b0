"""The real clock. Its virtual twin is `testing.VirtualClock`."""

from __future__ import annotations

import time


class MonotonicClock:
    """Seconds from the system's monotonic clock."""

    now = staticmethod(time.monotonic)  # itself, not a call of it: a request asks some twenty times
