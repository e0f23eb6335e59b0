"""Random arrivals, lengths, aborts and tiny pools over scheduler, pool and a model that checks its block tables."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.delta import FinishReason
from headrace.core.errors import InvalidRequest
from headrace.core.request import Reach, SamplingParams, SeqId, WantedReach
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Step
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, SequenceEvent, Urgency
from headrace.testing import UniformModel, VirtualClock, next_token, token_logprob
from headrace.testing.uniform_model import seen_positions

VOCAB = 11


class Shape(NamedTuple):
    """A sequence before it is made."""

    prompt: list[int]
    max_tokens: int
    seed: int
    stop: frozenset[int]
    min_tokens: int
    prompt_logprobs: int | None
    namespace: str = ""
    urgency: Urgency = Urgency()
    pin_s: float = 0.0
    reach: WantedReach | None = None
    penalty: float = 0.0

    def make(self, seq_id: int, now: float = 0.0) -> Sequence:
        sampling = SamplingParams(seed=self.seed, min_tokens=self.min_tokens, presence_penalty=self.penalty)
        return Sequence(
            SeqId(seq_id),
            self.prompt,
            sampling,
            max_tokens=self.max_tokens,
            stop_token_ids=self.stop,
            prompt_logprobs=self.prompt_logprobs,
            namespace=self.namespace,
            pin_s=self.pin_s,
            reach=self.reach,
            urgency=msgspec.structs.replace(
                self.urgency, deadline_s=None if self.urgency.deadline_s is None else now + self.urgency.deadline_s
            ),
        )

    def answer_alone(self, max_context: int, reach: Reach | None = None) -> tuple[list[int], FinishReason]:
        """The output and finish reason by a plain loop that knows no blocks, steps or neighbours."""
        tokens = list(self.prompt)
        sampling = SamplingParams(seed=self.seed)
        while len(tokens) < min(len(self.prompt) + self.max_tokens, max_context):
            is_early = len(tokens) - len(self.prompt) < self.min_tokens
            seen = [tokens[i] for i in seen_positions(len(tokens), reach)]
            token_id = next_token(seen, sampling, VOCAB, tuple(self.stop) if is_early else ())
            tokens.append(token_id)
            if token_id in self.stop:
                return tokens[len(self.prompt) :], FinishReason.STOP
        return tokens[len(self.prompt) :], FinishReason.LENGTH


class Pipeline(NamedTuple):
    """How many steps are in flight, and whether sequences are planned ahead of their last token.

    asks  nothing is planned while a step runs unless the scheduler says that it should be
    """

    depth: int = 1
    plans_ahead: bool = False
    asks: bool = False


# One step after the other, two that share no sequence, what the engine does where steps overlap, and more than that.
PIPELINES = [Pipeline(), Pipeline(2), Pipeline(2, plans_ahead=True, asks=True), Pipeline(2, plans_ahead=True)]


class World:
    """Scheduler, pool and model, stepped by hand, with everything that came out."""

    def __init__(self, num_blocks: int, block_size: int, limits: SchedulerLimits, pipeline: Pipeline) -> None:
        limits = msgspec.structs.replace(limits, plans_ahead=pipeline.plans_ahead)
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(self.pool, block_size, limits)
        self.failing: set[int] = set()
        self.model = UniformModel(
            num_blocks=num_blocks,
            block_size=block_size,
            vocab_size=VOCAB,
            fail_row=lambda row: "NaN" if row.seq_id in self.failing else None,
        )
        self.clock = VirtualClock()
        self.pipeline = pipeline
        self.pending: deque = deque()
        self.events: dict[int, list[SequenceEvent]] = {}
        self.in_background: set[int] = set()
        self.reaches: dict[int, Reach | None] = {}
        self.contexts: dict[int, int] = {}

    def submit(self, sequence: Sequence) -> None:
        self.events[sequence.seq_id] = []
        if sequence.is_background:
            self.in_background.add(sequence.seq_id)
        try:
            self.scheduler.check_reach(sequence)
        except InvalidRequest:
            sequence.wanted_reach = None
        self.scheduler.submit(sequence, self.clock.now())
        self.reaches[sequence.seq_id] = sequence.reach
        self.contexts[sequence.seq_id] = sequence.max_len
        self.scheduler.check()

    def alone(self, seq_id: int, shape: Shape) -> tuple[list[int], FinishReason]:
        """What a submitted sequence has to answer."""
        return shape.answer_alone(self.contexts[seq_id], self.reaches[seq_id])

    def abort(self, seq_id: int) -> None:
        self.take(self.scheduler.abort(SeqId(seq_id)))
        self.scheduler.check()

    def check_background(self, step: Step) -> None:
        """Background rows come last."""
        kinds = [seq_id in self.in_background for seq_id in (row.seq_id for row in step.rows)]
        assert kinds == sorted(kinds)

    def take(self, events: list[SequenceEvent]) -> None:
        for event in events:
            earlier = self.events[event.seq_id]
            assert not earlier or earlier[-1].finish is None, "an event after the end"
            earlier.append(event)

    def may_overlap(self) -> bool:
        """Ask as the engine does before it plans a step while another runs."""
        return self.scheduler.can_overlap or not self.pipeline.asks

    def step(self) -> bool:
        """Fill the pipeline to its depth, then commit one step; False when there was nothing to do."""
        self.take(self.scheduler.expire(self.clock.now()))
        self.scheduler.check()
        while not self.pending or (len(self.pending) < self.pipeline.depth and self.may_overlap()):
            step = self.scheduler.schedule(self.clock.now())
            if step is None:
                break
            self.pending.append((step, self.model.launch(step)))
            self.scheduler.check()
            self.check_background(step)
        if not self.pending:
            is_stuck = self.scheduler.can_work and self.scheduler.wait_s is None
            assert not is_stuck, "sequences are live and no step can be made"
            return False
        step, pending = self.pending.popleft()
        self.clock.advance(0.01)
        self.take(self.scheduler.commit(step, pending.result(), self.clock.now()))
        self.scheduler.check()
        return True


@st.composite
def urgencies(draw: st.DrawFn) -> Urgency:
    """Most are ordinary; the others differ in all that decides whose turn it is."""
    if draw(st.booleans()):
        return Urgency()
    return Urgency(
        tenant=draw(st.sampled_from(["", "a", "b"])),
        priority=draw(st.integers(-2, 2)),
        is_background=draw(st.booleans()),
        deadline_s=draw(st.none() | st.floats(0.0, 0.5)),
    )


@st.composite
def shapes(draw: st.DrawFn, longest: int) -> Shape:
    """Half of the prompts begin alike, so that prefixes meet, part and meet again."""
    own = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=longest - 1))
    common = draw(st.integers(0, longest - 1)) if draw(st.booleans()) else 0
    prompt = [*([1, 2, 3] * longest)[:common], *own[common:]] or own
    return Shape(
        prompt,
        draw(st.integers(0, 20)),
        draw(st.integers(0, 3)),
        draw(st.frozensets(st.integers(0, VOCAB - 1), max_size=1)),
        draw(st.integers(0, 4)),
        draw(st.sampled_from([None, None, 2])),
        draw(st.sampled_from(["", "", "other"])),
        draw(urgencies()),
        draw(st.sampled_from([0.0, 0.0, 0.0, 0.05, 100.0])),
        draw(st.none() | st.builds(WantedReach, window=st.integers(1, 12), num_sinks=st.none() | st.integers(0, 5))),
        draw(st.sampled_from([0.0, 0.0, 0.0, 0.0, 0.5])),  # a step with a penalty may not be planned ahead of
    )


@st.composite
def stories(draw: st.DrawFn) -> tuple[World, list[Shape], list[tuple[str, int]], int]:
    """A world with a tiny pool, the sequences that will come, and the order of arrivals, steps and aborts."""
    num_blocks, block_size = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    max_context = draw(st.integers(2, 40))
    reach = draw(st.none() | st.builds(Reach, window=st.integers(1, 9), num_sinks=st.integers(0, 6)))
    limits = SchedulerLimits(
        max_num_seqs=draw(st.integers(1, 5)),
        max_step_tokens=draw(st.integers(1, 12)),
        max_context=max_context,
        max_waiting=64,
        prefix_cache=draw(st.sampled_from([True, True, True, False])),
        policy=SchedulingSettings(
            itl_target_ms=draw(st.sampled_from([None, None, 0.5, 2.0])),
            background_share=draw(st.sampled_from([0.0, 0.1, 10.0])),
            aging_s=draw(st.sampled_from([0.02, 10.0])),
            fair_burst_tokens=draw(st.sampled_from([1, 50])),
            tenant_weights={"a": 3.0},
            output_ratio=draw(st.sampled_from([0.0, 0.5, 1.0])),
        ),
        reach=reach,
        widest_window=draw(st.none() | st.integers(1, 12)),
    )
    world = World(num_blocks, block_size, limits, draw(st.sampled_from(PIPELINES)))
    context = world.scheduler.max_context
    if reach is None and limits.widest_window is None:
        assert context == min(max_context, num_blocks * block_size)
    coming = draw(st.lists(shapes(context), min_size=1, max_size=8))
    acts = draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    ["arrive", "arrive", "step", "step", "step", "abort", "fail", "pass", "pause", "pause", "resume"]
                ),
                st.integers(0, 7),
            ),
            max_size=60,
        )
    )
    return world, coming, acts, context


@settings(max_examples=300, deadline=None)
@given(stories())
def test_every_sequence_ends_once_with_the_answer_it_has_alone(story: tuple) -> None:
    world, coming, acts, _ = story
    arrived, aborted = 0, set()
    for act, number in acts:
        if act == "arrive" and arrived < len(coming):
            world.submit(coming[arrived].make(arrived, world.clock.now()))
            arrived += 1
        elif act == "abort":
            world.abort(number)
            aborted.add(number)
        elif act == "fail":
            world.failing.add(number)
        elif act == "pause":
            world.scheduler.pause(SeqId(number))
            world.scheduler.check()
        elif act == "resume":
            world.scheduler.resume(SeqId(number))
            world.scheduler.check()
        elif act == "step":
            world.step()
        elif act == "pass":  # the clock jumps: a step that took long, a process that was stopped
            world.clock.advance(10.0 ** (number - 4))
    for seq_id in range(arrived, len(coming)):
        world.submit(coming[seq_id].make(seq_id, world.clock.now()))
    # Nobody waits for a reader that stays away.
    paused = [sequence for sequence in world.scheduler.live() if sequence.is_paused]
    for _ in range(4000):
        if not world.step():
            break
    assert {sequence.seq_id for sequence in world.scheduler.live()} <= {sequence.seq_id for sequence in paused}
    for sequence in paused:
        world.scheduler.resume(sequence.seq_id)
    # No starvation: each step computes a token that some sequence lacked, or one that preemption threw away.
    for _ in range(4000):
        if not world.step():
            break
    else:
        raise AssertionError("work is left after 4000 steps")
    assert not world.scheduler.has_work
    assert world.pool.num_free + world.scheduler.num_pinned_blocks == world.pool.num_blocks
    for seq_id, shape in enumerate(coming):
        events = world.events[seq_id]
        output = [event.sample.token_id for event in events if event.sample is not None]
        reach = world.reaches[seq_id]
        expected, finish = world.alone(seq_id, shape)
        last = events[-1]
        assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
        if last.finish is FinishReason.ABORT:
            assert seq_id in aborted
            assert output == expected[: len(output)]
            continue
        if last.finish is FinishReason.EXPIRED:
            assert shape.urgency.deadline_s is not None
            assert not output
            continue
        if last.finish is FinishReason.ERROR:
            assert seq_id in world.failing
            assert output == expected[: len(output)]
            continue
        assert output == expected
        assert last.finish is finish
        if shape.prompt_logprobs is not None:
            prompt = shape.prompt
            seen = [[prompt[j] for j in seen_positions(i, reach)] for i in range(1, len(prompt))]
            wanted = [(prompt[i], token_logprob(seen[i - 1], prompt[i])) for i in range(1, len(prompt))]
            assert [(s.token_id, s.logprob) for s in events[0].scored] == wanted
            assert not any(event.scored for event in events[1:])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_abort_storm_leaks_nothing(data: st.DataObject) -> None:
    limits = SchedulerLimits(max_num_seqs=6, max_step_tokens=9, max_context=30, max_waiting=64)
    world = World(8, 4, limits, data.draw(st.sampled_from(PIPELINES)))
    shape = Shape([1, 2, 3, 4, 5], 10, 0, frozenset(), 0, None)
    for seq_id in range(30):
        world.submit(shape.make(seq_id))
        for _ in range(data.draw(st.integers(0, 2))):
            world.step()
        world.abort(data.draw(st.integers(0, seq_id)))
    for seq_id in data.draw(st.permutations(range(30))):
        world.abort(seq_id)
        world.abort(seq_id)
    while world.step():
        pass
    assert world.pool.num_free == 8
    assert all(sum(e.finish is not None for e in events) == 1 for events in world.events.values())
