"""The beginning of an attempt, and two of them at once when the first is slow.

Owns nothing after it returns. Invariant: of all that was begun exactly one attempt stays open, the returned one; nobody
has seen a delta of the others.
Source: Dean and Barroso 2013, "The Tail at Scale", hedged requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from headrace.core.delta import Delta
from headrace.core.request import Request
from headrace.gateway.upstream.endings import asked
from headrace.gateway.upstream.failure import Failure, transient
from headrace.gateway.upstream.member import Attempt, Member


class Started(NamedTuple):
    """An attempt that has given its first deltas."""

    member: Member
    attempt: Attempt
    first: Sequence[Delta]


async def begin(member: Member, request: Request) -> Started:
    """Open an attempt and wait for its first deltas. Raises Failure."""
    attempt = member.attempt(request)
    try:
        first = await attempt.more()
        if not first:
            raise transient(member.name, "gave no answer")
    except BaseException:
        attempt.close()
        raise
    return Started(member, attempt, first)


async def begin_hedged(
    member: Member, second: Callable[[], Member | None], request: Request, hedge_after_s: float
) -> Started:
    """Begin with `member`; ask the `second` as well if nothing has come after that time. The first delta wins.

    Raises the failure of `member` if neither gives one.
    """
    racers = {asyncio.ensure_future(begin(member, request)): member}
    winner: Started | None = None
    try:
        done, _ = await asyncio.wait(racers, timeout=hedge_after_s)
        other = None if done else second()
        if other is not None:
            other.num_hedges += 1
            racers[asyncio.ensure_future(begin(other, request))] = other
        winner = await _first_success(racers, member)
        return winner
    finally:
        for task, racer in racers.items():
            if task.cancel() and winner is not None:
                racer.uncounted.note(request.model, asked(request))
        for result in await asyncio.gather(*racers, return_exceptions=True):
            if isinstance(result, Started) and result is not winner:
                result.attempt.close()


async def _first_success(racers: dict[asyncio.Task[Started], Member], member: Member) -> Started:
    running = set(racers)
    failure: BaseException | None = None
    while running:
        done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is None:
                return task.result()
            if failure is None or racers[task] is member or not isinstance(error, Failure):
                failure = error
    assert failure is not None
    raise failure
