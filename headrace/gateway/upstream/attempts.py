"""What one request has tried so far, and what it may try next.

Owns the pauses and failures of one request. Invariant: a member that cannot serve the request is not asked twice; one
that failed for a passing reason is asked again only after its pause and within `failover.retry_s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from headrace.core.errors import CredentialsExhausted, HeadraceError, Overloaded
from headrace.core.protocols import Clock
from headrace.core.upstream_settings import FailoverSettings
from headrace.gateway.upstream.choice import Chooser
from headrace.gateway.upstream.failure import Failure, Kind
from headrace.gateway.upstream.member import Member

_MAX_BACKOFF_S = 5.0
_LEAST_WAIT_S = 0.05
_WORST_LAST = (Kind.DEAD_KEY, Kind.THROTTLED, Kind.BUSY, Kind.TRANSIENT, Kind.REJECTED)


class Attempts:
    """One request's attempts over `members`."""

    def __init__(self, members: Sequence[Member], policy: FailoverSettings, clock: Clock, random: Random) -> None:
        self._members = members
        self._policy = policy
        self._clock = clock
        self._random = random
        self._deadline_s = clock.now() + policy.retry_s
        self._paused_until_s: dict[str, float] = {}
        self._failures: dict[str, Failure] = {}
        self._num_pauses = 0

    @property
    def is_late(self) -> bool:
        """Say whether the time in which another attempt may begin is over."""
        return self._clock.now() >= self._deadline_s

    def choose(self, chooser: Chooser, besides: Member | None = None) -> Member | None:
        """Return a member that may be tried now, if there is one."""
        if not self._failures and besides is None:  # nothing has happened yet
            fresh = [member for member in self._members if member.is_ready]
            return chooser.choose(fresh) if fresh else None
        now = self._clock.now()
        ready = [
            member
            for member in self._members
            if member is not besides
            and member.is_ready
            and not self._is_out(member)
            and self._paused_until_s.get(member.name, now) <= now
        ]
        return chooser.choose(ready) if ready else None

    def note(self, member: Member, failure: Failure) -> None:
        """Remember a failure; one that may pass by itself pauses its member, longer each time."""
        self._failures[member.name] = failure
        if failure.kind is Kind.TRANSIENT:
            backoff_s = min(self._policy.backoff_s * 2**self._num_pauses, _MAX_BACKOFF_S)
            self._num_pauses += 1
            self._paused_until_s[member.name] = self._clock.now() + backoff_s * self._random.uniform(0.8, 1.2)

    def wait_s(self) -> float | None:
        """Return the seconds until a member that failed here may be tried again; None if none may be in time."""
        now = self._clock.now()
        waits = [
            max(member.wait_s, self._paused_until_s.get(member.name, now) - now, _LEAST_WAIT_S)
            for member in self._members
            if member.name in self._failures and not self._is_out(member)
        ]
        wait_s = min(waits, default=None)
        return wait_s if wait_s is not None and now + wait_s < self._deadline_s else None

    def verdict(self) -> HeadraceError:
        """Return what the caller is told once nothing is left to try."""
        failures = list(self._failures.values()) or [member.obstacle for member in self._members]
        servers = [failure for failure in failures if failure.kind is not Kind.MISPLACED]
        if not servers:
            return failures[0].error
        return self.tell(max(servers, key=lambda failure: _WORST_LAST.index(failure.kind)))

    def tell(self, failure: Failure) -> HeadraceError:
        """Return what the caller hears of a failure; rejected keys of other members are named with it."""
        error = told(failure)
        if failure.kind is not Kind.DEAD_KEY:
            troubles = [member.key_problem for member in self._members if member.are_keys_dead]
            error.message = "; ".join([error.message, *(trouble for trouble in troubles if trouble is not None)])
            error.args = (error.message,)
        return error

    def _is_out(self, member: Member) -> bool:
        failure = self._failures.get(member.name)
        return failure is not None and failure.kind is Kind.MISPLACED


def told(failure: Failure) -> HeadraceError:
    """Return what the caller hears of a failure: keys and their limits are this server's affair, not the caller's."""
    match failure.kind:
        case Kind.THROTTLED | Kind.BUSY:
            return Overloaded(failure.error.message, retry_after_s=failure.retry_after_s or 1.0)
        case Kind.DEAD_KEY:
            return CredentialsExhausted(failure.error.message)
        case Kind.REJECTED | Kind.MISPLACED | Kind.TRANSIENT:
            return failure.error
