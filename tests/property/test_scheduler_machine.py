"""The scheduler that anything may happen to next: arrivals, aborts, pauses, faults, crashes, clock jumps."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.core.delta import FinishReason
from headrace.core.request import SeqId
from headrace.core.settings import SchedulingSettings
from headrace.sched import SchedulerLimits
from tests.property.test_scheduler import PIPELINES, Pipeline, Shape, World, shapes

CONTEXT = 30


class SchedulerMachine(RuleBasedStateMachine):
    """A tiny pool, and a model that reads every answer back from the blocks that it is given."""

    @initialize(
        num_blocks=st.integers(3, 10),
        block_size=st.integers(1, 4),
        pipeline=st.sampled_from(PIPELINES),
        policy=st.sampled_from(["lru", "cost"]),
        ratio=st.sampled_from([0.0, 0.5]),
    )
    def begin(self, num_blocks: int, block_size: int, pipeline: Pipeline, policy: Any, ratio: float) -> None:
        limits = SchedulerLimits(
            max_num_seqs=4,
            max_step_tokens=9,
            max_context=CONTEXT,
            max_waiting=99,
            prefix_policy=policy,
            policy=SchedulingSettings(output_ratio=ratio, fair_burst_tokens=8, tenant_weights={"a": 2.0}),
        )
        self.world = World(num_blocks, block_size, limits, pipeline)
        self.context = min(CONTEXT, num_blocks * block_size)
        self.shapes: dict[int, Shape] = {}
        self.given_up: set[int] = set()

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        shape = data.draw(shapes(self.context))
        seq_id = len(self.shapes)
        self.shapes[seq_id] = shape
        self.world.submit(shape.make(seq_id, self.world.clock.now()))

    @precondition(lambda self: self.shapes)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seq_id = data.draw(st.sampled_from(sorted(self.shapes)))
        self.given_up.add(seq_id)
        self.world.abort(seq_id)

    @precondition(lambda self: self.shapes)
    @rule(data=st.data(), is_paused=st.booleans())
    def pause_or_resume(self, data: st.DataObject, is_paused: bool) -> None:
        scheduler, seq_id = self.world.scheduler, SeqId(data.draw(st.sampled_from(sorted(self.shapes))))
        (scheduler.pause if is_paused else scheduler.resume)(seq_id)

    @precondition(lambda self: self.shapes)
    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        """The numbers of a sequence go wrong from now on."""
        self.world.failing.add(data.draw(st.sampled_from(sorted(self.shapes))))

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()

    @rule(seconds=st.sampled_from([0.001, 0.3, 20.0, 1e6]))
    def jump(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule()
    def crash(self) -> None:
        """A step raises: all that lives ends, and what was in flight is forgotten."""
        for _, pending in self.world.pending:
            pending.result()
        self.world.pending.clear()
        live = [sequence.seq_id for sequence in self.world.scheduler.live()]
        self.given_up.update(live)
        self.world.take(self.world.scheduler.abort_all("the engine failed"))
        assert self.num_unheld == self.world.pool.num_blocks

    @property
    def num_unheld(self) -> int:
        """Blocks that no sequence holds: free ones, and those that are pinned."""
        return self.world.pool.num_free + self.world.scheduler.num_pinned_blocks

    @invariant()
    def every_block_is_somewhere(self) -> None:
        if not hasattr(self, "world"):
            return
        pool = self.world.pool
        held = sum(pool.num_holders(block) > 0 for block in range(pool.num_blocks))
        assert len(pool._free) + held + pool.num_cached == pool.num_blocks
        self.world.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for seq_id in self.shapes:
            self.world.scheduler.resume(SeqId(seq_id))
        for _ in range(4000):
            if not self.world.step():
                break
        assert not self.world.scheduler.has_work, "work is left after 4000 steps"
        assert self.num_unheld == self.world.pool.num_blocks
        for seq_id, shape in self.shapes.items():
            self.check_answer(seq_id, shape)

    def check_answer(self, seq_id: int, shape: Shape) -> None:
        events = self.world.events[seq_id]
        assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
        output = [event.sample.token_id for event in events if event.sample is not None]
        expected, finish = self.world.alone(seq_id, shape)
        assert output == expected[: len(output)]
        last = events[-1].finish
        if last in (FinishReason.STOP, FinishReason.LENGTH):
            assert (output, last) == (expected, finish)
        else:
            is_late = last is FinishReason.EXPIRED and shape.urgency.deadline_s is not None
            assert is_late or seq_id in self.given_up or seq_id in self.world.failing


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
