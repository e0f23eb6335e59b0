"""Sequences that are left out of steps until their readers have caught up."""

from __future__ import annotations

from collections.abc import Callable

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Sample, Step, StepResult
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence

ONE, TWO, THREE = SeqId(1), SeqId(2), SeqId(3)


class Bench:
    """A scheduler whose every token is 7."""

    def __init__(self, num_blocks: int = 8, max_num_seqs: int = 2) -> None:
        self.pool = BlockPool(num_blocks)
        limits = SchedulerLimits(max_num_seqs=max_num_seqs, max_step_tokens=32, max_context=32, max_waiting=9)
        self.scheduler = Scheduler(self.pool, 4, limits)

    def submit(self, *seq_ids: SeqId, prompt_len: int = 4) -> None:
        for seq_id in seq_ids:
            self.scheduler.submit(Sequence(seq_id, [int(seq_id)] * prompt_len, SamplingParams(), max_tokens=20))

    def launch(self) -> Step | None:
        step = self.scheduler.schedule(0.0)
        self.scheduler.check()
        return step

    def commit(self, step: Step) -> None:
        samples = tuple(Sample(7) if row.sampling is not None else None for row in step.rows)
        self.scheduler.commit(step, StepResult(step.step_id, samples), 0.0)
        self.scheduler.check()

    def step(self) -> list[SeqId]:
        """Make one step and say who was in it."""
        step = self.launch()
        if step is None:
            return []
        self.commit(step)
        return [row.seq_id for row in step.rows]

    def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(100):
            if is_so():
                return
            self.step()
        raise AssertionError("it never came to that")


def test_a_paused_sequence_keeps_its_place_in_memory_and_costs_no_step() -> None:
    bench = Bench()
    bench.submit(ONE, TWO)
    assert bench.step() == [ONE, TWO]
    num_free = bench.pool.num_free
    bench.scheduler.pause(ONE)
    bench.scheduler.pause(ONE)
    assert bench.step() == [TWO]
    assert bench.scheduler.num_paused == 1
    assert bench.pool.num_free <= num_free
    bench.scheduler.resume(ONE)
    assert bench.step() == [TWO, ONE]
    assert bench.scheduler.totals.recomputed_tokens == 0


def test_its_place_in_the_batch_goes_to_others() -> None:
    bench = Bench()
    bench.submit(ONE, TWO, THREE)
    bench.step()
    bench.scheduler.pause(ONE)
    assert bench.step() == [TWO, THREE]
    bench.scheduler.resume(ONE)
    assert bench.step() == [TWO, THREE]
    bench.scheduler.abort(TWO)
    assert bench.step() == [THREE, ONE]


def test_its_blocks_go_to_whoever_needs_them() -> None:
    bench = Bench(num_blocks=4)
    bench.submit(ONE)
    bench.step()
    bench.scheduler.pause(ONE)
    bench.submit(TWO, prompt_len=11)
    assert bench.step() == [TWO]
    bench.until(lambda: bench.scheduler.totals.num_preemptions == 1)
    bench.scheduler.abort(TWO)
    bench.scheduler.resume(ONE)
    assert bench.step() == [ONE]


def test_when_all_are_paused_there_is_nothing_to_do() -> None:
    bench = Bench()
    bench.submit(ONE)
    bench.step()
    bench.scheduler.pause(ONE)
    assert bench.step() == []
    assert bench.scheduler.has_work
    assert not bench.scheduler.can_work
    bench.scheduler.resume(ONE)
    assert bench.scheduler.can_work
    bench.scheduler.pause(ONE)
    assert not bench.scheduler.can_work
    assert bench.scheduler.abort(ONE)
    assert bench.pool.num_free == 8


def test_a_step_in_flight_still_counts() -> None:
    bench = Bench()
    bench.submit(ONE)
    step = bench.launch()
    assert step is not None
    bench.scheduler.pause(ONE)
    bench.commit(step)
    (sequence,) = bench.scheduler.live()
    assert sequence.num_output == 1
    bench.scheduler.resume(ONE)
    assert bench.step() == [ONE]


def test_nobody_waits_for_a_prefix_that_a_paused_sequence_would_fill() -> None:
    bench = Bench()
    bench.submit(ONE, prompt_len=10)
    bench.step()
    twin = Sequence(TWO, [1] * 10 + [7, 7, 7], SamplingParams(), max_tokens=5)
    bench.scheduler.pause(ONE)
    bench.scheduler.submit(twin)
    assert bench.step() == [TWO]


def test_orders_for_the_dead_are_ignored() -> None:
    bench = Bench()
    bench.scheduler.pause(ONE)
    bench.scheduler.resume(ONE)
    bench.scheduler.check()
    assert bench.scheduler.num_paused == 0
