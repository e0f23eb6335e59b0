"""Background work, deadlines, reservations and the target for gaps, seen through the scheduler."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from headrace.core.delta import FinishReason
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, SequenceEvent, Urgency

BLOCK = 4


def build(num_blocks: int = 64, max_num_seqs: int = 8, max_step_tokens: int = 64, **policy: Any) -> Scheduler:
    limits = SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_step_tokens=max_step_tokens,
        max_context=400,
        max_waiting=99,
        prefix_cache=False,
        policy=SchedulingSettings(**policy),
    )
    return Scheduler(BlockPool(num_blocks), BLOCK, limits)


def submit(scheduler: Scheduler, seq_id: int, length: int = 4, max_tokens: int = 40, **urgency: Any) -> Sequence:
    sequence = Sequence(
        SeqId(seq_id), [seq_id] * length, SamplingParams(), max_tokens=max_tokens, urgency=Urgency(**urgency)
    )
    scheduler.submit(sequence)
    return sequence


def seconds(step: Step) -> float:
    """A device on which a row takes 0.2 ms, a prompt token 0.5 ms, and any step 4 ms."""
    return 4e-3 + sum(2e-4 if len(row.tokens) == 1 else 5e-4 * len(row.tokens) for row in step.rows)


def make_step(scheduler: Scheduler, now: float = 0.0) -> tuple[Step, list[SequenceEvent]]:
    step = scheduler.schedule(now)
    assert step is not None
    scheduler.check()
    samples = tuple(None if row.sampling is None else Sample(5) for row in step.rows)
    events = scheduler.commit(step, StepResult(step.step_id, samples, elapsed_s=seconds(step)), now)
    scheduler.check()
    return step, events


def ids(step: Step) -> list[int]:
    return [row.seq_id for row in step.rows]


def teach(scheduler: Scheduler) -> None:
    """Let the step model see rows and chunks of several sizes."""
    numbers = itertools.count(10_000)
    for count in range(1, 13):
        submit(scheduler, next(numbers), length=4 * count, max_tokens=2 + count)
        submit(scheduler, next(numbers), length=3 * count, max_tokens=9)
        make_step(scheduler)
        make_step(scheduler)
    while scheduler.has_work:
        make_step(scheduler)


def test_background_waits_while_others_wait_and_gives_its_place_to_them() -> None:
    scheduler = build(max_num_seqs=2)
    submit(scheduler, 0, is_background=True)
    submit(scheduler, 1, is_background=True)
    assert ids(make_step(scheduler)[0]) == [0, 1]
    submit(scheduler, 2)
    step, _ = make_step(scheduler)
    assert ids(step)[0] == 2
    assert scheduler.totals.num_preemptions == 1
    submit(scheduler, 3)
    assert ids(make_step(scheduler)[0]) == [2, 3]
    assert scheduler.num_waiting == 2


def test_background_gives_its_blocks_to_others_before_they_take_each_other_s() -> None:
    scheduler = build(num_blocks=8, output_ratio=0.0)
    background = submit(scheduler, 0, length=12, is_background=True)
    make_step(scheduler)
    old, new = submit(scheduler, 1, length=8), submit(scheduler, 2, length=4)
    for _ in range(8):
        make_step(scheduler)
    assert background.num_preemptions == 1
    assert (old.num_preemptions, new.num_preemptions) == (0, 0)


def test_a_long_background_prompt_hardly_stretches_a_step_of_others() -> None:
    scheduler = build(num_blocks=400, max_step_tokens=200, background_share=0.5)
    teach(scheduler)
    submit(scheduler, 0, length=4, max_tokens=60)
    make_step(scheduler)
    submit(scheduler, 1, length=300, is_background=True)
    alone_s = 4e-3 + 2e-4
    shared = [seconds(make_step(scheduler)[0]) for _ in range(20)]
    assert max(shared) <= 1.6 * alone_s
    assert sum(shared) > 20 * alone_s  # it gets on
    scheduler.abort(SeqId(0))
    step, _ = make_step(scheduler)
    assert step.num_tokens == 200  # and has the whole step when it is alone


def test_a_deadline_that_passes_in_the_queue_ends_the_request_as_expired() -> None:
    scheduler = build(max_num_seqs=1)
    submit(scheduler, 0)
    make_step(scheduler, 0.5)
    submit(scheduler, 1, deadline_s=2.0)
    make_step(scheduler, 1.0)
    assert scheduler.expire(2.0) == []
    (event,) = scheduler.expire(2.5)
    scheduler.check()
    assert (event.seq_id, event.finish, event.sample) == (1, FinishReason.EXPIRED, None)
    assert event.error == "the deadline passed 500 ms ago, while the request was waiting; nothing was generated"
    assert scheduler.num_waiting == 0


def test_a_deadline_that_passes_while_the_prompt_is_read_ends_the_request_behind_the_step_in_flight() -> None:
    scheduler = build(max_step_tokens=8)
    submit(scheduler, 0, length=40, deadline_s=1.0)
    step = scheduler.schedule(0.5)
    assert step is not None
    (event,) = scheduler.expire(1.5)
    assert event.finish is FinishReason.EXPIRED
    assert scheduler.num_free_blocks < 64
    scheduler.commit(step, StepResult(step.step_id, (None,)), 2.0)
    assert scheduler.num_free_blocks == 64
    scheduler.check()


def test_an_answer_that_has_begun_may_take_its_time() -> None:
    scheduler = build()
    submit(scheduler, 0, deadline_s=1.0)
    make_step(scheduler, 0.5)
    assert scheduler.expire(100.0) == []
    assert scheduler.num_running == 1


def test_room_is_kept_for_the_answers_that_run() -> None:
    for ratio, num_running in ((1.0, 2), (0.0, 8)):
        scheduler = build(num_blocks=24, output_ratio=ratio)
        for seq_id in range(8):
            submit(scheduler, seq_id, length=4, max_tokens=36)  # ten blocks each in the end
        make_step(scheduler)
        assert scheduler.num_running == num_running


def test_what_is_learned_of_short_answers_lets_more_of_them_in() -> None:
    scheduler = build(num_blocks=48, output_ratio=1.0)
    seen = []
    for seq_id in range(400):
        submit(scheduler, seq_id, length=4, max_tokens=36)
    while scheduler.has_work:
        _, events = make_step(scheduler)
        seen.append(scheduler.num_running)
        for event in events:
            scheduler.abort(event.seq_id)  # a stop string, after the first token
    assert seen[0] == 4
    assert max(seen[-20:]) == 8
    assert scheduler.totals.num_preemptions == 0


def test_all_prompts_of_a_step_share_what_goes_beside_few_that_decode() -> None:
    limits = SchedulerLimits(
        max_num_seqs=8, max_step_tokens=64, max_context=400, max_waiting=99, prefix_cache=False, chunk_tokens=32
    )
    scheduler = Scheduler(BlockPool(400), BLOCK, limits)
    submit(scheduler, 0)
    make_step(scheduler)
    for seq_id in (1, 2, 3):
        submit(scheduler, seq_id, length=20)
    first, _ = make_step(scheduler)
    assert [len(row.tokens) for row in first.rows] == [1, 20, 12]
    scheduler.abort(SeqId(0))
    rest, _ = make_step(scheduler)
    assert [len(row.tokens) for row in rest.rows] == [1, 8, 20]  # whoever has its prompt decodes now


@pytest.mark.parametrize("target_ms", [8.0, 20.0])
def test_prompt_chunks_keep_the_gap_of_those_that_decode(target_ms: float) -> None:
    scheduler = build(num_blocks=400, max_step_tokens=200, itl_target_ms=target_ms)
    teach(scheduler)
    submit(scheduler, 0, max_tokens=60)
    make_step(scheduler)
    submit(scheduler, 1, length=300)
    gaps = []
    while scheduler.num_running < 2 or len(gaps) < 3:
        gaps.append(seconds(make_step(scheduler)[0]))
    # The least chunk of 16 tokens is taken whatever the target.
    assert max(gaps) <= max(target_ms * 1e-3, 4e-3 + 2e-4 + 16 * 5e-4) * 1.05
    assert max(gaps) > target_ms * 0.5e-3
