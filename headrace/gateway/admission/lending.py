"""Allowances in the accounts: what is lent to one gateway, drawn from it request by request, and given back.

Owns no state; changes a `Book`. An allowance is a reservation of several requests at once: money of every budget,
tokens, requests and places of every limit that they meet. Drawing moves a part of it into a reservation of one request,
and touches no account. Whoever finds an allowance whose lease has run out releases it like any reservation.

    left of each account ─ lend ─► allowance ─ draw ─► reservation ─ settle ─► spent
            ▲                          └─ give back, expire ─┐
            └────────────────────────────────────────────────┘

Invariant: what an allowance holds is set aside in the accounts, so that spent + reserved ≤ limit speaks of it too.
A row never changes: each turn ends the one before and begins another, which shows whoever comes late that it is late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from headrace.gateway.admission.asks import Ask, Holds, Pace, TokenHold
from headrace.gateway.admission.book import Book, Reservation
from headrace.gateway.budgets.price import TokenCounts
from headrace.gateway.limits import bucket
from headrace.gateway.limits.rules import What


class Lot(msgspec.Struct, frozen=True, gc=False):
    """What an allowance holds: requests, and for all of them together money and tokens."""

    requests: int = 0
    nano: int = 0
    tokens: int = 0

    def plus(self, other: Lot, sign: int = 1) -> Lot:
        """Add, or with -1 take away."""
        return Lot(
            self.requests + sign * other.requests, self.nano + sign * other.nano, self.tokens + sign * other.tokens
        )

    def covers(self, other: Lot) -> bool:
        """Say whether it has at least as much of everything."""
        return self.requests >= other.requests and self.nano >= other.nano and self.tokens >= other.tokens


NOTHING = Lot()


class Draw(msgspec.Struct, frozen=True, gc=False):
    """A request that has begun out of an allowance, and what it took; its reservation holds no more than that."""

    reservation: Reservation
    lot: Lot


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One change of an allowance.

    ask     any request of its kind: names the accounts
    row     the allowance as it stands; None: there is none yet
    lot     what it holds
    draws   requests that have begun out of it, with what each took
    wish    what is to be lent in addition, at most
    new_id  of the row that follows
    """

    ask: Ask
    row: Reservation | None
    lot: Lot
    draws: Sequence[Draw]
    wish: Lot
    is_return: bool
    new_id: str
    share: int

    @property
    def touches_accounts(self) -> bool:
        """Say whether anything but reservations changes."""
        return self.is_return or self.wish.requests > 0


class Turned(NamedTuple):
    """An allowance after a turn, what was lent, and where its accounts stand. `row` None: it holds nothing any more."""

    row: Reservation | None
    lent: Lot = NOTHING
    requests: Pace | None = None
    tokens: Pace | None = None
    spent_nano: tuple[int, ...] = ()


def need(ask: Ask) -> Lot:
    """Return what one request takes."""
    nano = 0 if ask.price is None else ask.price.most_nano(ask.num_input, ask.num_output)
    return Lot(1, nano, ask.num_input + ask.num_output)


def is_lendable(ask: Ask) -> bool:
    """Say whether requests like this one may be granted out of an allowance: rules of a task are not lent."""
    terms = ask.terms
    return terms.is_lendable and (terms.most_lent is None or ask.num_input + ask.num_output <= terms.most_lent)


def take_turn(book: Book, turn: Turn, now_ns: int, lease_ns: int) -> Turned | None:
    """Carry out a turn; None if the allowance is gone, then nothing has happened."""
    row = turn.row
    if row is not None:
        found = book.reservations.get(row.id)
        if found is None or not found.is_open:
            return None
        book.end(row.id)
    lot = turn.lot
    for draw in turn.draws:
        lot = lot.plus(draw.lot, -1)
        book.begin(draw.reservation, now_ns + lease_ns)
    if turn.is_return:
        book.release(_row(turn, lot, now_ns, lease_ns), TokenCounts(), now_ns)
        return Turned(None)
    lent = _lend(book, turn, now_ns)
    lot = lot.plus(lent)
    if lot == NOTHING:
        return Turned(None)
    ask, after = turn.ask, _row(turn, lot, now_ns, lease_ns)
    book.reservations[after.id] = after
    book.changed.add(after.id)
    book.fresh.add(after.id)
    return Turned(
        row=after,
        lent=lent,
        requests=book.tightest(ask, What.REQUESTS, now_ns),
        tokens=book.tightest(ask, What.TOKENS, now_ns),
        spent_nano=_spent(book, ask, now_ns),
    )


def _spent(book: Book, ask: Ask, now_ns: int) -> tuple[int, ...]:
    """Return what each budget has spent; nothing if an account is not open, as none had to be for this turn."""
    accounts = ask.terms.spends
    if any(account not in book.spends for account in accounts):
        return ()
    return tuple(book.spend(account, now_ns).spent_nano for account in accounts)


def holds_of_one(ask: Ask, num_tokens: int) -> Holds:
    """Return the accounts of a request out of an allowance, and what is held of each."""
    terms = ask.terms
    if not terms.buckets:
        return Holds(terms.spends, (), terms.parallel)
    buckets = [TokenHold(hold.account, num_tokens, hold.rule.amount, hold.rule.period_ns) for hold in terms.buckets]
    return Holds(terms.spends, tuple(buckets), terms.parallel)


def holds_of(ask: Ask, lot: Lot) -> Holds:
    """Return the accounts of an allowance and what it holds of each; requests are held in their buckets, too."""
    tokens = [
        TokenHold(hold.account, num, hold.rule.amount, hold.rule.period_ns)
        for hold in ask.limits
        for what, num in ((What.TOKENS, lot.tokens), (What.REQUESTS, lot.requests))
        if hold.rule.what is what and (what is What.TOKENS or num)
    ]
    return Holds(ask.terms.spends, tuple(tokens), ask.terms.parallel, max(1, lot.requests))


def _row(turn: Turn, lot: Lot, now_ns: int, lease_ns: int) -> Reservation:
    ask = turn.ask
    holds = holds_of(ask, lot)
    return Reservation(
        id=turn.new_id,
        lease_until_ns=now_ns + lease_ns,
        created_ns=now_ns,
        tenant=ask.tenant,
        key_id=ask.key_id,
        model=ask.model,
        task="",
        granted_nano=lot.nano,
        holds=holds if lot.requests else msgspec.structs.replace(holds, parallel=()),
    )


def _lend(book: Book, turn: Turn, now_ns: int) -> Lot:
    """Set aside what is wished, or as many requests' worth of it as is a share of what every account has left."""
    wish = turn.wish
    if not wish.requests:
        return NOTHING
    nano, tokens = -(-wish.nano // wish.requests), -(-wish.tokens // wish.requests)
    num = wish.requests
    for budget in turn.ask.budgets:
        rule = budget.rule
        most = rule.limit_nano if rule.soft_nano is None else min(rule.limit_nano, rule.soft_nano)
        num = min(num, book.spend(budget.account, now_ns).left(most) // turn.share // max(1, nano))
    for hold in turn.ask.limits:
        limit, track = hold.rule, book.track(hold.account)
        if limit.what is What.PARALLEL:
            num = min(num, (limit.amount - track.held) // turn.share)
        else:
            left = bucket.remaining(track.full_ns, now_ns, limit.amount, limit.period_ns)
            num = min(num, left // turn.share // (1 if limit.what is What.REQUESTS else max(1, tokens)))
    if num < 1:
        return NOTHING
    lent = Lot(num, num * nano, num * tokens)
    for budget in turn.ask.budgets:
        book.spend(budget.account, now_ns).reserved_nano += lent.nano
        book.changed.add(budget.account)
    for hold in turn.ask.limits:
        limit, track = hold.rule, book.track(hold.account)
        if limit.what is What.PARALLEL:
            track.held += num
        else:
            amount = num if limit.what is What.REQUESTS else lent.tokens
            track.full_ns = bucket.take(track.full_ns, now_ns, amount, limit.amount, limit.period_ns)
        book.changed.add(hold.account)
    return lent
