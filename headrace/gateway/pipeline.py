"""Stages over the one stream of deltas, each around the next, the upstream innermost.

Owns the order. A stage is `async (request, next) -> AsyncIterator[Delta]`: it may refuse, change the request, look at
or add to deltas, and must close what `next` gave it on every way out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from headrace.core.delta import Delta
from headrace.core.protocols import Upstream
from headrace.core.request import Request

Next = Callable[[Request], AsyncIterator[Delta]]


class Stage(Protocol):
    """One layer around what answers."""

    def __call__(self, request: Request, following: Next, /) -> AsyncIterator[Delta]:
        """Stream the answer of `following`, or refuse by raising before the first delta."""
        ...


class Pipeline:
    """An upstream with stages before it. Implements `core.protocols.Upstream`."""

    def __init__(self, stages: Sequence[Stage], upstream: Upstream) -> None:
        self._enter: Next = upstream.generate
        for stage in reversed(stages):
            self._enter = _around(stage, self._enter)

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Stream the answer through all stages."""
        return self._enter(request)


def _around(stage: Stage, following: Next) -> Next:
    return lambda request: stage(request, following)
