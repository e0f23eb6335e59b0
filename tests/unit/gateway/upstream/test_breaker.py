"""The breaker's states, over a clock that moves when told to."""

from __future__ import annotations

from headrace.core.upstream_settings import FailoverSettings
from headrace.core.upstream_status import BreakerState
from headrace.gateway.upstream.breaker import Breaker
from headrace.testing import VirtualClock

POLICY = FailoverSettings(breaker_failures=0.5, breaker_min_calls=4, breaker_open_s=10.0)


def call(breaker: Breaker, has_failed: bool | None) -> None:
    grant = breaker.try_acquire()
    assert grant is not None
    grant.answer(has_failed)


def opened(clock: VirtualClock) -> Breaker:
    breaker = Breaker(POLICY, clock)
    for _ in range(4):
        call(breaker, True)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_few_failures_open_nothing() -> None:
    breaker = Breaker(POLICY, VirtualClock())
    for has_failed in (True, True, True, False, False, False, False):
        call(breaker, has_failed)
    assert breaker.state is BreakerState.CLOSED


def test_failures_long_ago_do_not_count() -> None:
    clock = VirtualClock()
    breaker = Breaker(POLICY, clock)
    for _ in range(3):
        call(breaker, True)
    clock.advance(31)
    call(breaker, True)
    assert breaker.state is BreakerState.CLOSED


def test_an_open_breaker_lets_nothing_through_until_its_time() -> None:
    clock = VirtualClock()
    breaker = opened(clock)
    assert breaker.try_acquire() is None
    assert breaker.retry_after_s == 10.0
    clock.advance(10)
    assert breaker.state is BreakerState.HALF_OPEN


def test_half_open_lets_one_probe_through_at_a_time() -> None:
    clock = VirtualClock()
    breaker = opened(clock)
    clock.advance(10)
    probe = breaker.try_acquire()
    assert probe is not None
    assert breaker.try_acquire() is None
    probe.answer(None)
    assert breaker.try_acquire() is not None


def test_a_good_probe_closes_and_a_bad_one_doubles_the_time() -> None:
    clock = VirtualClock()
    breaker = opened(clock)
    clock.advance(10)
    call(breaker, True)
    assert breaker.retry_after_s == 20.0
    clock.advance(20)
    call(breaker, False)
    assert breaker.state is BreakerState.CLOSED
    for _ in range(4):
        call(breaker, True)
    assert breaker.retry_after_s == 10.0


def test_an_answer_from_before_the_opening_says_nothing() -> None:
    clock = VirtualClock()
    breaker = Breaker(POLICY, clock)
    early = breaker.try_acquire()
    assert early is not None
    for _ in range(4):
        call(breaker, True)
    early.answer(False)
    assert breaker.state is BreakerState.OPEN


def test_a_grant_is_answered_once() -> None:
    clock = VirtualClock()
    breaker = Breaker(POLICY, clock)
    grant = breaker.try_acquire()
    assert grant is not None
    for _ in range(8):
        grant.answer(True)
    assert breaker.state is BreakerState.CLOSED
