"""Allowances of this gateway: callers that ask again and again are granted at once, out of what was lent for them.

Owns what is left of each allowance and which requests have begun out of it without being written down yet. Knows no
database: `authority` carries out its turns, each batch one of every allowance that has something to tell, and says what
came of them.
Invariant: what has been drawn never exceeds what was lent; nothing is drawn from an allowance whose lease may be over
before the draw is written. A request that was drawn stands under the allowance's lease until it has been written.
When it is used: a caller's second request within RECENT_S opens one; one that nobody has used for IDLE_S is given back.
It grows until a turn of the authority's own pace covers what its caller asks for, so that the database is told of many
requests at a time however many they are.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from headrace.gateway.admission.asks import Ask, Granted, Pace, Terms
from headrace.gateway.admission.book import ALLOWANCE, Reservation, begun
from headrace.gateway.admission.lending import NOTHING, Draw, Lot, Turn, Turned, holds_of_one, is_lendable, need

SHARE = 32
FEW, MANY = 8, 256
IDLE_S = 1.0
RECENT_S = 1.0
HOPELESS_S = 5.0  # after an account had too little left to lend of
MAX_ALLOWANCES = 256
_MAX_RECENT = 1024
_SAFE_LEASE = 0.5  # of a lease: less than that is left only where the database does not answer
_NS = 10**9
_Kind = tuple[str, str, str]


Turns = list[tuple[_Kind, Turn]]


@dataclass(slots=True, eq=False)
class _Allowance:
    """What one kind of request may take. `lot` is what the row holds; `left` what has not been drawn of it."""

    ask: Ask
    terms: Terms  # of its last request; others that say the same take their place
    size: Lot  # the largest request so far
    wanted: int = FEW
    row: Reservation | None = None
    lot: Lot = NOTHING
    left: Lot = NOTHING
    lease_until_s: float = 0.0
    draws: list[Draw] = field(default_factory=list)
    flying: list[Draw] = field(default_factory=list)
    requests: Pace | None = None
    tokens: Pace | None = None
    stands_ns: int = 0
    spent_nano: tuple[int, ...] = ()
    is_used: bool = True
    is_short: bool = True
    is_returning: bool = False
    is_pressed: bool = False  # nearly used up since its last turn
    num_turns: int = 0
    name: str = field(default_factory=lambda: secrets.token_hex(8))

    def wish(self) -> Lot:
        """Return what is to be lent so that `wanted` requests are covered again; nothing while half of it is there."""
        if not self.is_short:
            return Lot()
        goal = Lot(self.wanted, self.size.nano * self.wanted, self.size.tokens * self.wanted)
        missing = goal.plus(self.left, -1)
        return Lot(max(1, missing.requests), max(0, missing.nano), max(0, missing.tokens))

    def grow(self) -> None:
        """Want twice as much from now on: it did not last from one turn to the next."""
        self.wanted = min(MANY, 2 * self.wanted)


class Allowances:
    """All allowances of one gateway."""

    def __init__(self, lease_s: float, tell: Callable[[str, float], None], share: int = SHARE) -> None:
        """Keep allowances of at most one `share`-th of what any account has left; 0: none.

        tell  hears until when a request that was drawn may run, once it has been written down or nobody vouches for it
        """
        self._lease_s = lease_s
        self._tell = tell
        self._share = share
        self._kinds: dict[_Kind, _Allowance] = {}
        self._recent: OrderedDict[_Kind, float] = OrderedDict()
        self._is_suspended = False
        self.num_drawn = 0
        self.is_urgent = False  # an allowance is about to run out

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._kinds)

    @property
    def num_unwritten(self) -> int:
        """Return how many requests have begun and are not written down."""
        return sum(len(one.draws) + len(one.flying) for one in self._kinds.values())

    @property
    def is_due(self) -> bool:
        """Say whether the database has to hear of anything."""
        return any(one.draws or one.is_returning or (one.is_short and one.row is None) for one in self._kinds.values())

    def try_draw(self, ask: Ask, now_s: float, now_ns: int) -> tuple[Granted, Reservation, float] | None:
        """Grant a request until its lease ends; None: the database has to be asked."""
        terms = ask.terms
        one = self._kinds.get(terms.kind)
        if one is None or self._is_suspended or one.is_returning:
            return None
        if terms is not one.terms:
            if terms.limits != one.terms.limits or terms.budgets != one.terms.budgets:  # other rules, another period
                one.is_returning = True
                return None
            one.terms = terms
        if one.lease_until_s - now_s < _SAFE_LEASE * self._lease_s or not is_lendable(ask):
            return None
        lot, left = need(ask), one.left
        nano, tokens = lot.nano, lot.tokens
        if nano > one.size.nano or tokens > one.size.tokens:
            one.size = Lot(1, max(nano, one.size.nano), max(tokens, one.size.tokens))
        one.is_used = True
        if not left.requests or left.nano < nano or left.tokens < tokens:
            one.grow()
            one.is_short = True
            return None
        num_left = left.requests - 1
        one.left = Lot(num_left, left.nano - nano, left.tokens - tokens)
        if 2 * num_left < one.wanted:
            one.is_short = True
            if 4 * num_left < one.wanted and not one.is_pressed and not one.flying:
                one.is_pressed = self.is_urgent = True
                one.grow()
        self.num_drawn += 1
        holds, elapsed_ns = holds_of_one(ask, tokens), now_ns - one.stands_ns
        reservation = begun(ask, nano, holds, now_ns, int(self._lease_s * _NS))
        one.draws.append(Draw(reservation, lot))
        granted = Granted(
            holds=holds,
            granted_nano=nano,
            num_output=ask.num_output,
            requests=None if one.requests is None else _now(one.requests, num_left, elapsed_ns),
            tokens=None if one.tokens is None else _now(one.tokens, one.left.tokens, elapsed_ns),
            spent_nano=one.spent_nano,
        )
        return granted, reservation, one.lease_until_s

    def note(self, ask: Ask, now_s: float) -> bool:
        """Hear of a request that the database has granted; say whether an allowance is to be lent for its kind."""
        kind = ask.terms.kind
        if not self._share or kind in self._kinds or not is_lendable(ask):
            return False
        before_s = self._recent.pop(kind, None)
        self._recent[kind] = now_s if before_s is None else max(now_s, before_s)
        if len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)
        if before_s is None or not 0 <= now_s - before_s <= RECENT_S or len(self._kinds) >= MAX_ALLOWANCES:
            return False
        self._kinds[kind] = _Allowance(ask, ask.terms, need(ask))
        return True

    def take_turns(self, *, renew: bool = False) -> Turns:
        """Return what the database has to hear of each; `renew`: of all. Each is answered by `apply` or `restore`."""
        turns: Turns = []
        self.is_urgent = False
        for kind, one in self._kinds.items():
            if not (one.draws or one.is_returning or one.is_short or renew):
                continue
            one.flying, one.draws = one.draws, []
            one.is_pressed = False
            one.num_turns += 1
            turn = Turn(
                ask=one.ask,
                row=one.row,
                lot=one.lot,
                draws=one.flying,
                wish=Lot() if one.is_returning else one.wish(),
                is_return=one.is_returning and one.row is not None,
                new_id=f"{ALLOWANCE}{one.name}/{one.num_turns}",
                share=self._share,
            )
            turns.append((kind, turn))
        return turns

    def apply(self, kind: _Kind, turn: Turn, turned: Turned | None, asked_s: float, now_ns: int) -> None:
        """Hear what came of a turn that was asked for at `asked_s`."""
        one = self._kinds[kind]
        self._is_suspended = False
        until_s = asked_s + self._lease_s * 0.9
        for draw in one.flying:
            self._tell(draw.reservation.id, asked_s if turned is None else until_s)
        one.flying = []
        if turned is None or turned.row is None:
            del self._kinds[kind]
            self._recent[kind] = asked_s if one.is_returning else asked_s + HOPELESS_S
            for draw in one.draws:  # begun meanwhile, out of what is no more: nobody vouches for it
                self._tell(draw.reservation.id, asked_s)
            return
        one.row, one.lease_until_s = turned.row, until_s
        for draw in turn.draws:
            one.lot = one.lot.plus(draw.lot, -1)
        one.lot = one.lot.plus(turned.lent)
        one.left = one.left.plus(turned.lent)
        if turn.wish.requests:
            one.is_short = False
            one.requests, one.tokens, one.stands_ns = turned.requests, turned.tokens, now_ns
            one.spent_nano = turned.spent_nano or one.spent_nano

    def drop(self, kind: _Kind, turn: Turn, now_s: float) -> None:
        """Hear that a turn failed for a fault of ours: the allowance is left to its lease."""
        self.apply(kind, turn, None, now_s, 0)

    def restore(self, kind: _Kind) -> None:
        """Hear that a turn did not come about for want of the database; nothing is drawn until one does."""
        one = self._kinds[kind]
        one.draws, one.flying = one.flying + one.draws, []
        one.is_short = True  # so that the next batch asks again, whoever begins it
        self._is_suspended = True

    def give_back(self, asks: Iterable[Ask] | None = None) -> bool:
        """Have allowances returned: all, or those that share an account with `asks`; say whether there are any."""
        accounts = None if asks is None else {account for ask in asks for account in _accounts(ask)}
        found = False
        for one in self._kinds.values():
            if not one.is_returning and (accounts is None or not accounts.isdisjoint(_accounts(one.ask))):
                one.is_returning = found = True
        return found

    def give_back_idle(self) -> bool:
        """Have those returned that nobody has used since the last call; say whether any is due."""
        for one in self._kinds.values():
            one.is_returning = one.is_returning or not one.is_used
            one.is_used = False
        return self.is_due


def _accounts(ask: Ask) -> list[str]:
    return [hold.account for hold in ask.budgets] + [hold.account for hold in ask.limits]


def _now(pace: Pace, left: int, elapsed_ns: int) -> Pace:
    """Return where a limit stands for this gateway: what is in the bucket, and what it has taken out for itself."""
    return Pace(pace.limit, min(pace.limit, pace.remaining + left), max(0, pace.full_in_ns - elapsed_ns))
