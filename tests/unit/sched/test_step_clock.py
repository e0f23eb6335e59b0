from __future__ import annotations

from headrace.sched.step_clock import StepClock


def test_what_passes_between_two_steps_counts_while_there_is_work() -> None:
    clock = StepClock()
    assert clock.end(clock.begin(1.0), 1.5, has_work=True) == 0.5
    assert clock.end(clock.begin(1.7), 2.0, has_work=False) == 0.5
    assert clock.end(clock.begin(9.0), 9.25, has_work=True) == 0.25


def test_a_pause_with_work_that_cannot_be_done_does_not_count() -> None:
    clock = StepClock()
    clock.end(clock.begin(1.0), 1.5, has_work=True)
    clock.rest()
    assert clock.end(clock.begin(9.0), 9.25, has_work=True) == 0.25


def test_of_two_steps_in_flight_each_counts_from_the_end_of_the_one_before() -> None:
    clock = StepClock()
    first, second = clock.begin(1.0), clock.begin(1.1)
    assert clock.end(first, 2.0, has_work=True) == 1.0
    assert clock.end(second, 2.5, has_work=True) == 0.5
