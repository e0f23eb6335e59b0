"""What requests came to that have ended lately, for callers who ask afterwards.

Owns the newest `_MOST` settlements by key and request id: somebody else's request of the same id is never found.
Written by the stage of limits and budgets as it settles; a request that was settled twice counts with its last end.
"""

from __future__ import annotations

from collections import OrderedDict

from headrace.core.delta import Usage
from headrace.core.request import RequestId
from headrace.gateway.budgets.price import TokenCounts
from headrace.gateway.budgets.settlement import Settlement

_MOST = 4096


class RecentSettlements:
    """Remembers what they came to."""

    def __init__(self) -> None:
        self._ended: OrderedDict[tuple[str, str], tuple[TokenCounts, int | None, bool]] = OrderedDict()

    def hear(self, settlement: Settlement) -> None:
        """Keep what a request came to."""
        came_to = settlement.counts, settlement.cost_nano, settlement.is_estimate
        self._ended[settlement.key_id, settlement.request_id] = came_to
        if len(self._ended) > _MOST:
            self._ended.popitem(last=False)

    def find(self, key_id: str, request_id: RequestId) -> Usage | None:
        """Return what a key's request came to, None if it has not ended lately."""
        found = self._ended.get((key_id, request_id))
        if found is None:
            return None
        counts, cost_nano, is_estimate = found
        return Usage(
            prompt_tokens=counts.num_input,
            completion_tokens=counts.num_output,
            cached_tokens=counts.cache_read,
            cache_write_tokens=counts.cache_write + counts.cache_write_1h,
            cache_write_1h_tokens=counts.cache_write_1h,
            reasoning_tokens=counts.output_reasoning,
            cost_nano=cost_nano,
            is_estimate=is_estimate,
        )
