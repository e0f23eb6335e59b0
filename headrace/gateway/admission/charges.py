"""What a request comes to in money: by the price, and by what a remote upstream reported.

Owns nothing; pure. What the caller is charged is the price's, unless the upstream's settings have its report charged.
Invariant: where a hard budget holds, no more is charged than was set aside for the request, whatever is reported.
"""

from __future__ import annotations

import msgspec

from headrace.core.delta import Usage
from headrace.econ import divide
from headrace.gateway.admission.authority import Grant
from headrace.gateway.budgets.price import TokenCounts

REPORTED = "reported"


class Money(msgspec.Struct, frozen=True, gc=False):
    """What one request comes to, in nano-dollars; None is what is not known.

    cost      what the caller is charged; cached and output are parts of it
    reported  what its upstream says; priced: what the price says of the same tokens, where both are to be compared
    source    where the charge is from
    """

    cost: int | None = None
    cached: int | None = None
    output: int | None = None
    reported: int | None = None
    priced: int | None = None
    source: str | None = None


def money_of(grant: Grant, counts: TokenCounts, usage: Usage | None) -> Money:
    """Return what a request comes to that has used `counts`."""
    price = grant.ask.price
    told, reported = (None, None) if usage is None else (usage.cost_nano, usage.reported_nano)
    if price is None:
        return Money(cost=told, reported=reported, source=None if told is None else REPORTED)
    fresh, cached, output = parts = price.parts_nano(counts)
    cost = priced = fresh + cached + output
    source = price.source
    if told is not None:
        cost, source = told, REPORTED
        if grant.ask.terms.has_hard:
            cost = min(cost, grant.granted.granted_nano)
        if cost != priced:
            _, cached, output = divide(cost, parts) if priced else (cost, 0, 0)
    return Money(cost, cached, output, reported, None if reported is None else priced, source)
