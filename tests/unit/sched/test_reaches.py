"""Reaches: what sequences attend to, hold, share and may grow to, by limits and pool."""

from __future__ import annotations

import sys
from collections import deque

import pytest

from headrace.core.errors import InvalidRequest, PromptTooLong
from headrace.core.protocols import Pending
from headrace.core.request import Reach, SamplingParams, SeqId, WantedReach
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.sched.reaches import Reaches, least_blocks
from headrace.testing import UniformModel

SIZE = 4
REACH = Reach(window=10, num_sinks=3)


def limits(**changes: object) -> SchedulerLimits:
    fields = {"max_num_seqs": 4, "max_step_tokens": 16, "max_context": 1000, "max_waiting": 9, **changes}
    return SchedulerLimits(**fields)  # type: ignore[arg-type]


def sequence(number: int = 0, prompt: int = 30, max_tokens: int = 200) -> Sequence:
    return Sequence(SeqId(number), [1 + i % 7 for i in range(prompt)], SamplingParams(seed=3), max_tokens=max_tokens)


def given(**changes: object) -> tuple[Reaches, Sequence]:
    num_blocks = changes.pop("num_blocks", 50)
    reaches, taken = Reaches(limits(**changes), num_blocks, SIZE), sequence()  # type: ignore[arg-type]
    reaches.give(taken)
    return reaches, taken


def test_without_windows_nothing_is_bounded_but_by_the_pool() -> None:
    reaches, taken = given()
    assert taken.reach is None
    assert (taken.num_seen, taken.max_blocks) == (sys.maxsize, sys.maxsize)
    assert reaches.max_context == 200


def test_a_reach_lets_a_sequence_outgrow_the_pool_but_not_a_search() -> None:
    reaches, taken = given(reach=REACH, num_blocks=12)
    assert taken.reach == REACH
    assert reaches.max_context == 1000
    assert reaches.search_context == 13
    assert taken.num_shareable == 13
    assert taken.max_blocks == least_blocks(REACH, SIZE) + 4


def test_in_a_pool_without_room_for_two_windows_nothing_is_shared() -> None:
    _, taken = given(reach=REACH, num_blocks=8)
    assert taken.num_shareable == 0


def test_a_pool_smaller_than_the_window_bounds_the_context() -> None:
    reaches, taken = given(reach=REACH, num_blocks=5)
    assert taken.reach == REACH
    assert reaches.max_context == 5 * SIZE


@pytest.mark.parametrize(("widest", "expected"), [(10, Reach(window=10)), (8, Reach(window=8)), (11, REACH)])
def test_the_narrower_of_the_models_windows_and_the_wanted_one_counts(widest: int, expected: Reach) -> None:
    assert given(reach=REACH, widest_window=widest)[1].reach == expected


def test_a_long_sequence_keeps_a_bounded_number_of_blocks_and_leaves_the_rest_to_others() -> None:
    pool = BlockPool(40)
    scheduler = Scheduler(pool, SIZE, limits(reach=REACH))
    model = UniformModel(num_blocks=40, block_size=SIZE, vocab_size=7)
    taken = sequence(max_tokens=500)
    scheduler.submit(taken)
    most = 0
    while (step := scheduler.schedule(0.0)) is not None:
        scheduler.commit(step, model.launch(step).result(), 0.0)
        scheduler.check()
        most = max(most, len(taken.blocks))
        if taken.num_computed > 100:
            assert len(taken.blocks) <= least_blocks(REACH, SIZE)
    assert taken.num_output == 500
    assert most <= taken.max_blocks
    assert pool.num_free == 40
    assert pool.num_cached == REACH.num_seen // SIZE  # what came before the first eviction, and nothing after


def test_a_preempted_sequence_with_a_reach_computes_its_past_again_in_bounded_memory() -> None:
    policy = SchedulingSettings(output_ratio=0.0)
    scheduler = Scheduler(BlockPool(14), SIZE, limits(reach=REACH, prefix_cache=False, policy=policy))
    model = UniformModel(num_blocks=14, block_size=SIZE, vocab_size=7)
    taken = [sequence(i, prompt=2 + i, max_tokens=60) for i in range(3)]
    for one in taken:
        scheduler.submit(one)
    while (step := scheduler.schedule(0.0)) is not None:
        scheduler.commit(step, model.launch(step).result(), 0.0)
        scheduler.check()
    assert scheduler.totals.num_preemptions > 0
    alone = Scheduler(BlockPool(14), SIZE, limits(reach=REACH))
    for one in taken:
        same = sequence(one.seq_id, prompt=one.prompt_len, max_tokens=60)
        alone.submit(same)
        while (step := alone.schedule(0.0)) is not None:
            alone.commit(step, model.launch(step).result(), 0.0)
        assert same.tokens == one.tokens


def test_a_prompt_that_gave_its_blocks_to_an_older_ones_window_is_not_computed_in_the_same_step() -> None:
    pool = BlockPool(10)
    asked = limits(max_num_seqs=2, max_step_tokens=4, prefix_cache=False, widest_window=2)
    scheduler, model = Scheduler(pool, 2, asked), UniformModel(num_blocks=10, block_size=2, vocab_size=11)
    for number, prompt in enumerate((20, 9)):
        scheduler.submit(sequence(number, prompt, max_tokens=2))
    pending: deque[tuple[Step, Pending[StepResult]]] = deque()
    while scheduler.has_work:
        while len(pending) < 2 and (step := scheduler.schedule(0.0)) is not None:
            pending.append((step, model.launch(step)))
            scheduler.check()
        step, launched = pending.popleft()
        scheduler.commit(step, launched.result(), 0.0)
    assert scheduler.totals.num_preemptions > 0
    assert pool.num_free == 10


def asking(window: int | None = None, num_sinks: int | None = None, prompt: int = 30) -> Sequence:
    wanted = WantedReach(window=window, num_sinks=num_sinks)
    return Sequence(SeqId(0), [1] * prompt, SamplingParams(), max_tokens=200, reach=wanted)


@pytest.mark.parametrize(
    ("server", "window", "num_sinks", "expected"),
    [
        (None, 20, None, Reach(window=20, num_sinks=4)),
        (None, 20, 0, Reach(window=20)),
        (REACH, 5, None, Reach(window=5, num_sinks=3)),
        (REACH, None, 1, Reach(window=10, num_sinks=1)),
        (REACH, 5, 8, Reach(window=5, num_sinks=8)),
    ],
)
def test_a_request_fills_in_from_the_server_what_it_leaves_out(
    server: Reach | None, window: int | None, num_sinks: int | None, expected: Reach
) -> None:
    reaches, taken = Reaches(limits(reach=server), 50, SIZE), asking(window, num_sinks)
    reaches.check(taken)
    reaches.give(taken)
    assert taken.reach == expected
    assert taken.num_seen == taken.num_shareable == expected.num_seen
    assert taken.max_blocks == least_blocks(expected, SIZE) + 4


@pytest.mark.parametrize(
    ("changes", "window", "num_sinks", "message"),
    [
        ({}, 0, None, "attention_window is 0; it must be from 1 to 1,000, the context"),
        ({}, 1001, 0, "attention_window is 1,001; it must be from 1 to 1,000, the context"),
        ({}, 5, -1, "attention_sinks is -1; it must be at least 0"),
        ({}, None, 3, "goes with a window, and this server has none"),
        ({}, 998, None, "attention_window is 998 and attention_sinks 4; together they may be 1,000 here"),
        ({"reach": REACH}, 11, 0, "from 1 to 10, engine.attention_window of this server"),
        ({"reach": REACH}, 8, 6, "attention_sinks 6; together they may be 13 here"),
        ({"widest_window": 8}, 9, 0, "from 1 to 8, the widest window of this model's layers"),
    ],
)
def test_a_window_that_is_none_or_wider_than_there_is_is_refused(
    changes: dict[str, object], window: int | None, num_sinks: int | None, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Reaches(limits(**changes), 50, SIZE).check(asking(window, num_sinks))


def test_a_sequence_whose_own_sinks_leave_no_room_to_roll_ends_where_the_pool_does() -> None:
    wide = Reach(window=12, num_sinks=8)
    reaches = Reaches(limits(reach=wide), least_blocks(wide, SIZE), SIZE)
    assert reaches.max_context == 1000
    taken = asking(11, 9, prompt=27)
    reaches.check(taken)
    reaches.give(taken)
    assert least_blocks(Reach(window=11, num_sinks=9), SIZE) > least_blocks(wide, SIZE)
    assert taken.max_len == least_blocks(wide, SIZE) * SIZE
    with pytest.raises(PromptTooLong, match="28 tokens; with its own window and sinks, which want 8 of 7 blocks"):
        reaches.check(asking(11, 9, prompt=28))
    reaches.check(asking(11, 8, prompt=28))
