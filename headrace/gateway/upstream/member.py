"""One remote upstream as a pool sees it: an adapter, its keys, its breaker, its load.

Owns the live state of that upstream, shared by the pools of all its models. Runs on one event loop.
Invariant: an attempt is counted once, however it ends; `in_flight` is the number of open attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from headrace.core.delta import Delta
from headrace.core.errors import CredentialsExhausted, Overloaded, UpstreamUnavailable
from headrace.core.genai import answered, asked
from headrace.core.protocols import Clock
from headrace.core.request import Request
from headrace.core.tracing import Span
from headrace.core.upstream_settings import UpstreamSettings
from headrace.core.upstream_status import UpstreamStatus
from headrace.gateway.upstream.breaker import Breaker, Grant
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.keys import Key, KeyRing
from headrace.gateway.upstream.profiles import profiles
from headrace.gateway.upstream.reported import ReportedCosts
from headrace.gateway.upstream.uncounted import Uncounted

_log = logging.getLogger(__name__)
_SMOOTHING = 0.2  # share of the newest time to first token
_THROTTLE_S = 1.0  # for servers that say "too much" without saying how long


class Answer(Protocol):
    """One reply as it is read. `has_ended`: nothing is left of it."""

    has_ended: bool

    async def more(self) -> Sequence[Delta]:
        """Wait for the next deltas, usage on the very last; none at the end. Raises Failure."""
        ...

    def close(self) -> None:
        """Give the connection back, or close it if more could come. Idempotent."""
        ...


class Adapter(Protocol):
    """Speaks one wire to one server."""

    costs: ReportedCosts

    async def ask(self, request: Request, model: str, secret: str | None) -> Answer:
        """Send `request` for the server's `model` and wait for the head of its reply. Raises Failure."""
        ...

    async def count(self, request: Request, model: str, secret: str | None) -> int:
        """Ask how many tokens the prompt of `request` has. Raises Failure."""
        ...

    async def detokenize(self, token_ids: Sequence[int], model: str, secret: str | None) -> str:
        """Ask how the server spells tokens, special ones by name. Raises Failure."""
        ...


class Member:
    """One upstream. `models`: public name → its own name."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        adapter: Adapter,
        keys: KeyRing,
        breaker: Breaker,
        clock: Clock,
        uncounted: Uncounted | None = None,
    ) -> None:
        self.name = name
        self.models: Mapping[str, str] = settings.models
        self.weight = settings.weight
        self.in_flight = 0
        self.ttft_s: float | None = None
        self.uncounted = uncounted or Uncounted()
        self._settings = settings
        self._adapter = adapter
        self._keys = keys
        self._breaker = breaker
        self._clock = clock
        self._outcomes = dict.fromkeys(("ok", "aborted", *(kind.value for kind in Kind)), 0)
        self._last_problem: str | None = None
        self.num_retries = 0
        self.num_hedges = 0
        self.num_resumed = 0

    @property
    def is_ready(self) -> bool:
        """Say whether an attempt may begin now."""
        return self._has_room and self._breaker.is_passable and self._keys.try_pick() is not None

    @property
    def wait_s(self) -> float:
        """Return the seconds until an attempt may begin, as far as is known."""
        return max(self._breaker.retry_after_s, self._keys.wait_s())

    @property
    def are_keys_dead(self) -> bool:
        """Say whether the server rejects all that it could be sent."""
        return self._keys.are_all_dead

    @property
    def key_problem(self) -> str | None:
        """Say what is wrong with the keys, for the operator to mend; None if nothing is known to be. Names no key."""
        num_dead, num_keys, remedy = self._keys.num_dead, len(self._keys), f"upstreams.{self.name}.api_key"
        if not num_dead:
            return None
        if not num_keys:
            return f"upstream '{self.name}' wants a key, and none is configured; its operator has to set {remedy}"
        if num_dead < num_keys:
            return (
                f"upstream '{self.name}' rejects {num_dead} of its {num_keys} keys; its operator has to renew {remedy}"
            )
        return f"upstream '{self.name}' rejects every key configured for it; its operator has to renew {remedy}"

    @property
    def obstacle(self) -> Failure:
        """Say why no attempt may begin now."""
        if self._keys.are_all_dead:
            return Failure(Kind.DEAD_KEY, CredentialsExhausted(self.key_problem or ""))
        wait_s = self.wait_s
        if not self._breaker.is_passable:
            problem = self._last_problem or "it failed"
            away = UpstreamUnavailable(f"upstream '{self.name}' is left alone: {problem}", retry_after_s=wait_s)
            return Failure(Kind.TRANSIENT, away, wait_s)
        if not self._has_room:
            busy = Overloaded(
                f"upstream '{self.name}' answers {self.in_flight} requests, its max_parallel; try again",
                retry_after_s=1.0,
            )
            return Failure(Kind.BUSY, busy, None)
        throttled = Overloaded(f"upstream '{self.name}' asks for {wait_s:.0f} s without requests", retry_after_s=wait_s)
        return Failure(Kind.THROTTLED, throttled, wait_s)

    def attempt(self, request: Request) -> Attempt:
        """Begin an attempt, which has to be closed. Raises Failure."""
        key = self._keys.try_pick()
        grant = self._breaker.try_acquire() if key is not None and self._has_room else None
        if key is None or grant is None:
            raise self.obstacle
        span = None if request.span is None else self._begin_span(request, request.span)
        if span is not None:
            request = msgspec.structs.replace(request, span=span)
        self.in_flight += 1
        return Attempt(self, request, key, grant, span)

    def _begin_span(self, request: Request, span: Span) -> Span:
        attempt = span.begin("attempt", model=request.model, calls_out=True)
        attempt.note(asked(request, self._settings.profile))
        attempt.note({"headrace.upstream": self.name, "server.address": urlsplit(self._settings.url).hostname or ""})
        return attempt

    async def count(self, request: Request) -> int:
        """Count a prompt's tokens there. Raises Failure; says nothing about the breaker."""
        key = self._keys.try_pick()
        if key is None or not self._breaker.is_passable:
            raise self.obstacle
        return await self._adapter.count(request, self.models[request.model], key.secret)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Spell tokens as this server does. Raises Failure."""
        key = self._keys.try_pick()
        if key is None or not self._breaker.is_passable:
            raise self.obstacle
        return await self._adapter.detokenize(token_ids, self.models[model], key.secret)

    def is_replica_of(self, other: Member, model: str) -> bool:
        """Say whether both serve the same model and can go on with each other's tokens."""
        both = profiles()[self._settings.profile].resumable and profiles()[other._settings.profile].resumable
        return both and self is not other and self.models[model] == other.models[model]

    def status(self) -> UpstreamStatus:
        """Describe this moment."""
        return UpstreamStatus(
            name=self.name,
            url=self._settings.url,
            profile=self._settings.profile,
            models=tuple(self.models),
            weight=self.weight,
            breaker=self._breaker.state,
            retry_after_s=self._breaker.retry_after_s,
            in_flight=self.in_flight,
            max_parallel=self._settings.max_parallel,
            keys=len(self._keys),
            dead_keys=self._keys.num_dead,
            throttled_keys=self._keys.num_throttled,
            ttft_s=self.ttft_s,
            outcomes=dict(self._outcomes),
            retries=self.num_retries,
            hedges=self.num_hedges,
            resumed=self.num_resumed,
            last_problem=self._last_problem,
            key_problem=self.key_problem,
            reported_nano=self._adapter.costs.total_nano,
            uncounted=self.uncounted.num,
            uncounted_unpriced=self.uncounted.num_unpriced,
            uncounted_input_tokens=self.uncounted.input_tokens,
            uncounted_output_tokens=self.uncounted.output_tokens,
            uncounted_nano=self.uncounted.nano,
        )

    @property
    def _has_room(self) -> bool:
        return self.in_flight < self._settings.max_parallel

    def _note_first(self, key: Key, ttft_s: float) -> None:
        self._keys.mark_good(key)
        self.ttft_s = ttft_s if self.ttft_s is None else self.ttft_s + _SMOOTHING * (ttft_s - self.ttft_s)

    def _note_end(self, outcome: str) -> None:
        self.in_flight -= 1
        self._outcomes[outcome] += 1

    def _note_failure(self, failure: Failure, key: Key, grant: Grant) -> None:
        if failure.kind in (Kind.TRANSIENT, Kind.DEAD_KEY, Kind.THROTTLED):
            self._last_problem = failure.problem
            _log.warning("%s (%s)", failure.problem, failure.kind.value)
        match failure.kind:
            case Kind.TRANSIENT:
                grant.answer(True)
            case Kind.DEAD_KEY:
                self._keys.mark_dead(key)
                _log.error("%s; until then it is tried again once a minute", self.key_problem)
                grant.answer(None)
            case Kind.THROTTLED:
                self._keys.mark_throttled(key, _THROTTLE_S if failure.retry_after_s is None else failure.retry_after_s)
                grant.answer(None)
            case Kind.REJECTED | Kind.MISPLACED:
                grant.answer(False)  # it answered, and sensibly
            case Kind.BUSY:
                grant.answer(None)


class Attempt:
    """One attempt, counted once however it ends. `has_ended`: nothing more comes of it."""

    def __init__(self, member: Member, request: Request, key: Key, grant: Grant, span: Span | None) -> None:
        self._member = member
        self._request = request
        self._key = key
        self._grant = grant
        self._span = span
        self._answer: Answer | None = None
        self._start_s = member._clock.now()
        self._is_first = True
        self.has_ended = False

    async def more(self) -> Sequence[Delta]:
        """Wait for the next deltas, none at the end. Raises Failure."""
        if self.has_ended:
            return ()
        member, answer = self._member, self._answer
        try:
            if answer is None:
                model = member.models[self._request.model]
                answer = self._answer = await member._adapter.ask(self._request, model, self._key.secret)
            deltas = await answer.more()
        except Failure as failure:
            member._note_failure(failure, self._key, self._grant)
            self._end(failure.kind.value)
            raise
        if self._is_first and deltas:
            self._is_first = False
            member._note_first(self._key, member._clock.now() - self._start_s)
        if self._span is not None:
            for delta in deltas:
                _note(self._span, self._request, delta)
        if answer.has_ended or not deltas:
            self._grant.answer(False)
            self._end("ok")
        return deltas

    def close(self) -> None:
        """Leave it; one that has not ended is an aborted one. Idempotent."""
        self._end("aborted")

    def _end(self, outcome: str) -> None:
        if self.has_ended:
            return
        self.has_ended = True
        self._member._note_end(outcome)
        self._grant.answer(None if self._is_first else False)
        if self._span is not None:
            self._span.end(error="" if outcome in ("ok", "aborted") else outcome)
        if self._answer is not None:
            self._answer.close()


def _note(span: Span, request: Request, delta: Delta) -> None:
    """Tell a trace what a delta says about the whole answer."""
    if delta.usage is not None:
        span.note(answered(request, delta.usage, () if delta.finish is None else (delta.finish,)))
