"""What one request came to: the row that is written when it ends, however it ends.

A value. The ledger builds on it: token buckets are disjoint, money is whole nano-dollars, and a cost that is not known
is None, never zero.
"""

from __future__ import annotations

import msgspec

from headrace.gateway.budgets.price import TokenCounts
from headrace.gateway.ledger.course import UNKNOWN, Course


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request's end.

    id            of the reservation, unique; settling twice writes one row
    outcome       a finish reason, or `expired` for one whose gateway was gone
    is_estimate   tokens were counted from what came by, since the upstream did not say
    reserved_nano what had been set aside
    reported_nano what its remote upstream says it cost; priced_nano: what the price says of it, where both are known
    engine_ns     of an engine of ours: its time; machine_nano: what that cost, where the machine's rate is known
    course        where its time was and what it looked like
    """

    id: str
    request_id: str
    settled_ns: int
    tenant: str
    key_id: str
    model: str
    task: str
    outcome: str
    counts: TokenCounts
    is_estimate: bool
    reserved_nano: int
    cost_nano: int | None
    price_source: str | None
    engine_ns: int = 0
    machine_nano: int | None = None
    course: Course = UNKNOWN
    reported_nano: int | None = None
    priced_nano: int | None = None
