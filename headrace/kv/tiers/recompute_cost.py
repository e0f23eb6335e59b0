"""What computing tokens costs, as the places below the pool ask it: loading has to beat that.

Owns nothing. Who computes knows the answer, and that is the scheduler: its model of steps implements `RecomputeCost`.
A hierarchy that nobody has told has `Unknown`, and then loads whatever it finds.
"""

from __future__ import annotations

from typing import Protocol

_GUESS_S = 1e-4  # per token


class RecomputeCost(Protocol):
    """Predicts what recomputing part of a sequence costs beside the steps that are made anyway."""

    @property
    def is_known(self) -> bool:
        """Say whether prompts have been computed, so that the answer is more than a guess."""
        ...

    def recompute_s(self, start: int, count: int) -> float:
        """Return the seconds that `count` tokens from position `start` take."""
        ...


class Unknown:
    """Nobody has computed anything yet."""

    @property
    def is_known(self) -> bool:
        """Say no."""
        return False

    def recompute_s(self, start: int, count: int) -> float:
        """Return a guess."""
        return _GUESS_S * count
