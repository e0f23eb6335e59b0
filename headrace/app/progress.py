"""Is an engine getting on? Told from its steps, not from its thread being alive.

Owns the last seen step count. Asked by the readiness endpoint; an engine that nobody asks about costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.protocols import Clock
from headrace.core.stats import EngineSnapshot

STALL_S = 60.0


class Progress:
    """Compares one engine's step count between questions."""

    def __init__(self, name: str, snapshot: Callable[[], EngineSnapshot], clock: Clock) -> None:
        self._name = name
        self._snapshot = snapshot
        self._clock = clock
        self._num_steps: int | None = None  # at the last question that found work
        self._since_s = clock.now()

    def problem(self) -> str | None:
        """Say that work is there but no step has ended for a minute; None if all is well."""
        snapshot = self._snapshot()
        has_work = bool(snapshot.num_running or snapshot.num_waiting)
        now = self._clock.now()
        seen = snapshot.num_steps if has_work else None
        if seen is None or seen != self._num_steps:
            self._num_steps, self._since_s = seen, now
            return None
        stalled_s = now - self._since_s
        return f"engine of '{self._name}' has made no step for {stalled_s:.0f} s" if stalled_s >= STALL_S else None
