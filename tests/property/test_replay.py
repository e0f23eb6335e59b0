"""Whatever happens to a scheduler, the log of it runs again to the same decisions, on blocks of no meaning."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.request import SeqId
from headrace.core.step import Step, StepResult
from headrace.engine.decision_lines import FORMAT, Line, LogLine
from headrace.engine.decision_log import LineMaker
from headrace.engine.recording import Record, RecordingScheduler
from headrace.kv import BlockPool
from headrace.sim.replay import replay
from headrace.testing import UniformModel
from tests.property.test_scheduler import VOCAB, Shape, World, stories


class TimedModel(UniformModel):
    """Tells times that depend on the step, so that what is learned from them depends on the story."""

    def run(self, step: Step) -> StepResult:
        return msgspec.structs.replace(super().run(step), elapsed_s=1e-3 + 1e-4 * step.num_tokens**1.1)


def record(world: World) -> list[Record]:
    """Put a recording scheduler in place of the world's own."""
    records: list[Record] = []
    plain, size = world.scheduler, world.scheduler.block_size
    world.pool = BlockPool(plain.num_blocks)
    world.scheduler = RecordingScheduler(world.pool, size, plain.limits, records.append)
    world.model = TimedModel(
        num_blocks=plain.num_blocks,
        block_size=size,
        vocab_size=VOCAB,
        fail_row=lambda row: "NaN" if row.seq_id in world.failing else None,
    )
    return records


def written(world: World, records: list[Record]) -> list[tuple[str, Line]]:
    """Return the log as it is read back from its bytes."""
    scheduler = world.scheduler
    head = LogLine(FORMAT, "0", "run", 0, scheduler.num_blocks, scheduler.block_size, scheduler.limits)
    maker = LineMaker(scheduler.block_size)
    lines: list[Line] = [head, *(maker.line(each) for each in records)]
    assert not maker._digests._tails, "the log's memory has grown"
    assert not maker._shorthand._known
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
        limits = msgspec.structs.replace(world.scheduler.limits, prefix_policy="cost", attention_parity=5)
        world.scheduler.limits = limits
    records = record(world)
    live(story)
    while runs_dry and world.step():
        pass
    world.scheduler.abort_all(None)
    report = replay(written(world, records))
    assert report.deviation is None
    assert report.is_complete
    assert report.sequences == len(world.events)
    assert report.preemptions == world.scheduler.totals.num_preemptions
