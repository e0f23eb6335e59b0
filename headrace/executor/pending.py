"""`Deferred`: the Pending of an executor that works on the caller's thread: the work is done when its result is asked.

So `launch` returns at once, and the engine can send on the tokens of the step before while nothing is lost to waiting.
Invariant: the work is done once; `result()` gives the same answer, or raises the same error, however often it is asked.
Results are asked in launch order, as the engine does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deferred(Generic[T]):
    """Does `work` when first asked and keeps what it returned or raised. Implements `core.protocols.Pending`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._value: T
        self._error: Exception | None = None

    def result(self) -> T:
        """Return the value, or raise what the work raised."""
        if self._work is not None:
            work, self._work = self._work, None
            try:
                self._value = work()
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._value
