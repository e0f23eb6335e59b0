"""How many attempts may be made again, over all requests: retries must not become the load that keeps a server down.

Owns one account: each first attempt pays in `ratio`, each retry takes out one. Invariant: retries ≤ ratio · requests +
`_FLOOR`, in any stretch of time.
Source: Finagle's retry budgets; Google SRE book, "Handling Overload".
"""

from __future__ import annotations

_FLOOR = 10.0  # saved up at the start, and the most that can be


class RetryAccount:
    """The retries that all pools of this process share."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._saved = _FLOOR if ratio else 0.0

    def earn(self) -> None:
        """A request has come."""
        self._saved = min(self._saved + self._ratio, _FLOOR)

    def try_spend(self) -> bool:
        """Ask for one retry; True grants it."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
