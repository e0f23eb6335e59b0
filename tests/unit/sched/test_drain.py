from __future__ import annotations

import pytest

from headrace.sched.drain import DrainRate


def test_the_wait_is_the_queue_over_the_measured_rate() -> None:
    rate = DrainRate()
    for k in range(11):
        rate.note(k * 0.5)
    assert rate.wait_s(22, 5.5) == pytest.approx(11.0)


def test_a_queue_that_has_stopped_moving_promises_less_and_less() -> None:
    rate = DrainRate()
    for k in range(10):
        rate.note(k * 0.1)
    assert rate.wait_s(50, 1.0) < rate.wait_s(50, 10.0) < rate.wait_s(50, 60.0)


def test_the_wait_stays_between_a_second_and_ten_minutes() -> None:
    rate = DrainRate()
    assert rate.wait_s(100, 0.0) == 1.0
    rate.note(0.0)
    rate.note(0.0)
    assert rate.wait_s(100, 0.0) == 1.0
    assert rate.wait_s(10_000, 1e6) == 600.0
