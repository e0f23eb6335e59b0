"""`Finished`: the Pending of an executor that works inline: by the time it exists, the work is done.

Invariant: `result()` gives the same answer however often it is asked; an error is raised there, not at launch, so that
callers handle inline and overlapped executors alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Finished(Generic[T]):
    """Holds what `work` returned or raised. Implements `core.protocols.Pending`."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._value: T
        self._error: Exception | None = None
        try:
            self._value = work()
        except Exception as error:
            self._error = error

    def result(self) -> T:
        """Return the value, or raise what the work raised."""
        if self._error is not None:
            raise self._error
        return self._value
