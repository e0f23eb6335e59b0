"""An event loop for tests with time limits: a process that was held up has not let any time pass.

Invariant: time passes only while nothing is ready, and then up to the next timer at most. So what is on its way over
loopback always arrives before the limit that it is given, however long the machine stood still in between.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any

_IDLE_S = 0.02  # of real time without an event, after which a loop of sockets alone counts as idle


class _Selector(selectors.DefaultSelector):
    """Adds up the seconds that were waited for nothing."""

    def __init__(self, longest_s: float) -> None:
        super().__init__()
        self._longest_s = longest_s
        self.passed_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        found = super().select(min(timeout, self._longest_s))
        if not found:
            self.passed_s += timeout
        return found


class PatientLoop(asyncio.SelectorEventLoop):
    """skips_idle: go on to the next timer at once; right where nothing happens in other threads or processes."""

    def __init__(self, *, skips_idle: bool) -> None:
        self._counted = _Selector(_IDLE_S if skips_idle else math.inf)
        super().__init__(self._counted)

    def time(self) -> float:
        return self._counted.passed_s


class LoopClock:
    """The time of the loop that runs. Implements `core.protocols.Clock`."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


def run_patiently(main: Coroutine[Any, Any, None], *, skips_idle: bool = True) -> None:
    """Run a coroutine as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=lambda: PatientLoop(skips_idle=skips_idle)) as runner:
        runner.run(main)
