from __future__ import annotations

from typing import Any

import pytest

from headrace.core.delta import FinishReason
from headrace.core.errors import Overloaded, PromptTooLong
from headrace.core.request import Request, RequestId, SamplingParams, SeqId, StopRules
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Sample, ScoredPosition, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import (
    Scheduler,
    SchedulerLimits,
    Sequence,
    SequenceEvent,
    dry_steps,
    sequences_of,
)


def build(num_blocks: int = 32, block_size: int = 4, policy: dict[str, Any] | None = None, **changes: int) -> Scheduler:
    """A scheduler without a prefix cache, so that equal prompts do not meet; test_prefixes.py has one."""
    limits = {"max_num_seqs": 8, "max_step_tokens": 16, "max_context": 64, "max_waiting": 8} | changes
    limits["prefix_cache"] = False
    # Answers are taken to be short, so that pools run dry and preemption has work to do.
    policy = SchedulingSettings(**{"output_ratio": 0.0} | (policy or {}))
    return Scheduler(BlockPool(num_blocks), block_size, SchedulerLimits(policy=policy, **limits))


def sequence(seq_id: int, length: int = 4, max_tokens: int = 10, **fields: Any) -> Sequence:
    sampling = SamplingParams(**{k: fields.pop(k) for k in SamplingParams.__struct_fields__ if k in fields})
    return Sequence(SeqId(seq_id), range(length), sampling, max_tokens=max_tokens, **fields)


def plan(scheduler: Scheduler) -> Step:
    step = scheduler.schedule(0.0)
    assert step is not None
    scheduler.check()
    return step


def commit(scheduler: Scheduler, step: Step, token: int = 50, **fields: Any) -> list[SequenceEvent]:
    samples = tuple(None if row.sampling is None else Sample(token) for row in step.rows)
    events = scheduler.commit(step, StepResult(step.step_id, samples, **fields), 1.0)
    scheduler.check()
    return events


def shape(step: Step) -> list[tuple[int, int, int]]:
    """(sequence, start, tokens) of each row."""
    return [(row.seq_id, row.start, len(row.tokens)) for row in step.rows]


def test_decoding_rows_come_first_and_prompts_fill_the_rest_of_the_budget() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, 3))
    commit(scheduler, plan(scheduler))
    scheduler.submit(sequence(1, 20))
    scheduler.submit(sequence(2, 5))
    step = plan(scheduler)
    assert shape(step) == [(0, 3, 1), (1, 0, 15)]
    assert [row.sampling is not None for row in step.rows] == [True, False]
    commit(scheduler, step)
    step = plan(scheduler)
    assert shape(step) == [(0, 4, 1), (1, 15, 5), (2, 0, 5)]
    assert all(row.sampling is not None for row in step.rows)
    commit(scheduler, step)
    assert shape(plan(scheduler)) == [(0, 5, 1), (1, 20, 1), (2, 5, 1)]


def test_no_step_holds_more_than_its_limits() -> None:
    scheduler = build(max_num_seqs=3, max_step_tokens=5)
    for seq_id in range(6):
        scheduler.submit(sequence(seq_id, 4))
    for _ in range(12):
        step = plan(scheduler)
        assert len(step.rows) <= 3
        assert 1 <= step.num_tokens <= 5
        commit(scheduler, step)


def test_a_row_carries_what_sampling_needs_and_nothing_more() -> None:
    scheduler = build()
    stops = frozenset({9, 7})
    scheduler.submit(sequence(0, 2, min_tokens=1, presence_penalty=0.5, stop_token_ids=stops))
    scheduler.submit(sequence(1, 2, stop_token_ids=stops))
    with_history, plain = plan(scheduler).rows
    assert with_history.history == [0, 1]
    assert (with_history.banned, plain.banned) == ((7, 9), ())
    assert plain.history is None
    assert (plain.prompt_len, plain.num_output) == (2, 0)


def test_stop_tokens_are_banned_until_min_tokens_are_out() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, 2, min_tokens=2, stop_token_ids=frozenset({9})))
    bans = []
    for _ in range(4):
        step = plan(scheduler)
        bans.append((step.rows[0].num_output, step.rows[0].banned))
        commit(scheduler, step)
    assert bans == [(0, (9,)), (1, (9,)), (2, ()), (3, ())]


@pytest.mark.parametrize(
    ("fields", "token", "num_tokens", "finish"),
    [
        ({"max_tokens": 3}, 50, 3, FinishReason.LENGTH),
        ({"max_tokens": 100}, 50, 60, FinishReason.LENGTH),  # the context of 64 ends first
        ({"stop_token_ids": frozenset({50})}, 50, 1, FinishReason.STOP),
    ],
)
def test_a_sequence_ends_by_rule_and_frees_its_blocks(
    fields: dict[str, Any], token: int, num_tokens: int, finish: FinishReason
) -> None:
    scheduler = build()
    scheduler.submit(sequence(0, 4, **fields))
    events: list[SequenceEvent] = []
    while scheduler.has_work:
        events += commit(scheduler, plan(scheduler), token)
    assert [event.finish for event in events] == [None] * (num_tokens - 1) + [finish]
    assert events[-1].stop_token == (50 if finish is FinishReason.STOP else None)
    assert scheduler.num_free_blocks == 32
    assert scheduler.schedule(0.0) is None


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = build(num_blocks=4, max_context=1000)
    assert scheduler.max_context == 16
    scheduler.check_admission([sequence(0, 15)], 0.0)
    with pytest.raises(PromptTooLong, match="prompt has 16 tokens; this server accepts 15"):
        scheduler.check_admission([sequence(0, 16)], 0.0)
    with pytest.raises(ValueError, match="16 tokens in a context of 16"):
        scheduler.submit(sequence(0, 16))


def test_a_full_queue_refuses_and_says_when_it_will_have_drained() -> None:
    scheduler = build(max_num_seqs=1, max_waiting=4)
    for seq_id in range(3):
        scheduler.submit(sequence(seq_id, max_tokens=1))
        step = scheduler.schedule(seq_id * 2.0)  # one admission each two seconds
        assert step is not None
        commit(scheduler, step)
    for seq_id in range(3, 6):
        scheduler.submit(sequence(seq_id))
    scheduler.check_admission([sequence(9)], 6.0)
    with pytest.raises(Overloaded, match="4 sequences are waiting, the limit is 4") as refusal:
        scheduler.check_admission([sequence(9)], 6.0, num_queued=1)
    assert refusal.value.retry_after_s == pytest.approx(8.0)


def test_the_newest_running_sequence_gives_way_and_returns_first() -> None:
    scheduler = build(num_blocks=4, block_size=2)
    for seq_id in range(3):
        scheduler.submit(sequence(seq_id, 2 if seq_id < 2 else 4, max_tokens=5))
    step = plan(scheduler)
    assert shape(step) == [(0, 0, 2), (1, 0, 2)]
    commit(scheduler, step)
    commit(scheduler, plan(scheduler))  # both take their second block: the pool is empty
    assert scheduler.num_free_blocks == 0
    commit(scheduler, plan(scheduler))
    step = plan(scheduler)
    assert shape(step) == [(0, 4, 1)]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    assert scheduler.totals.num_preemptions == 1
    events = commit(scheduler, step)
    while not events[-1].finish:
        events = commit(scheduler, plan(scheduler))
    step = plan(scheduler)  # sequence 1 before 2, and all its tokens again
    assert shape(step)[0] == (1, 0, 5)
    assert step.rows[0].num_output == 3
    assert scheduler.totals.recomputed_tokens == 4


def test_an_older_sequence_is_never_preempted_for_a_newer_one() -> None:
    scheduler = build(num_blocks=4, block_size=2)
    scheduler.submit(sequence(0, 4, max_tokens=4))
    commit(scheduler, plan(scheduler))
    scheduler.submit(sequence(1, 1, max_tokens=6))
    finished = []
    while scheduler.has_work:
        finished += [event.seq_id for event in commit(scheduler, plan(scheduler)) if event.finish]
    assert finished[0] == 0


def test_aborting_is_idempotent_and_takes_from_queue_and_batch_alike() -> None:
    scheduler = build(max_num_seqs=1)
    for seq_id in range(2):
        scheduler.submit(sequence(seq_id))
    commit(scheduler, plan(scheduler))
    for seq_id in (1, 0):
        (event,) = scheduler.abort(SeqId(seq_id))
        assert event.finish is FinishReason.ABORT
        assert scheduler.abort(SeqId(seq_id)) == []
        scheduler.check()
    assert scheduler.abort(SeqId(77)) == []
    assert scheduler.num_free_blocks == 32


def test_blocks_of_an_aborted_sequence_wait_for_the_step_in_flight() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, 8))
    step = plan(scheduler)
    assert scheduler.abort(SeqId(0))
    scheduler.check()
    assert scheduler.num_free_blocks == 30
    assert not scheduler.has_work
    assert commit(scheduler, step) == []
    assert scheduler.num_free_blocks == 32


def test_two_steps_in_flight_compute_different_tokens_and_a_third_has_to_wait() -> None:
    scheduler = build(max_step_tokens=4)
    scheduler.submit(sequence(0, 10))
    first, second = plan(scheduler), plan(scheduler)
    assert [shape(first), shape(second)] == [[(0, 0, 4)], [(0, 4, 4)]]
    assert scheduler.schedule(0.0) is None
    with pytest.raises(ValueError, match="not the oldest in flight"):
        commit(scheduler, second)
    commit(scheduler, first)
    assert shape(plan(scheduler)) == [(0, 8, 2)]
    commit(scheduler, second)
    assert scheduler.schedule(0.0) is None  # its first output token is in flight


def test_a_sequence_in_flight_is_not_preempted() -> None:
    scheduler = build(num_blocks=4, block_size=2, max_step_tokens=4)
    old, new = sequence(0, 2, max_tokens=6), sequence(1, 2, max_tokens=6)
    for each in (old, new):
        scheduler.submit(each)
    commit(scheduler, plan(scheduler))
    for _ in range(2):
        commit(scheduler, plan(scheduler))
    assert scheduler.num_free_blocks == 0
    new.num_in_flight += 1  # as if a step that computes it were pending
    step = scheduler.schedule(0.0)
    new.num_in_flight -= 1
    assert new.num_preemptions == 0
    assert step is None


def test_a_result_that_does_not_fit_its_step_is_refused_whole() -> None:
    scheduler = build()
    scheduler.submit(sequence(0))
    step = plan(scheduler)
    with pytest.raises(ValueError, match="result of step 0, 2 rows"):
        scheduler.commit(step, StepResult(0, (Sample(1), Sample(2))), 0.0)
    assert len(commit(scheduler, step)) == 1


def test_a_failed_row_ends_its_sequence_only() -> None:
    scheduler = build()
    for seq_id in range(2):
        scheduler.submit(sequence(seq_id))
    step = plan(scheduler)
    result = StepResult(0, (None, Sample(5)), failures={SeqId(0): "NaN"})
    bad, good = scheduler.commit(step, result, 0.0)
    assert (bad.finish, bad.error) == (FinishReason.ERROR, "NaN")
    assert good.finish is None
    scheduler.check()
    assert scheduler.num_running == 1


def test_ending_all_leaves_nothing_even_with_a_step_in_flight() -> None:
    scheduler = build(max_num_seqs=2)
    for seq_id in range(4):
        scheduler.submit(sequence(seq_id))
    plan(scheduler)
    scheduler.abort(SeqId(0))
    events = scheduler.abort_all("the device is gone")
    assert sorted(event.seq_id for event in events) == [1, 2, 3]
    assert {event.error for event in events} == {"the device is gone"}
    assert scheduler.num_free_blocks == 32
    scheduler.check()


def test_each_prompt_position_is_scored_once_across_chunks_and_preemption() -> None:
    scheduler = build(max_step_tokens=3)
    scheduler.submit(sequence(0, 8, prompt_logprobs=2))
    wanted: list[tuple[int, int]] = []
    events: list[SequenceEvent] = []
    while not events:
        (row,) = (step := plan(scheduler)).rows
        assert row.num_score_top == 2
        wanted += [(row.start + offset, token) for offset, token in row.score]
        scored = (tuple(ScoredPosition(token, -1.0) for _, token in row.score),)
        events = commit(scheduler, step, scored=scored)
    assert wanted == [(position, position + 1) for position in range(7)]
    assert [position.token_id for position in events[0].scored] == [1, 2, 3, 4, 5, 6, 7]
    assert commit(scheduler, plan(scheduler))[0].scored == ()


def test_timing_comes_with_the_first_token_and_the_end() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, max_tokens=3))
    timings = [commit(scheduler, plan(scheduler))[0].timing for _ in range(3)]
    assert timings[1] is None
    for timing in (timings[0], timings[2]):
        assert timing is not None
        assert (timing.first_scheduled_s, timing.first_token_s, timing.num_preemptions) == (0.0, 1.0, 0)


def test_choices_of_a_request_share_the_prompt_and_differ_in_seed() -> None:
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=(1, 2, 3),
        sampling=SamplingParams(seed=5),
        stop=StopRules(max_tokens=4, stop_token_ids=frozenset({9})),
        n=3,
        prompt_logprobs=1,
    )
    choices = sequences_of(request, 10)
    assert [choice.seq_id for choice in choices] == [10, 11, 12]
    assert [choice.num_score_top for choice in choices] == [1, None, None]
    assert len({choice.sampling.seed for choice in choices}) == 3
    assert choices[0].sampling == request.sampling
    assert all(choice.tokens == [1, 2, 3] for choice in choices)


@pytest.mark.parametrize("num_blocks", [1, 2, 100])
def test_dry_steps_stay_inside_pool_and_limits(num_blocks: int) -> None:
    scheduler = build(num_blocks=num_blocks, block_size=16)
    steps = list(dry_steps(scheduler))
    assert [step.step_id for step in steps] == list(range(len(steps)))
    for step in steps:
        assert step.is_dry_run
        assert step.num_tokens <= 16
        assert all(0 <= block < num_blocks for row in step.rows for block in row.blocks)
        assert all(len(row.blocks) * 16 >= len(row.tokens) for row in step.rows)
    assert scheduler.num_free_blocks == num_blocks


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="max_step_tokens is 0"):
        build(max_step_tokens=0)
