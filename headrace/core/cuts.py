"""What a server cuts running requests off for, and the error each of their callers is told.

Values only. Written by the engine's facade, which knows why it ends; told by whoever turns deltas into an answer.
A cut is never the request's own fault and never the caller's wish: sent again, it can be answered.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

from headrace.core.errors import EngineDead, HeadraceError, ServerDraining, WeightsSwapped


class Cut(StrEnum):
    """Why an engine ends before its requests do."""

    SWAP = "swap"  # other weights serve under its name
    DRAIN = "drain"  # the process was asked to stop
    DEAD = "dead"  # it failed, or hangs

    def error(self, message: str) -> HeadraceError:
        """Return what a caller is told who was cut off, or came too late."""
        match self:
            case Cut.SWAP:
                return WeightsSwapped(message)
            case Cut.DRAIN:
                return ServerDraining(message)
            case Cut.DEAD:
                return EngineDead(message)
            case _:
                assert_never(self)
