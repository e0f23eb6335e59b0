"""Leaves an upstream alone that fails too often, and finds out carefully when it is back.

    CLOSED ── failures ≥ share of the last calls ──► OPEN ── open_s passed ──► HALF_OPEN
      ▲                                               ▲                          │ one probe at a time
      └────────────────── probe succeeds ─────────────┼──────────────────────────┤
                                                      └── probe fails: 2·open_s ─┘

Owns the recent outcomes and the state. Invariant: every `Grant` is answered once (further answers are ignored); in
HALF_OPEN at most one is unanswered. What was sent before the breaker opened says nothing about now.
Source: Nygard, Release It!, "Circuit Breaker".
"""

from __future__ import annotations

from collections import deque

from headrace.core.protocols import Clock
from headrace.core.upstream_settings import FailoverSettings
from headrace.core.upstream_status import BreakerState

_WINDOW_CALLS = 20
_WINDOW_S = 30.0
_MAX_OPEN_S = 120.0


class Breaker:
    """One upstream's breaker."""

    def __init__(self, policy: FailoverSettings, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_CALLS)  # time, whether it failed
        self._opened_s: float | None = None
        self._open_s = policy.breaker_open_s
        self._is_probing = False

    @property
    def state(self) -> BreakerState:
        """Return the state of this moment."""
        if self._opened_s is None:
            return BreakerState.CLOSED
        if self._is_probing or self.retry_after_s == 0.0:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    @property
    def retry_after_s(self) -> float:
        """Return the seconds until a probe may go through; 0 if requests or a probe may now."""
        if self._opened_s is None:
            return 0.0
        return max(0.0, self._opened_s + self._open_s - self._clock.now())

    @property
    def is_passable(self) -> bool:
        """Say whether `try_acquire` would grant."""
        return self._opened_s is None or (not self._is_probing and self.retry_after_s == 0.0)

    def try_acquire(self) -> Grant | None:
        """Ask to send one request; None refuses."""
        if not self.is_passable:
            return None
        self._is_probing = self._opened_s is not None
        return Grant(self, is_probe=self._is_probing)

    def answer(self, has_failed: bool | None, *, is_probe: bool) -> None:
        """Take in how a granted request ended; None: in a way that says nothing. Called by `Grant` alone."""
        now = self._clock.now()
        if is_probe:
            self._is_probing = False
            if has_failed is False:
                self._opened_s = None
                self._open_s = self._policy.breaker_open_s
                self._outcomes.clear()
            elif has_failed:
                self._opened_s = now
                self._open_s = min(2 * self._open_s, _MAX_OPEN_S)
        elif has_failed is not None and self._opened_s is None:
            self._outcomes.append((now, has_failed))
            if has_failed and self._is_too_much(now):
                self._opened_s = now

    def _is_too_much(self, now: float) -> bool:
        while self._outcomes[0][0] < now - _WINDOW_S:
            self._outcomes.popleft()
        num_failed = sum(has_failed for _, has_failed in self._outcomes)
        num_calls = len(self._outcomes)
        return num_calls >= self._policy.breaker_min_calls and num_failed >= self._policy.breaker_failures * num_calls


class Grant:
    """Leave to send one request; answered once."""

    __slots__ = ("_breaker", "_is_answered", "_is_probe")

    def __init__(self, breaker: Breaker, *, is_probe: bool) -> None:
        self._breaker = breaker
        self._is_probe = is_probe
        self._is_answered = False

    def answer(self, has_failed: bool | None) -> None:
        """Say how the request ended: well, badly, or (None) in a way that says nothing of the upstream."""
        if not self._is_answered:
            self._is_answered = True
            self._breaker.answer(has_failed, is_probe=self._is_probe)
