"""How long steps take by the clock on the wall, which is what callers wait for.

Owns: when the last step ended, and whether there has been work since. Called by the scheduler.
A step counts from the end of the one before when there was work all along, so that what passes between the two
(delivery, new requests, a busy interpreter) is part of it; after a pause it counts from its own beginning.
"""

from __future__ import annotations


class StepClock:
    """Measures steps from `schedule` to `commit`."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._is_busy = False

    def begin(self, now: float) -> float:
        """Return when the step that is planned now has begun."""
        return self._last_s if self._is_busy else now

    def rest(self) -> None:
        """Take note that nothing can be computed now."""
        self._is_busy = False

    def end(self, began_s: float, now: float, *, has_work: bool) -> float:
        """Return the seconds that a step has taken which has just ended."""
        elapsed_s = now - max(began_s, self._last_s)
        self._last_s, self._is_busy = now, has_work
        return elapsed_s
