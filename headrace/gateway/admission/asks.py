"""What is asked of the accounts for one request, and what they grant: values that outlive no request.

A `Hold` is what a reservation has taken and must give back; it is written beside the reservation, so that whoever
finds it after a crash knows what to release.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from headrace.gateway.budgets.price import TokenPrice
from headrace.gateway.budgets.rules import BudgetRule
from headrace.gateway.limits.rules import LimitRule, What


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


class Terms(msgspec.Struct, frozen=True):
    """The limits and budgets that all requests of one kind meet, and what follows from them; made by `terms_of`.

    kind        tenant, key and model
    most_lent   tokens of the largest request that may be granted out of an allowance; None: no limit counts them
    spends      accounts of the budgets; parallel: of limits of requests at a time; buckets: the limits of tokens
    """

    kind: tuple[str, str, str]
    limits: tuple[LimitHold, ...]
    budgets: tuple[BudgetHold, ...]
    has_hard: bool
    is_lendable: bool
    most_lent: int | None
    spends: tuple[str, ...]
    parallel: tuple[str, ...]
    buckets: tuple[LimitHold, ...]


def terms_of(kind: tuple[str, str, str], limits: tuple[LimitHold, ...], budgets: tuple[BudgetHold, ...]) -> Terms:
    """Return what these rules mean to every request: rules of a task are not lent."""
    whats = {hold.rule.what for hold in limits}
    buckets = tuple(hold for hold in limits if hold.rule.what is What.TOKENS)
    return Terms(
        kind=kind,
        limits=limits,
        budgets=budgets,
        has_hard=any(hold.rule.is_hard for hold in budgets),
        is_lendable=What.STEPS not in whats and all(hold.rule.period != "task" for hold in budgets),
        most_lent=min((hold.rule.amount for hold in buckets), default=None),
        spends=tuple(hold.account for hold in budgets),
        parallel=tuple(hold.account for hold in limits if hold.rule.what is What.PARALLEL),
        buckets=buckets,
    )


class Ask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, as the accounts see it.

    num_output    tokens that all its choices may have together
    least_output  an answer that is cut shorter than this is refused instead
    price         None: not known; then nothing is charged
    """

    id: str
    request_id: str
    task: str
    terms: Terms
    price: TokenPrice | None
    num_input: int
    num_output: int
    least_output: int

    @property
    def tenant(self) -> str:
        """Return whose money it is."""
        return self.terms.kind[0]

    @property
    def key_id(self) -> str:
        """Return whose request it is."""
        return self.terms.kind[1]

    @property
    def model(self) -> str:
        """Return what is asked."""
        return self.terms.kind[2]

    @property
    def limits(self) -> tuple[LimitHold, ...]:
        """Return the limits that count it."""
        return self.terms.limits

    @property
    def budgets(self) -> tuple[BudgetHold, ...]:
        """Return the budgets that pay for it."""
        return self.terms.budgets

    @property
    def is_hard(self) -> bool:
        """Say whether a hard budget pays: then nothing may begin that is not written down."""
        return self.price is not None and self.terms.has_hard


class TokenHold(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens that were taken from a bucket before their number was known."""

    account: str
    num: int
    amount: int
    period_ns: int


class Holds(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What one reservation holds: accounts by kind. Each of `spends` holds the whole of what was granted.

    slots  what it holds of each of `parallel`: 1, but for allowances
    """

    spends: tuple[str, ...] = ()
    tokens: tuple[TokenHold, ...] = ()
    parallel: tuple[str, ...] = ()
    slots: int = 1


class Pace(msgspec.Struct, frozen=True, gc=False):
    """How far a caller is from the tightest of its limits of one kind."""

    limit: int
    remaining: int
    full_in_ns: int


class Granted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
