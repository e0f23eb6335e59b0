"""The stage that reserves before a request, watches it while it streams, and settles when it ends.

Owns what one request has come to so far. Whatever way it ends (finished, failed, cancelled, client gone, aborted), it
is settled exactly once, in a `finally`.
While it streams: tokens are counted as they come by. Upstreams keep `max_tokens`, so the reservation is not passed; one
that does not is stopped, and so is every stream under a hard budget whose lease could not be renewed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from types import AsyncGeneratorType

import msgspec

from headrace.core.clock import MonotonicClock
from headrace.core.delta import Delta, FinishReason, Usage
from headrace.core.errors import BudgetExceeded, HeadraceError, StoreUnavailable
from headrace.core.genai import charged
from headrace.core.protocols import Clock
from headrace.core.random_ids import random_id
from headrace.core.request import Request, RequestId
from headrace.core.tracing import stage
from headrace.econ.money import show_usd
from headrace.gateway.admission.asks import Ask
from headrace.gateway.admission.authority import Authority, Grant
from headrace.gateway.admission.book import pace_headers
from headrace.gateway.admission.charges import Money, money_of
from headrace.gateway.admission.rulebook import Rulebook
from headrace.gateway.admission.sizes import likely_input, limited, most_input, num_sequences, output_of
from headrace.gateway.budgets.price import PriceOf, TokenCounts
from headrace.gateway.budgets.settlement import Settlement
from headrace.gateway.ledger import Charge, Digests, Stopwatch
from headrace.gateway.pipeline import Next

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """What the configuration decides.

    least_output         tokens: a budget that pays for fewer refuses the request instead of cutting it short
    default_output       tokens of a remote model's answer where the caller does not say, and a budget pays
    is_unpriced_allowed  requests under a hard budget may go to models whose price is not known, uncounted
    """

    least_output: int
    default_output: int
    is_unpriced_allowed: bool


class Admission:
    """Limits and budgets. Implements `gateway.pipeline.Stage`."""

    def __init__(
        self,
        authority: Authority,
        rulebook: Rulebook,
        price_of: PriceOf,
        rules: AdmissionRules,
        claim: Callable[[RequestId], Charge | None] = lambda request_id: None,
        clock: Clock | None = None,
        tell: Callable[[Settlement], None] = lambda settlement: None,
    ) -> None:
        """Make the stage. `clock` is the engines' too.

        claim  bills the engine's time of a request that has ended
        tell   hears what a request came to
        """
        self._authority = authority
        self._rulebook = rulebook
        self._price_of = price_of
        self._rules = rules
        self._claim = claim
        self._clock = clock or MonotonicClock()
        self._digests = Digests(None)
        self._tell = tell
        self._warned: set[str] = set()

    def use_digests(self, digests: Digests) -> None:
        """Keep digests of requests from now on."""
        self._digests = digests

    async def __call__(self, request: Request, following: Next, /) -> AsyncIterator[Delta]:
        """Stream the answer if limits and budgets allow it. Raises what `Authority.reserve` raises."""
        watch = Stopwatch(self._clock, request.arrival_s)
        with stage(request.span, "admission"):
            grant = await self._authority.reserve(self._ask(request))
        watch.grant()
        meter = _Meter(grant, is_remote=request.given is not None)
        is_paid, is_hard = bool(grant.ask.terms.budgets), grant.ask.is_hard
        try:
            deltas = _generator(following(_fitted(request, grant)))
            try:
                async for delta in deltas:
                    counted = meter.count(delta)
                    watch.hand_over(has_words=watch.is_silent and delta.has_words)
                    yield counted
                    watch.come_back()
                    if is_paid and (meter.is_over or (is_hard and self._authority.is_lost(grant))):
                        break
                else:
                    return
            finally:
                await deltas.aclose()
            for last in self._stop(request, grant, meter):
                yield last
        except BaseException as err:
            meter.outcome = meter.outcome or ("error" if isinstance(err, Exception) else "abort")
            if isinstance(err, HeadraceError):
                err.is_settled = True
                err.headers = (*err.headers, *meter.last_headers())
            raise
        finally:
            self._settle(request, grant, meter, watch)

    def _settle(self, request: Request, grant: Grant, meter: _Meter, watch: Stopwatch) -> None:
        with stage(request.span, "settle"):
            settlement = self._settlement(request, grant, meter, watch)
            self._authority.settle(grant, settlement)
        if request.span is not None and settlement.cost_nano is not None:
            request.span.note(charged(settlement.cost_nano))
        self._tell(settlement)

    def _ask(self, request: Request) -> Ask:
        now_ns = self._authority.now_ns()
        price = self._price_of(request.model)
        terms = self._rulebook.terms(request.tenant, request.key_id, request.model, request.task, now_ns / 10**9)
        if price is None:
            self._warn_unpriced(request.model)
            if terms.has_hard and not self._rules.is_unpriced_allowed:
                hard = next(hold.rule for hold in terms.budgets if hold.rule.is_hard)
                raise BudgetExceeded(
                    f"the price of '{request.model}' is not known, and the budget of {hard.describe()} is hard; "
                    "set gateway.prices for it, or gateway.unpriced to 'allow'",
                    scope=hard.subject,
                )
        num_output, width = request.stop.max_tokens, num_sequences(request)
        if terms.budgets and request.given is not None and request.given.max_tokens is None:
            num_output = min(num_output, self._rules.default_output)
        return Ask(
            id=f"{now_ns:016x}-{random_id(8)}",
            request_id=request.request_id,
            task=request.task,
            terms=terms,
            price=price,
            num_input=most_input(request),
            num_output=num_output * width,
            least_output=self._rules.least_output * width,
        )

    def _warn_unpriced(self, model: str) -> None:
        if model not in self._warned:
            self._warned.add(model)
            _log.warning(
                "the price of '%s' is not known: what it costs is null in the ledger and charged to no budget; "
                "set gateway.prices for it",
                model,
            )

    def _stop(self, request: Request, grant: Grant, meter: _Meter) -> list[Delta]:
        """End the open choices of a stream that must not go on."""
        if not meter.is_over:
            raise StoreUnavailable("the answer was stopped: its budget could not be confirmed; send it again later")
        meter.outcome = FinishReason.LENGTH.value
        _log.warning("request %s was stopped: more tokens came than its budget had set aside", request.request_id)
        open_choices = [index for index in range(request.n) if index not in meter.finished]
        usage = Usage(prompt_tokens=grant.ask.num_input, completion_tokens=grant.num_output)
        return [
            Delta(index=index, finish=FinishReason.LENGTH, usage=usage if index == open_choices[-1] else None)
            for index in open_choices
        ]

    def _settlement(self, request: Request, grant: Grant, meter: _Meter, watch: Stopwatch) -> Settlement:
        ask, money = grant.ask, meter.money()
        charge = self._claim(request.request_id)
        tenant, key_id, model = ask.terms.kind
        return Settlement(
            id=ask.id,
            request_id=ask.request_id,
            settled_ns=self._authority.now_ns(),
            tenant=tenant,
            key_id=key_id,
            model=model,
            task=ask.task,
            outcome=meter.outcome or "abort",
            counts=meter.counts(),
            is_estimate=meter.usage is None or meter.usage.is_estimate,
            reserved_nano=grant.granted.granted_nano,
            cost_nano=money.cost,
            price_source=money.source,
            reported_nano=money.reported,
            priced_nano=money.priced,
            engine_ns=0 if charge is None else charge.engine_ns,
            machine_nano=None if charge is None else charge.machine_nano,
            course=watch.course(
                charge,
                is_remote=request.given is not None,
                traces=self._digests.trace(request, ask.num_output),
                cached_nano=money.cached,
                output_nano=money.output,
            ),
        )


class _Meter:
    """What one request has come to so far. What it costs is worked out once for what has come by."""

    __slots__ = ("_counts", "_grant", "_headers", "_is_remote", "_money", "finished", "outcome", "usage")

    def __init__(self, grant: Grant, *, is_remote: bool) -> None:
        self._grant = grant
        self._is_remote = is_remote
        self._headers = reply_headers(grant)
        self._counts: TokenCounts | None = None
        self._money: Money | None = None
        self.usage: Usage | None = None
        self.outcome: str | None = None
        self.finished: list[int] = []

    @property
    def is_over(self) -> bool:
        """Say whether more was written than was set aside, and the upstream has not ended by itself."""
        grant = self._grant
        return self.usage is None and grant.num_output > grant.granted.num_output

    def count(self, delta: Delta) -> Delta:
        """Take a delta into account; return it, the first with the headers of the reply."""
        grant = self._grant
        grant.has_input = True
        grant.num_output += len(delta.token_ids) or output_of(delta)
        self._counts = self._money = None
        if delta.finish is not None:
            self.finished.append(delta.index)
            self.outcome = delta.finish.value
        usage, headers = delta.usage, self._headers
        if usage is not None:
            self.usage = usage
            cost_nano = self.money().cost
            if cost_nano is not None:  # what its usage costs the caller
                self._headers = ()
                return msgspec.structs.replace(
                    delta,
                    usage=msgspec.structs.replace(usage, cost_nano=cost_nano),
                    headers=(*delta.headers, ("x-headrace-cost-usd", show_usd(cost_nano)), *headers),
                )
        if headers:
            self._headers = ()
            return msgspec.structs.replace(delta, headers=(*delta.headers, *headers))
        return delta

    def last_headers(self) -> tuple[tuple[str, str], ...]:
        """Return the reply's headers for a request that failed: those not told yet, and what it cost so far."""
        cost_nano = self.money().cost
        cost = () if cost_nano is None else (("x-headrace-cost-usd", show_usd(cost_nano)),)
        return (*self._headers, *cost)

    def money(self) -> Money:
        """Return what it comes to."""
        if self._money is None:
            self._money = money_of(self._grant, self.counts(), self.usage)
        return self._money

    def counts(self) -> TokenCounts:
        """Return the tokens, as the upstream told them or else as they came by."""
        if self._counts is None:
            self._counts = self._seen() if self.usage is None else _counts_of(self.usage)
        return self._counts

    def _seen(self) -> TokenCounts:
        """Return what has come by, and what is likely of an input that nobody here has counted."""
        seen = self._grant.progress()
        if not self._is_remote:
            return seen
        return msgspec.structs.replace(seen, input_uncached=likely_input(seen.input_uncached))


def _counts_of(usage: Usage) -> TokenCounts:
    written = usage.cache_write_tokens
    if not (usage.cached_tokens or written or usage.cache_write_1h_tokens or usage.reasoning_tokens):
        return TokenCounts(input_uncached=usage.prompt_tokens, output_text=usage.completion_tokens)
    return TokenCounts(
        input_uncached=max(0, usage.prompt_tokens - usage.cached_tokens - written),
        cache_read=usage.cached_tokens,
        cache_write=max(0, written - usage.cache_write_1h_tokens),
        cache_write_1h=usage.cache_write_1h_tokens,
        output_text=max(0, usage.completion_tokens - usage.reasoning_tokens),
        output_reasoning=usage.reasoning_tokens,
    )


def reply_headers(grant: Grant) -> tuple[tuple[str, str], ...]:
    """Spell what a caller is told about its limits and budgets."""
    granted, ask = grant.granted, grant.ask
    headers = pace_headers(granted.requests, granted.tokens)
    if granted.num_output < ask.num_output:
        headers.append(("x-headrace-budget-max-tokens", str(granted.num_output)))
    if granted.warnings:
        headers.append(("x-headrace-budget-warning", "; ".join(granted.warnings)))
    if ask.price is not None and ask.terms.budgets:
        headers.append(("x-headrace-reserved-usd", show_usd(granted.granted_nano)))
    return tuple(headers)


def _fitted(request: Request, grant: Grant) -> Request:
    """Return the request with no more output than is set aside for it."""
    if grant.granted.num_output >= request.stop.max_tokens * (width := num_sequences(request)):
        return request
    return limited(request, grant.granted.num_output // width)


def _generator(deltas: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
    """Return something that can be closed: every upstream of ours is a generator already."""
    if isinstance(deltas, AsyncGeneratorType | AsyncGenerator):  # the first is quick to tell
        return deltas
    return _copied(deltas)


async def _copied(deltas: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
    async for delta in deltas:
        yield delta
