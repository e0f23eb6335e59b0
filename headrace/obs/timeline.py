"""The start-up timeline: resolve, load, warm, ready, each in milliseconds.

Owns the durations; written by `app.serving`, read by logs, metrics and tests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.core.protocols import Clock

_log = logging.getLogger(__name__)


class Timeline:
    """Durations of the phases of one start, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start_s = clock.now()
        self.phases_s: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body as (a further part of) phase `name`."""
        start_s = self._clock.now()
        try:
            yield
        finally:
            self.phases_s[name] = self.phases_s.get(name, 0.0) + self._clock.now() - start_s

    def finish(self) -> None:
        """Log all phases and the whole."""
        self.phases_s["ready"] = self._clock.now() - self._start_s
        parts = ", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in self.phases_s.items())
        _log.info("start-up: %s", parts)
