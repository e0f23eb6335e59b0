"""What a plan decided is told beside it, with who, why and at what cost."""

from __future__ import annotations

from typing import Any

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, Urgency
from headrace.sched.decisions import Admitted, Preempted, PreemptReason

BLOCK = 4


def make(num_blocks: int, **changes: Any) -> Scheduler:
    limits: dict[str, Any] = {"max_num_seqs": 4, "max_step_tokens": 64, "max_context": 64, "max_waiting": 9} | changes
    policy = SchedulingSettings(output_ratio=0.0)  # takes more than the pool holds
    return Scheduler(BlockPool(num_blocks), BLOCK, SchedulerLimits(**limits, policy=policy))


def sequence(seq_id: int, length: int, max_tokens: int = 20, *, is_background: bool = False) -> Sequence:
    urgency = Urgency(is_background=is_background)
    prompt = [seq_id * 100 + i for i in range(length)]
    return Sequence(SeqId(seq_id), prompt, SamplingParams(), max_tokens=max_tokens, urgency=urgency)


def step(scheduler: Scheduler) -> Step:
    made = scheduler.schedule(0.0)
    assert made is not None
    samples = tuple(None if row.sampling is None else Sample(0) for row in made.rows)
    scheduler.commit(made, StepResult(made.step_id, samples), 0.0)
    return made


def test_admissions_say_what_was_shared() -> None:
    scheduler = make(32)
    scheduler.submit(sequence(1, 9, max_tokens=1))
    step(scheduler)
    assert scheduler.decisions == [Admitted(SeqId(1), 0, 3)]
    again = Sequence(SeqId(2), [100 + i for i in range(9)], SamplingParams(), max_tokens=2)
    scheduler.submit(again)
    step(scheduler)
    assert scheduler.decisions == [Admitted(SeqId(2), 2, 1)]
    step(scheduler)
    assert scheduler.decisions == []


def test_a_preemption_says_for_whom_why_and_at_what_cost() -> None:
    scheduler = make(7, prefix_cache=False)
    scheduler.submit(sequence(1, 10, max_tokens=14))
    scheduler.submit(sequence(2, 6, max_tokens=14))
    found: list[Preempted] = []
    while scheduler.has_work and not found:
        step(scheduler)
        found = [d for d in scheduler.decisions if isinstance(d, Preempted)]
    (decision,) = found
    assert (decision.seq_id, decision.by, decision.reason) == (2, 1, PreemptReason.GROWTH)
    assert decision.num_freed >= 1
    assert decision.num_freed * BLOCK >= decision.num_lost > (decision.num_freed - 1) * BLOCK


def test_background_work_gives_way_to_a_request_and_says_so() -> None:
    scheduler = make(64, max_num_seqs=1)
    scheduler.submit(sequence(1, 8, is_background=True))
    step(scheduler)
    scheduler.submit(sequence(2, 8))
    step(scheduler)
    preempted, admitted = scheduler.decisions
    assert isinstance(preempted, Preempted)
    assert (preempted.seq_id, preempted.by, preempted.reason) == (1, 2, PreemptReason.PLACE)
    assert admitted == Admitted(SeqId(2), 0, 2)
