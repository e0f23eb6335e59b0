"""What computing tokens costs, known from the start: so that a test decides whether loading beats it.

Owns nothing. Implements `kv.tiers.RecomputeCost`.
"""

from __future__ import annotations


class FixedCost:
    """`token_s` seconds for each token, wherever it stands."""

    is_known = True

    def __init__(self, token_s: float) -> None:
        self._token_s = token_s

    def recompute_s(self, start: int, count: int) -> float:
        """Return the seconds that `count` tokens take."""
        return self._token_s * count
