"""Whatever happens to a scheduler, the log of it runs again to the same decisions, on blocks of no meaning."""

from __future__ import annotations

from collections import deque

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.request import Request, SeqId
from headrace.core.step import Step, StepResult
from headrace.engine import decision_lines
from headrace.engine.decision_lines import Line, LogLine
from headrace.engine.line_maker import LineMaker
from headrace.engine.recording import Record, RecordingScheduler
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.sched import SchedulerLimits, sequences_of
from headrace.sim.replay import replay
from headrace.testing import UniformModel
from tests.property.test_beam_search import ordinary, searches
from tests.property.test_scheduler import VOCAB, Shape, World, stories
from tests.property.test_tiers import FAULTS, FORMAT, SECRET, TieredWorld
from tests.property.test_tiers import stories as tiered_stories


class TimedModel(UniformModel):
    """Tells times that depend on the step, so that what is learned from them depends on the story."""

    def run(self, step: Step) -> StepResult:
        return msgspec.structs.replace(super().run(step), elapsed_s=1e-3 + 1e-4 * step.num_tokens**1.1)


def record(world: World, tiers: TierHierarchy | None = None) -> list[Record]:
    """Put a recording scheduler in place of the world's own."""
    records: list[Record] = []
    plain, size = world.scheduler, world.scheduler.block_size
    world.pool = BlockPool(plain.num_blocks)
    world.scheduler = RecordingScheduler(world.pool, size, plain.limits, records.append, tiers)
    world.model = TimedModel(
        num_blocks=plain.num_blocks,
        block_size=size,
        vocab_size=VOCAB,
        fail_row=lambda row: "NaN" if row.seq_id in world.failing else None,
        host=world.host if isinstance(world, TieredWorld) else None,
    )
    return records


def written(
    scheduler: RecordingScheduler, records: list[Record], tiers: TierHierarchy | None = None
) -> list[tuple[str, Line]]:
    """Return the log as it is read back from its bytes."""
    shape = None if tiers is None else tiers.shape
    blocks, size = scheduler.num_blocks, scheduler.block_size
    head = LogLine(decision_lines.FORMAT, "0", "run", 0, blocks, size, scheduler.limits, shape)
    maker = LineMaker(size)
    lines: list[Line] = [head, *(maker.line(each) for each in records)]
    assert not maker._digests._tails, "the log's memory has grown"
    assert not maker._shorthand._known
    assert not maker._searches
    decoder = msgspec.json.Decoder(Line)
    return [(f"line {i}", decoder.decode(msgspec.json.encode(line))) for i, line in enumerate(lines)]


def live(story: tuple[World, list[Shape], list[tuple[str, int]], int]) -> None:
    """Let a story happen."""
    world, coming, acts, _ = story
    arrived = 0
    for act, number in acts:
        if act == "arrive" and arrived < len(coming):
            world.submit(coming[arrived].make(arrived, world.clock.now()))
            arrived += 1
        elif act == "abort":
            world.abort(number)
        elif act == "fail":
            world.failing.add(number)
        elif act in ("pause", "resume"):
            (world.scheduler.pause if act == "pause" else world.scheduler.resume)(SeqId(number))
        elif act == "step":
            world.step()
        elif act == "pass":
            world.clock.advance(10.0 ** (number - 4))


@settings(max_examples=120, deadline=None)
@given(stories(), st.booleans(), st.booleans())
def test_a_log_runs_again_to_the_same_decisions(story: tuple, runs_dry: bool, by_cost: bool) -> None:
    world = story[0]
    if by_cost:
        limits = msgspec.structs.replace(world.scheduler.limits, prefix_policy="cost")
        world.scheduler.limits = limits
    records = record(world)
    live(story)
    while runs_dry and world.step():
        pass
    world.scheduler.abort_all(None)
    report = replay(written(world.scheduler, records))
    assert report.deviation is None
    assert report.is_complete
    assert report.sequences == len(world.events)
    assert report.preemptions == world.scheduler.totals.num_preemptions


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(
        searches() | st.builds(ordinary, st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9)),
        min_size=1,
        max_size=6,
    ),
    block_size=st.sampled_from([1, 2, 4]),
    num_blocks=st.integers(16, 40),
    prefix_cache=st.booleans(),
    depth=st.integers(1, 2),
    plans_ahead=st.booleans(),
    acts=st.lists(st.sampled_from(["come", "step", "step", "step", "abort", "fail"]), max_size=40),
)
def test_searches_run_again_without_a_token(
    requests: list[Request],
    block_size: int,
    num_blocks: int,
    prefix_cache: bool,
    depth: int,
    plans_ahead: bool,
    acts: list[str],
) -> None:
    limits = SchedulerLimits(
        max_num_seqs=6,
        max_step_tokens=12,
        max_context=18,
        max_waiting=64,
        prefix_cache=prefix_cache,
        plans_ahead=plans_ahead,
    )
    records: list[Record] = []
    failing: set[int] = set()
    scheduler = RecordingScheduler(BlockPool(num_blocks), block_size, limits, records.append)
    model = TimedModel(
        num_blocks=num_blocks,
        block_size=block_size,
        vocab_size=VOCAB,
        fail_row=lambda row: "NaN" if row.seq_id in failing else None,
    )
    coming, pending, now, next_id = list(requests), deque(), 0.0, 0

    def step() -> bool:
        while len(pending) < depth and (planned := scheduler.schedule(now)) is not None:
            pending.append((planned, model.launch(planned)))
        if pending:
            planned, result = pending.popleft()
            scheduler.commit(planned, result.result(), now)
        return bool(pending) or scheduler.has_work

    for number, act in enumerate(acts):
        now += 0.01
        if act == "come" and coming:
            sequences = sequences_of(coming.pop(), next_id)
            next_id += len(sequences)
            if sequences[0].beams is None or len(sequences) * (-(-18 // block_size)) <= num_blocks:
                for sequence in sequences:
                    scheduler.submit(sequence, now)
        elif act == "abort":
            scheduler.abort(SeqId(number % (next_id + 1)))
        elif act == "fail":
            failing.add(number % (next_id + 1))
        elif act == "step":
            step()
    num_steps = 0
    while step():
        now += 0.01
        num_steps += 1
        assert num_steps < 1000, "sequences are live and no step can be made"
    scheduler.abort_all(None)
    report = replay(written(scheduler, records))
    assert report.deviation is None
    assert report.is_complete


@settings(max_examples=80, deadline=None)
@given(tiered_stories(), st.sampled_from(FAULTS), st.sampled_from(FAULTS))
def test_what_came_from_below_comes_again(story: tuple, near: str, far: str) -> None:
    world, coming, acts, _ = story
    world.places[0].fault, world.places[1].fault = near, far
    places = Places(world.movers)
    tiers = TierHierarchy(world.host.num_slots, world.host.block_bytes, KeyChain(SECRET, FORMAT), places, copy_s=1e-4)
    records = record(world, tiers)
    arrived = 0
    for act, number in acts:
        if act == "arrive" and arrived < len(coming):
            world.submit(coming[arrived].make(arrived, world.clock.now()))
            arrived += 1
        elif act == "abort":
            world.abort(number % 8)
        elif act == "fail":
            world.failing.add(number % 8)
        elif act == "step":
            world.step()
        elif act == "io":
            world.work(number % 2)
        elif act == "late":
            world.clock.advance(number / 4)
        elif act == "fault":
            world.places[number % 2].fault = FAULTS[number // 2]
    for number in range(arrived, len(coming)):
        world.submit(coming[number].make(number, world.clock.now()))
    world.settle()
    world.scheduler.abort_all(None)
    report = replay(written(world.scheduler, records, tiers))
    assert report.deviation is None
    assert report.is_complete
    assert report.preemptions == world.scheduler.totals.num_preemptions
