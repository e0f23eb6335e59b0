"""What is asked of the accounts for one request, and what they grant: values that outlive no request.

A `Hold` is what a reservation has taken and must give back; it is written beside the reservation, so that whoever
finds it after a crash knows what to release.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.gateway.budgets.price import TokenPrice
from headrace.gateway.budgets.rules import BudgetRule
from headrace.gateway.limits.rules import LimitRule


@dataclass(frozen=True, slots=True)
class LimitHold:
    """A limit that counts this request, and the account it is counted in."""

    rule: LimitRule
    account: str


@dataclass(frozen=True, slots=True)
class BudgetHold:
    """A budget that pays for this request, and the account it is charged to."""

    rule: BudgetRule
    account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, as the accounts see it.

    num_output    tokens that all its choices may have together
    least_output  an answer that is cut shorter than this is refused instead
    price         None: not known; then nothing is charged
    """

    id: str
    request_id: str
    tenant: str
    key_id: str
    model: str
    task: str
    limits: tuple[LimitHold, ...]
    budgets: tuple[BudgetHold, ...]
    price: TokenPrice | None
    num_input: int
    num_output: int
    least_output: int

    @property
    def is_hard(self) -> bool:
        """Say whether a hard budget pays: then nothing may begin that is not written down."""
        return self.price is not None and any(hold.rule.is_hard for hold in self.budgets)


class TokenHold(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that were taken from a bucket before their number was known."""

    account: str
    num: int
    amount: int
    period_ns: int


class Holds(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one reservation holds: accounts by kind. Each of `spends` holds the whole of what was granted.

    slots  what it holds of each of `parallel`: 1, but for allowances
    """

    spends: tuple[str, ...] = ()
    tokens: tuple[TokenHold, ...] = ()
    parallel: tuple[str, ...] = ()
    slots: int = 1


class Pace(msgspec.Struct, frozen=True):
    """How far a caller is from the tightest of its limits of one kind."""

    limit: int
    remaining: int
    full_in_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A request that may begin.

    granted_nano   money that is reserved on every budget
    num_output     tokens that the money surely pays for, at most what was asked
    requests, tokens  where the tightest limits stand now
    warnings       budgets that are past their soft mark
    spent_nano     what each budget had spent before
    """

    holds: Holds
    granted_nano: int
    num_output: int
    requests: Pace | None = None
    tokens: Pace | None = None
    warnings: tuple[str, ...] = ()
    spent_nano: tuple[int, ...] = ()
