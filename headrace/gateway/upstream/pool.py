"""All upstreams of one public model as one `Upstream`: choice, failover, and the promise of the delta stream.

Owns the decisions for one request at a time; the members own what is known about the servers.
Invariant: until the first delta is handed on, any failure may be met by another attempt; after it no other provider is
asked, only a replica of the same model that goes on with the same tokens. Every request that got a first delta gets one
ending per choice, usage on the last.

    choose ─► attempt ─► first delta ─► handed on, the rest follows ──► complete
      ▲          │ failure before it        │ failure after it: a replica goes on, else it ends as ERROR
      └── may ───┘
          another? kind of failure · time left · retries saved up
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from random import Random

import msgspec

from headrace.core.delta import Delta
from headrace.core.errors import DeadlineExpired, HeadraceError
from headrace.core.protocols import Clock
from headrace.core.request import Request
from headrace.core.upstream_settings import FailoverSettings
from headrace.gateway.upstream.attempts import Attempts, told
from headrace.gateway.upstream.choice import Chooser
from headrace.gateway.upstream.endings import Endings, asked
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.hedging import Started, begin, begin_hedged
from headrace.gateway.upstream.member import Member
from headrace.gateway.upstream.observed import Observed
from headrace.gateway.upstream.replay import Replay
from headrace.gateway.upstream.resuming import resume
from headrace.gateway.upstream.retries import RetryAccount


class Pool:
    """Serves one public model. Implements `core.protocols.Upstream`."""

    def __init__(
        self,
        members: Sequence[Member],
        policy: FailoverSettings,
        retries: RetryAccount,
        clock: Clock,
        *,
        observed: Observed | None = None,
        random: Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._members = tuple(members)
        self._policy = policy
        self._retries = retries
        self._clock = clock
        self._observed = observed
        self._random = random or Random()
        self._sleep = sleep
        self._chooser = Chooser(policy.choice, self._random)

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Stream the answer; closing the iterator early ends the work at the upstream.

        The first step raises HeadraceError if no upstream gives a first delta. Later failures arrive as deltas with
        `finish` ERROR.
        """
        self._retries.earn()
        life = None if self._observed is None else self._observed.begin(request)
        started: Started | None = None
        is_counted = False
        try:
            started = await (self._start(request) if request.deadline_s is None else self._start_in_time(request))
            endings = Endings(request)
            replay = Replay(request) if len(self._members) > 1 else None
            deltas: Sequence[Delta] = (_from(started.member, started.first[0]), *started.first[1:])
            try:
                while deltas:
                    for delta in deltas:
                        endings.see(delta)
                        if delta.finish is not None:
                            if delta.usage is not None:
                                is_counted = True
                            elif endings.is_complete:
                                delta = msgspec.structs.replace(delta, usage=endings.usage())
                        if replay is not None:
                            replay.see(delta)
                        if life is not None:
                            life.see(delta)
                        yield delta
                    deltas = () if started.attempt.has_ended else await started.attempt.more()
            except Failure as failure:
                started.member.uncounted.note(request.model, endings.usage())
                is_counted = True
                async with aclosing(self._go_on(replay, request, started.member, failure, endings)) as rest:
                    async for delta in rest:
                        if life is not None:
                            life.see(delta)
                        yield delta
        except HeadraceError as error:
            if life is not None:
                life.refuse(error)
            raise
        finally:
            if started is not None:
                started.attempt.close()
                if not is_counted:
                    started.member.uncounted.note(request.model, endings.usage())
            if life is not None:
                life.end()

    async def _go_on(
        self, replay: Replay | None, request: Request, member: Member, failure: Failure, endings: Endings
    ) -> AsyncGenerator[Delta, None]:
        """Yield the rest of an answer that broke off: from a replica if there is one, else its ending."""
        replicas = [other for other in self._members if other.is_ready and other.is_replica_of(member, request.model)]
        may_go_on = failure.kind is Kind.TRANSIENT and bool(replicas)
        if may_go_on and replay is not None and replay.can_go_on and self._retries.try_spend():
            replica = self._chooser.choose(replicas)
            replica.num_resumed += 1
            try:
                is_first = True
                async with aclosing(resume(replay, request, replica)) as deltas:
                    async for delta in deltas:
                        endings.see(delta)
                        yield _from(replica, delta) if is_first else delta
                        is_first = False
                return
            except Failure as another:
                failure = another
        for ending in endings.fail(failure.error.message):
            yield ending

    async def count_tokens(self, request: Request) -> int:
        """Count a prompt's tokens at the first upstream that can. Raises HeadraceError."""
        failure: Failure | None = None
        for member in self._members:
            try:
                return await member.count(request)
            except Failure as err:
                failure = err
        assert failure is not None, "a pool has members"
        raise told(failure)

    async def _start_in_time(self, request: Request) -> Started:
        """Start before the request's deadline passes. Raises HeadraceError."""
        assert request.deadline_s is not None
        try:
            async with asyncio.timeout(request.arrival_s + request.deadline_s - self._clock.now()):
                return await self._start(request)
        except TimeoutError as err:
            raise DeadlineExpired(
                f"no upstream gave a first token within {request.deadline_s * 1e3:.0f} ms, the request's deadline",
                param="deadline_ms",
            ) from err

    async def _start(self, request: Request) -> Started:
        """Make attempts until one gives its first delta. Raises HeadraceError."""
        attempts = Attempts(self._members, self._policy, self._clock, self._random)
        while True:
            member = attempts.choose(self._chooser)
            if member is None:
                wait_s = attempts.wait_s()
                if wait_s is None:
                    raise attempts.verdict()
                await self._sleep(wait_s)
                continue
            try:
                if self._policy.hedge_after_s is None:
                    return await begin(member, request)
                return await self._begin_hedged(member, request, attempts, self._policy.hedge_after_s)
            except asyncio.CancelledError:
                member.uncounted.note(request.model, asked(request))
                raise
            except Failure as failure:
                if failure.may_cost:
                    member.uncounted.note(request.model, asked(request))
                attempts.note(member, failure)
                self._check_another(member, failure, attempts)

    async def _begin_hedged(
        self, member: Member, request: Request, attempts: Attempts, hedge_after_s: float
    ) -> Started:
        def second() -> Member | None:
            other = attempts.choose(self._chooser, besides=member)
            return other if other is not None and self._retries.try_spend() else None

        return await begin_hedged(member, second, request, hedge_after_s)

    def _check_another(self, member: Member, failure: Failure, attempts: Attempts) -> None:
        """Raise HeadraceError unless another attempt may follow this failure."""
        if failure.kind is Kind.REJECTED:
            raise failure.error from failure
        if failure.kind in (Kind.TRANSIENT, Kind.THROTTLED):
            if attempts.is_late or not self._retries.try_spend():
                raise attempts.tell(failure) from failure
            member.num_retries += 1


def _from(member: Member, delta: Delta) -> Delta:
    """Say with a delta who answers from here on."""
    return msgspec.structs.replace(delta, headers=(*delta.headers, ("x-headrace-upstream", member.name)))
