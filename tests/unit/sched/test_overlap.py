"""Steps that are planned while one runs: what they hold, and when they are not made."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.core.delta import FinishReason
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Row, Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, Urgency

END = 7
Shape = list[tuple[int, int, bool]]


def build(num_blocks: int = 32, block_size: int = 4, **limits: Any) -> Scheduler:
    shape = {"max_num_seqs": 4, "max_step_tokens": 64, "max_context": 64, "max_waiting": 9, "plans_ahead": True}
    return Scheduler(BlockPool(num_blocks), block_size, SchedulerLimits(**shape | limits))


def sequence(seq_id: int, max_tokens: int = 9, *, is_background: bool = False, **sampling: Any) -> Sequence:
    return Sequence(
        SeqId(seq_id),
        [seq_id, 1, 2],
        SamplingParams(**sampling),
        max_tokens=max_tokens,
        stop_token_ids=frozenset({END}),
        urgency=Urgency(is_background=is_background),
    )


def plan(scheduler: Scheduler) -> Step:
    step = scheduler.schedule(0.0)
    assert step is not None
    scheduler.check()
    return step


def shape(step: Step) -> Shape:
    return [(row.seq_id, row.start, row.is_ahead) for row in step.rows]


def commit(scheduler: Scheduler, step: Step, tokens: dict[int, int] | None = None, **fields: Any) -> list[Any]:
    drawn = tokens or {}
    samples = tuple(None if row.sampling is None else Sample(drawn.get(row.seq_id, 1)) for row in step.rows)
    events = scheduler.commit(step, StepResult(step.step_id, samples, **fields), 0.0)
    scheduler.check()
    return events


def test_a_decoding_row_goes_on_before_its_token_is_known() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, seed=3, min_tokens=2))
    first = plan(scheduler)
    assert scheduler.can_overlap
    second = plan(scheduler)
    assert second.rows == (
        Row(
            SeqId(0), 3, (0,), second.rows[0].blocks, SamplingParams(seed=3, min_tokens=2), num_output=1, prompt_len=3,
            banned=(END,), is_ahead=True,
        ),
    )  # fmt: skip
    assert not scheduler.can_overlap  # two are in flight
    commit(scheduler, first, {0: 40})
    third = plan(scheduler)
    assert shape(third) == [(0, 4, True)]
    assert third.rows[0].banned == ()  # the third output token may be the last
    assert [event.sample.token_id for event in commit(scheduler, second, {0: 41})] == [41]


def test_a_row_of_an_answer_that_has_ended_says_nothing_and_its_blocks_wait_for_it() -> None:
    scheduler = build()
    scheduler.submit(sequence(0))
    scheduler.submit(sequence(1))
    first, second = plan(scheduler), plan(scheduler)
    (end, _) = commit(scheduler, first, {0: END})
    assert end.finish is FinishReason.STOP
    num_free = scheduler.num_free_blocks
    assert [event.seq_id for event in commit(scheduler, second)] == [1]
    assert scheduler.num_free_blocks == num_free + 1
    assert scheduler.totals.generated_tokens == 3


def test_a_failed_row_takes_its_next_one_along_and_no_other() -> None:
    scheduler = build()
    scheduler.submit(sequence(0))
    scheduler.submit(sequence(1))
    first, second = plan(scheduler), plan(scheduler)
    (bad, _) = commit(scheduler, first, failures={SeqId(0): "NaN"})
    assert (bad.finish, bad.error) == (FinishReason.ERROR, "NaN")
    assert [event.seq_id for event in commit(scheduler, second, failures={SeqId(0): "NaN"})] == [1]


def test_no_row_goes_past_the_length_that_was_asked_for() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, max_tokens=2))
    first, second = plan(scheduler), plan(scheduler)
    commit(scheduler, first)
    assert scheduler.schedule(0.0) is None  # the second token, which is in flight, is the last
    (end,) = commit(scheduler, second)
    assert end.finish is FinishReason.LENGTH
    assert scheduler.num_free_blocks == 32


def test_a_new_prompt_joins_those_that_go_on() -> None:
    scheduler = build()
    scheduler.submit(sequence(0))
    first = plan(scheduler)
    scheduler.submit(sequence(1))
    assert shape(plan(scheduler)) == [(0, 3, True), (1, 0, False)]
    commit(scheduler, first)
    assert shape(plan(scheduler)) == [(0, 4, True), (1, 3, True)]


@pytest.mark.parametrize("sampling", [{"presence_penalty": 1.0}, {"typical_p": 0.5}])
def test_sampling_that_needs_the_host_waits_for_the_step_before(sampling: dict[str, float]) -> None:
    scheduler = build()
    scheduler.submit(sequence(0, **sampling))
    scheduler.submit(sequence(1))
    first = plan(scheduler)
    assert not scheduler.can_overlap
    assert shape(plan(scheduler)) == [(1, 3, True)]  # for whoever plans all the same
    commit(scheduler, first)


def test_greedy_sampling_has_no_typical_filter_to_wait_for() -> None:
    scheduler = build()
    scheduler.submit(sequence(0, temperature=0.0, typical_p=0.5, logprobs=2, logit_bias=((1, 2.0),)))
    plan(scheduler)
    assert scheduler.can_overlap


def test_nothing_is_planned_ahead_where_somebody_would_have_to_give_way() -> None:
    policy = SchedulingSettings(output_ratio=0.0)
    scheduler = build(num_blocks=5, block_size=2, prefix_cache=False, policy=policy)
    for number in range(2):
        scheduler.submit(sequence(number))
    first = plan(scheduler)  # three tokens each, in two blocks of two
    assert scheduler.can_overlap
    second = plan(scheduler)
    commit(scheduler, first)
    assert not scheduler.can_overlap  # both want a block, and one is free
    commit(scheduler, second)
    assert shape(plan(scheduler)) == [(0, 4, False)]  # the older one goes on, the newer sits the step out


def test_background_rows_are_not_planned_ahead_of_somebody_who_waits() -> None:
    scheduler = build(max_num_seqs=1)
    scheduler.submit(sequence(0, is_background=True))
    first = plan(scheduler)
    assert scheduler.can_overlap
    scheduler.submit(sequence(1))
    assert not scheduler.can_overlap
    commit(scheduler, first)
    assert shape(plan(scheduler)) == [(1, 0, False)]
    assert scheduler.totals.num_preemptions == 1


def test_without_leave_a_sequence_waits_for_its_token() -> None:
    scheduler = build(plans_ahead=False)
    scheduler.submit(sequence(0))
    plan(scheduler)
    assert not scheduler.can_overlap
    assert scheduler.schedule(0.0) is None


def test_blocks_of_an_aborted_sequence_are_held_until_both_of_its_steps_have_ended() -> None:
    scheduler = build()
    scheduler.submit(sequence(0))
    first, second = plan(scheduler), plan(scheduler)
    scheduler.abort(SeqId(0))
    assert commit(scheduler, first) == []
    assert scheduler.num_free_blocks == 31
    assert commit(scheduler, second) == []
    assert scheduler.num_free_blocks == 32
