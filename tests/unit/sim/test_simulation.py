"""Traces through the engine on a virtual clock: the numbers are those a person works out by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.sim import Arrival, SimReport, SimShape, StepTimes, Trace, read_trace, simulate
from headrace.testing import UniformModel

TIMES = StepTimes(shared=0.1, per_row=0.01, per_token=0.001)


def shape(num_blocks: int = 64, **changes: Any) -> SimShape:
    limits = {"max_num_seqs": 8, "max_step_tokens": 1024, "max_context": 4096, "max_waiting": 99} | changes
    return SimShape(limits=SchedulerLimits(**limits), num_blocks=num_blocks, block_size=64, times=TIMES)


def conversations(num_users: int, num_turns: int) -> Trace:
    """Users take turns; every prompt is the one before and a block more, after a block that all share."""
    return Trace(
        "conversations",
        tuple(
            Arrival(turn * 0.7 + user * 0.09, (turn + 2) * 512 - 100, 5 + user % 3, (0, *ids[: turn + 1]))
            for turn in range(num_turns)
            for user, ids in enumerate(range(1 + user * 100, 100 + user * 100) for user in range(num_users))
        ),
    )


def without_wall(report: SimReport) -> SimReport:
    return msgspec.structs.replace(report, wall_s=0.0)


def test_times_are_those_of_the_steps(write_trace: Callable[..., Path]) -> None:
    report = simulate(read_trace(write_trace((0, 500, 4, [1]))), shape())
    assert report.steps - 3 == 4  # warm-up makes three
    assert report.ttft_ms.max == pytest.approx(100 + 500)
    assert report.itl_ms.count == 3
    assert report.itl_ms.max == pytest.approx(110)
    assert report.duration_s == pytest.approx(0.6 + 3 * 0.11)
    assert report.utilization == pytest.approx(1.0)
    assert (report.completed, report.output_tokens, report.slo_share) == (1, 4, 0.0)


def test_nobody_waits_through_quiet_hours(write_trace: Callable[..., Path]) -> None:
    trace = read_trace(write_trace((0, 100, 2, [1]), (36_000_000, 100, 2, [2]), (360_000_000, 100, 2, [3])))
    report = simulate(trace, shape())
    assert report.duration_s == pytest.approx(360_000 + 0.2 + 0.11)
    assert report.ttft_ms.max == pytest.approx(200)
    assert report.wall_s < 10


def test_a_request_that_comes_during_a_step_waits_for_its_end(write_trace: Callable[..., Path]) -> None:
    trace = read_trace(write_trace((0, 900, 1, [1, 2]), (400, 100, 1, [3])))
    assert simulate(trace, shape()).ttft_ms.max == pytest.approx(1000)  # its own: 600 ms of waiting, 200 of its step


def test_a_simulation_is_the_same_each_time() -> None:
    trace = conversations(num_users=6, num_turns=8)
    for policy in ("lru", "cost"):
        made = [without_wall(simulate(trace, shape(200, prefix_policy=policy))) for _ in range(3)]
        assert made[0] == made[1] == made[2]
        assert made[0].prompt_tokens_found > 0


def test_a_pool_without_want_finds_all_that_can_be_found(write_trace: Callable[..., Path]) -> None:
    lines = [(i * 60_000, 512 * (i + 1), 1, list(range(i + 1))) for i in range(5)]
    report = simulate(read_trace(write_trace(*lines)), shape(10_000))
    # Engine blocks are smaller than the trace's, so parts of blocks are found, too.
    assert 1.0 <= report.of_unlimited < 1.4
    without = simulate(read_trace(write_trace(*lines)), shape(10_000, prefix_cache=False))
    assert (without.policy, without.hit_rate) == ("none", 0.0)
    assert without.prompt_tokens == sum(512 * (i + 1) for i in range(5))


def test_a_small_pool_finds_less_and_everything_ends() -> None:
    trace = conversations(num_users=6, num_turns=4)
    report = simulate(trace, shape(60, max_context=2700))
    assert report.completed == 24
    assert report.refused == 0
    assert report.hit_rate < simulate(trace, shape(1000)).hit_rate


def test_refused_requests_are_counted_and_hold_up_nobody(write_trace: Callable[..., Path]) -> None:
    many = [(0, 1000, 3, [i, i + 50]) for i in range(10)]
    report = simulate(read_trace(write_trace(*many, (0, 5000, 1, list(range(100, 110))))), shape(max_waiting=4))
    assert report.refused == 11 - report.completed
    assert report.completed >= 4
    nobody = simulate(read_trace(write_trace((0, 5000, 1, list(range(10))))), shape())
    assert (nobody.completed, nobody.refused, nobody.ttft_ms.count) == (0, 1, 0)


@pytest.mark.parametrize("plans_ahead", [False, True])
@pytest.mark.parametrize("chunk_tokens", [None, 100])
def test_planned_steps_are_those_of_a_model_that_computes(chunk_tokens: int | None, plans_ahead: bool) -> None:
    """The same requests, all there at once, driven by hand on a model with a store of its own."""
    trace = conversations(num_users=5, num_turns=3)
    at_once = Trace("at once", tuple(msgspec.structs.replace(a, at_s=0.0) for a in trace.arrivals))
    made = shape(70, max_context=2048, chunk_tokens=chunk_tokens, plans_ahead=plans_ahead)
    simulated = simulate(at_once, made)
    scheduler = Scheduler(BlockPool(70), 64, made.limits)
    # One token to sample from: the answer's tokens are alike then, as in the simulation.
    model = UniformModel(num_blocks=70, block_size=64, vocab_size=1)
    for number, arrival in enumerate(at_once.arrivals):
        prompt, sampling = arrival.prompt(), SamplingParams(temperature=0.0)
        scheduler.submit(Sequence(SeqId(number), prompt, sampling, max_tokens=arrival.output_len), 0.0)
    num_steps, busy_s, pending = 0, 0.0, deque()
    while scheduler.has_work or pending:
        while not pending or scheduler.can_overlap:
            if (step := scheduler.schedule(busy_s)) is None:
                break
            pending.append((step, model.launch(step)))
        step, result = pending.popleft()
        num_steps += 1
        busy_s += TIMES.predict(step)
        scheduler.commit(step, result.result(), busy_s)
    assert simulated.steps - 3 == num_steps
    assert simulated.duration_s == pytest.approx(busy_s)
    assert simulated.preemptions == scheduler.totals.num_preemptions
    assert simulated.prompt_tokens_found == scheduler.totals.prefix_hits
