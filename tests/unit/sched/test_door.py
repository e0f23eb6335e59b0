from __future__ import annotations

from typing import Any

import pytest

from headrace.core.errors import DeadlineUnreachable, Overloaded
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.sched import SchedulerLimits, Sequence, Urgency
from headrace.sched.door import Door
from headrace.sched.outlook import Ahead
from headrace.sched.queue import Crowd


def door(**policy: Any) -> Door:
    limits = SchedulerLimits(
        max_num_seqs=4, max_step_tokens=8, max_context=64, max_waiting=100, policy=SchedulingSettings(**policy)
    )
    return Door(limits, 64)


def newcomer(**urgency: Any) -> Sequence:
    return Sequence(SeqId(0), [1] * 8, SamplingParams(), max_tokens=5, urgency=Urgency(**urgency))


def crowd(num_sequences: int = 0, num_tokens: int = 0, num_own: int = 0) -> Crowd:
    return Crowd(num_sequences, num_tokens, num_own, Ahead(num_sequences, num_tokens))


def test_prompt_tokens_in_the_queue_are_limited_too() -> None:
    door(max_waiting_tokens=1000).check_crowd(newcomer(), crowd(5, 999), 0.0)
    with pytest.raises(Overloaded, match="1,000 prompt tokens are waiting, the limit is 1,000"):
        door(max_waiting_tokens=1000).check_crowd(newcomer(), crowd(5, 1000), 0.0)


def test_a_tenant_that_floods_the_queue_is_refused_while_others_are_let_in() -> None:
    full_for_one = crowd(80, 0, 80)
    with pytest.raises(Overloaded, match="80 of the 80 sequences that are waiting are yours"):
        door().check_crowd(newcomer(tenant="flood"), full_for_one, 0.0)
    door().check_crowd(newcomer(tenant="other"), crowd(80, 0, 0), 0.0)
    door().check_crowd(newcomer(), full_for_one, 0.0)  # without tenants the whole queue is for everybody
    with pytest.raises(Overloaded, match="100 sequences are waiting, the limit is 100"):
        door().check_crowd(newcomer(), crowd(100), 0.0)


def test_a_wait_that_would_be_too_long_is_refused_with_the_time_to_come_back() -> None:
    door(max_wait_s=10.0).check_wait(newcomer(), 9.9, 0.0)
    with pytest.raises(Overloaded, match="expected in 25 s, the limit is 10 s; try again in 15 s") as refusal:
        door(max_wait_s=10.0).check_wait(newcomer(), 25.0, 0.0)
    assert refusal.value.retry_after_s == 15.0
    door(max_wait_s=10.0).check_wait(newcomer(is_background=True), 25.0, 0.0)  # it has time


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    door().check_wait(newcomer(deadline_s=103.0), 2.9, 100.0)
    with pytest.raises(DeadlineUnreachable, match=r"expected in 5.00 s, the deadline is in 3.00 s") as refusal:
        door().check_wait(newcomer(deadline_s=103.0), 5.0, 100.0)
    assert refusal.value.http_status == 429
    assert refusal.value.retry_after_s == 2.0
