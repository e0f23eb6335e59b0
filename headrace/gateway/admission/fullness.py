"""How much of each budget is spent, as its last requests have seen it: what monitors ask without asking the database.

Owns the last seen state of at most `_MOST_ACCOUNTS` accounts, the most recently used. Called by the authority, once per
granted request. An account whose period is over says nothing any more.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.gateway.admission.asks import BudgetHold
from headrace.gateway.budgets.periods import period_end, rolling_s

_MOST_ACCOUNTS = 1000
_MOST_SHOWN = 50
_NS = 10**9


class _Seen(NamedTuple):
    budget: str
    ratio: float
    until_s: float


class Fullness:
    """Shares of budgets that are spent."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def note(self, holds: tuple[BudgetHold, ...], spent_nano: tuple[int, ...], now_ns: int) -> None:
        """Take in what the accounts of `holds` had spent when a request was granted."""
        for hold, spent in zip(holds, spent_nano, strict=True):
            known = self._seen.pop(hold.account, None)
            until_s = _until_s(hold, now_ns / _NS) if known is None or rolling_s(hold.rule.period) else known.until_s
            self._seen[hold.account] = _Seen(hold.rule.id, spent / max(1, hold.rule.limit_nano), until_s)
        while len(self._seen) > _MOST_ACCOUNTS:
            del self._seen[next(iter(self._seen))]

    def read(self, now_ns: int) -> dict[str, float]:
        """Return the share of the fullest account of each budget; of many budgets the fullest."""
        fullest: dict[str, float] = {}
        for seen in self._seen.values():
            if seen.until_s > now_ns / _NS:
                fullest[seen.budget] = max(seen.ratio, fullest.get(seen.budget, 0.0))
        return dict(sorted(fullest.items(), key=lambda pair: pair[1], reverse=True)[:_MOST_SHOWN])


def _until_s(hold: BudgetHold, now_s: float) -> float:
    """Return until when what an account has spent counts, if nothing more is spent."""
    if (window_s := rolling_s(hold.rule.period)) is not None:
        return now_s + window_s
    end = period_end(hold.rule.period, hold.rule.timezone, now_s)
    return float("inf") if end is None else end.timestamp()
