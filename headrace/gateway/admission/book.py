"""The accounts of a few requests, opened for one transaction: who may begin, what it came to, what expired.

Owns the decision, not the storage: `admission.batch` loads the accounts that are needed, locked, and writes back what
changed. All scopes of a request are decided together: either each of them gives, or none does.

    ask ─ reserve ─► open ─ settle ─► gone          reserved −granted, spent +cost
                      │
                      └─ expire ─► closed ─ settle ─► gone   the holder was late: spent + what was not yet charged

Invariant: for a hard budget spent + reserved ≤ limit after every `reserve`, and no other command raises that sum unless
an upstream wrote more than it was allowed to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from headrace.core.errors import BudgetExceeded, RateLimited, TaskExhausted
from headrace.econ.money import show_usd
from headrace.gateway.admission.asks import Ask, BudgetHold, Granted, Holds, LimitHold, Pace, TokenHold
from headrace.gateway.budgets.account import Spend
from headrace.gateway.budgets.periods import period_end
from headrace.gateway.budgets.price import TokenCounts
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.limits import bucket
from headrace.gateway.limits.rules import LimitRule, What

_NS = 10**9
_PARALLEL_RETRY_S = 1.0
ALLOWANCE = "allowance/"


@dataclass(slots=True, kw_only=True)
class Track:
    """One account of a limit: when its bucket is full again, how many it holds."""

    id: str
    full_ns: int = 0
    held: int = 0


class Reservation(msgspec.Struct, kw_only=True, gc=False):
    """One request under way. `progress_nano` is what it was last known to have cost: charged only when it expires."""

    id: str
    is_open: bool = True
    lease_until_ns: int
    created_ns: int
    tenant: str
    key_id: str
    model: str
    task: str
    granted_nano: int
    progress_nano: int = 0
    num_input: int = 0
    num_output: int = 0
    holds: Holds


def begun(ask: Ask, granted_nano: int, holds: Holds, now_ns: int, lease_ns: int) -> Reservation:
    """Return the reservation of a request that begins now."""
    tenant, key_id, model = ask.terms.kind
    return Reservation(
        id=ask.id,
        lease_until_ns=now_ns + lease_ns,
        created_ns=now_ns,
        tenant=tenant,
        key_id=key_id,
        model=model,
        task=ask.task,
        granted_nano=granted_nano,
        holds=holds,
    )


@dataclass(slots=True)
class Book:
    """Accounts that are open now. An account that is not in it is new and empty."""

    spends: dict[str, Spend] = field(default_factory=dict)
    tracks: dict[str, Track] = field(default_factory=dict)
    reservations: dict[str, Reservation] = field(default_factory=dict)
    settlements: dict[str, Settlement] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    fresh: set[str] = field(default_factory=set)  # reservations that have no row yet

    def reserve(self, ask: Ask, now_ns: int, lease_ns: int) -> Granted:
        """Set aside what a request may need; or raise RateLimited, TaskExhausted, BudgetExceeded and change nothing."""
        self._check_limits(ask, now_ns)
        granted_nano, num_output = self._afford(ask, now_ns)
        holds = self._take(ask, granted_nano, now_ns)
        self.begin(begun(ask, granted_nano, holds, now_ns, lease_ns), now_ns + lease_ns)
        return Granted(
            holds=holds,
            granted_nano=granted_nano,
            num_output=num_output,
            requests=self.tightest(ask, What.REQUESTS, now_ns),
            tokens=self.tightest(ask, What.TOKENS, now_ns),
            warnings=tuple(hold.rule.describe() for hold in ask.budgets if self._is_past_soft(hold)),
            spent_nano=tuple(self.spends[hold.account].spent_nano for hold in ask.budgets),
        )

    def begin(self, reservation: Reservation, lease_until_ns: int) -> None:
        """Write down a request that may begin; its accounts are charged elsewhere."""
        reservation.lease_until_ns = lease_until_ns
        self.reservations[reservation.id] = reservation
        self.changed.add(reservation.id)
        self.fresh.add(reservation.id)

    def end(self, reservation_id: str) -> None:
        """Take a reservation off the book: its row goes, if it has one."""
        del self.reservations[reservation_id]
        self.changed.discard(reservation_id)
        if reservation_id not in self.fresh:
            self.gone.add(reservation_id)

    def settle(self, known: Reservation, settlement: Settlement, now_ns: int) -> None:
        """End a request. `known` is what its holder remembers: the book may say that it has expired, that it was never
        written, or that it is settled already, since an answer of the database was lost."""
        found = self.reservations.get(known.id)
        if found is None and known.id in self.settled:
            return
        cost_nano = settlement.cost_nano or 0
        if found is not None and found.is_open:
            self.release(found, settlement.counts, now_ns)
        elif found is not None:
            cost_nano -= found.progress_nano
        for account in known.holds.spends:
            self._charge(account, cost_nano, now_ns)
        if found is not None:
            self.end(known.id)
        self.settled.add(known.id)
        self.settlements[known.id] = settlement

    def renew(self, known: Reservation, lease_ns: int, now_ns: int) -> bool:
        """Keep an open reservation for another lease and note how far it is; False if it has expired."""
        found = self.reservations.get(known.id)
        if found is None or not found.is_open:
            return False
        found.lease_until_ns = now_ns + lease_ns
        found.progress_nano, found.num_input, found.num_output = known.progress_nano, known.num_input, known.num_output
        self.changed.add(found.id)
        return True

    def expire(self, found: Reservation, now_ns: int) -> None:
        """Close a reservation whose holder is gone: charge what was known to be done, release the rest.

        An allowance is released whole: what was drawn from it and written down has a reservation of its own.
        """
        if is_allowance(found.id):
            self.release(found, TokenCounts(), now_ns)
            self.end(found.id)
            return
        counts = TokenCounts(input_uncached=found.num_input, output_text=found.num_output)
        self.release(found, counts, now_ns)
        for account in found.holds.spends:
            self._charge(account, found.progress_nano, now_ns)
        found.is_open = False
        self.changed.add(found.id)
        self.settlements[found.id] = Settlement(
            id=found.id,
            request_id="",
            settled_ns=now_ns,
            tenant=found.tenant,
            key_id=found.key_id,
            model=found.model,
            task=found.task,
            outcome="expired",
            counts=counts,
            is_estimate=True,
            reserved_nano=found.granted_nano,
            cost_nano=found.progress_nano,
            price_source=None,
        )

    def check(self, limits_nano: dict[str, int]) -> None:
        """Assert the invariants of the accounts that are open; `limits_nano` by account."""
        for account, limit_nano in limits_nano.items():
            spend = self.spends.get(account, Spend.named(account))
            assert spend.spent_nano >= 0, spend
            assert spend.reserved_nano >= 0, spend
            assert spend.spent_nano + spend.reserved_nano <= limit_nano, spend

    def _check_limits(self, ask: Ask, now_ns: int) -> None:
        longest: tuple[int, LimitHold] | None = None
        for hold in ask.limits:
            wait_ns = self._wait_ns(hold, ask, now_ns)
            if wait_ns and (longest is None or wait_ns > longest[0]):
                longest = wait_ns, hold
        if longest is None:
            return
        wait_ns, hold = longest
        if hold.rule.what is What.STEPS:
            raise TaskExhausted(
                f"task '{ask.task}' has used its {hold.rule.amount:,} steps ({hold.rule.describe()}); begin a new task"
            )
        raise RateLimited(
            f"over the limit of {hold.rule.describe()}; try again in {wait_ns / _NS:.1f} s",
            retry_after_s=wait_ns / _NS,
            headers=tuple(
                pace_headers(self.tightest(ask, What.REQUESTS, now_ns), self.tightest(ask, What.TOKENS, now_ns))
            ),
        )

    def _wait_ns(self, hold: LimitHold, ask: Ask, now_ns: int) -> int:
        rule, track = hold.rule, self.track(hold.account)
        if rule.what in (What.PARALLEL, What.STEPS):
            return 0 if track.held < rule.amount else int(_PARALLEL_RETRY_S * _NS)
        return bucket.wait_ns(track.full_ns, now_ns, _num(rule, ask), rule.amount, rule.period_ns)

    def _afford(self, ask: Ask, now_ns: int) -> tuple[int, int]:
        """Return the money to set aside and the output tokens it pays for."""
        if ask.price is None:
            return 0, ask.num_output
        full_nano = ask.price.most_nano(ask.num_input, ask.num_output)
        tightest: tuple[int, BudgetHold] | None = None
        for hold in ask.budgets:
            left_nano = self.spend(hold.account, now_ns).left(hold.rule.limit_nano)
            if hold.rule.is_hard and (tightest is None or left_nano < tightest[0]):
                tightest = left_nano, hold
        if tightest is None or full_nano <= tightest[0]:
            return full_nano, ask.num_output
        left_nano, hold = tightest
        num_output = ask.price.affordable_output(ask.num_input, left_nano)
        if num_output is None or num_output < min(ask.num_output, ask.least_output):
            least_nano = ask.price.most_nano(ask.num_input, min(ask.num_output, ask.least_output))
            pays_at_s = self._pays_at_s(hold, least_nano, now_ns)
            raise BudgetExceeded(
                f"the budget of {hold.rule.describe()} is ${show_usd(hold.rule.limit_nano)} and has "
                f"${show_usd(max(0, left_nano))} left; this request needs up to ${show_usd(full_nano)}; "
                f"{_remedy(hold, pays_at_s)}",
                scope=hold.rule.subject,
                retry_after_s=None if pays_at_s is None else pays_at_s - now_ns / _NS,
            )
        num_output = min(num_output, ask.num_output)
        return ask.price.most_nano(ask.num_input, num_output), num_output

    def _pays_at_s(self, hold: BudgetHold, nano: int, now_ns: int) -> float | None:
        """Return when a budget will have so much left, if nothing more is spent; None where time does not help."""
        rule = hold.rule
        if nano > rule.limit_nano:
            return None
        end = period_end(rule.period, rule.timezone, now_ns / _NS)
        if end is not None:
            return end.timestamp()
        spend = self.spend(hold.account, now_ns)
        return spend.frees_at_s(nano + spend.spent_nano - rule.limit_nano)

    def _take(self, ask: Ask, granted_nano: int, now_ns: int) -> Holds:
        tokens: list[TokenHold] = []
        parallel: list[str] = []
        for hold in ask.limits:
            rule, track = hold.rule, self.track(hold.account)
            if rule.what in (What.PARALLEL, What.STEPS):
                track.held += 1
                if rule.what is What.PARALLEL:
                    parallel.append(hold.account)
            else:
                num = _num(rule, ask)
                track.full_ns = bucket.take(track.full_ns, now_ns, num, rule.amount, rule.period_ns)
                if rule.what is What.TOKENS:
                    tokens.append(TokenHold(hold.account, num, rule.amount, rule.period_ns))
            self.changed.add(hold.account)
        for budget in ask.budgets:
            self.spend(budget.account, now_ns).reserved_nano += granted_nano
            self.changed.add(budget.account)
        return Holds(tuple(hold.account for hold in ask.budgets), tuple(tokens), tuple(parallel))

    def release(self, found: Reservation, counts: TokenCounts, now_ns: int) -> None:
        """Give back what a reservation holds, less the tokens that came of it."""
        for account in found.holds.spends:
            self.spend(account, now_ns).reserved_nano -= found.granted_nano
            self.changed.add(account)
        if found.holds.tokens:
            used = counts.num_input + counts.num_output
            for hold in found.holds.tokens:
                track = self.track(hold.account)
                track.full_ns = bucket.take(track.full_ns, now_ns, used - hold.num, hold.amount, hold.period_ns)
                self.changed.add(hold.account)
        for account in found.holds.parallel:
            track = self.track(account)
            track.held = max(0, track.held - found.holds.slots)
            self.changed.add(account)

    def tightest(self, ask: Ask, what: What, now_ns: int) -> Pace | None:
        """Say where the tightest limit of one kind stands."""
        paces = []
        for hold in ask.limits:
            if hold.rule.what is what:
                full_ns = self.track(hold.account).full_ns
                left = bucket.remaining(full_ns, now_ns, hold.rule.amount, hold.rule.period_ns)
                paces.append(Pace(hold.rule.amount, left, max(0, full_ns - now_ns)))
        return min(paces, key=lambda pace: pace.remaining / pace.limit, default=None)

    def _is_past_soft(self, hold: BudgetHold) -> bool:
        spend, soft_nano = self.spends[hold.account], hold.rule.soft_nano
        if soft_nano is None and hold.rule.is_hard:
            return False
        return spend.spent_nano + spend.reserved_nano >= (hold.rule.limit_nano if soft_nano is None else soft_nano)

    def spend(self, account: str, now_ns: int) -> Spend:
        """Return an account, rolled to now."""
        spend = self.spends.get(account)
        if spend is None:
            spend = self.spends[account] = Spend.named(account)
        if spend.window_s is not None:
            spend.roll(now_ns // _NS)
        return spend

    def _charge(self, account: str, nano: int, now_ns: int) -> None:
        self.spend(account, now_ns).spend(nano, now_ns // _NS)
        self.changed.add(account)

    def track(self, account: str) -> Track:
        """Return an account of a limit."""
        track = self.tracks.get(account)
        if track is None:
            track = self.tracks[account] = Track(id=account)
        return track


def is_allowance(reservation_id: str) -> bool:
    """Say whether a reservation is not one request's but an allowance (`admission.lending`)."""
    return reservation_id.startswith(ALLOWANCE)


def _num(rule: LimitRule, ask: Ask) -> int:
    """Return how much of a limit a request takes before it begins: a bucket's whole content at most."""
    return 1 if rule.what is What.REQUESTS else min(rule.amount, ask.num_input + ask.num_output)


def pace_headers(requests: Pace | None, tokens: Pace | None) -> list[tuple[str, str]]:
    """Spell where limits stand as OpenAI does."""
    headers: list[tuple[str, str]] = []
    if requests is not None:
        headers.append(("x-ratelimit-limit-requests", str(requests.limit)))
        headers.append(("x-ratelimit-remaining-requests", str(requests.remaining)))
        headers.append(("x-ratelimit-reset-requests", _span(requests.full_in_ns)))
    if tokens is not None:
        headers.append(("x-ratelimit-limit-tokens", str(tokens.limit)))
        headers.append(("x-ratelimit-remaining-tokens", str(tokens.remaining)))
        headers.append(("x-ratelimit-reset-tokens", _span(tokens.full_in_ns)))
    return headers


def _span(ns: int) -> str:
    """Spell a time as OpenAI does: 6ms, 1.5s, 6m0s, 2h0m0s."""
    milliseconds = -(-ns // 10**6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole_s, rest_ms = divmod(milliseconds, 1000)
    if whole_s < 60:
        return f"{whole_s}.{rest_ms:03d}".rstrip("0").rstrip(".") + "s"
    hours, rest_s = divmod(whole_s, 3600)
    minutes, secs = divmod(rest_s, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{secs}s"


def _remedy(hold: BudgetHold, pays_at_s: float | None) -> str:
    if hold.rule.period == "task":
        return "begin a new task, or lower max_tokens"
    when = "" if pays_at_s is None else f"wait until {datetime.fromtimestamp(pays_at_s, UTC):%Y-%m-%d %H:%M} UTC, "
    return f"{when}lower max_tokens, or have the budget raised"


def encode_holds(holds: Holds) -> str:
    """Spell holds for the database."""
    return msgspec.json.encode(holds).decode()


def decode_holds(text: str) -> Holds:
    """Read what `encode_holds` wrote."""
    return msgspec.json.decode(text, type=Holds)
