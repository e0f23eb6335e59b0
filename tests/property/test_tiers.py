"""The scheduler above host memory and two failing places: whatever they do costs time, never a wrong token."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.delta import FinishReason
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.kv.transfer import FrameCodec, HostPool, Mover
from headrace.sched import Scheduler, SchedulerLimits
from headrace.testing import FixedCost, UniformModel, VirtualClock
from headrace.testing.uniform_model import TOKEN_BYTES
from tests.property.test_scheduler import PIPELINES, VOCAB, Pipeline, Shape, World, shapes

SECRET, FORMAT = b"s" * 32, b"f" * 16


class Place:
    """A transport in memory that fails on demand: `fault` is what the next calls suffer from."""

    def __init__(self, max_frames: int) -> None:
        self.frames: dict[bytes, bytes] = {}
        self.num_bytes = 0
        self.max_frames = max_frames
        self.fault = "none"
        self.clock: VirtualClock | None = None

    def has(self, keys: Seq[bytes]) -> int:
        self._fail()
        return next((i for i, key in enumerate(keys) if key not in self.frames), len(keys))

    def get(self, keys: Seq[bytes], into: Seq[memoryview]) -> list[int]:
        self._fail()
        sizes = []
        for key, buffer in zip(keys, into, strict=True):
            frame = bytearray(self.frames.get(key, b""))
            if self.fault == "lost":
                frame.clear()
            elif self.fault == "corrupt" and frame:
                frame[len(frame) // 2 + len(frame) // 3] ^= 1
            elif self.fault == "short":
                del frame[-3:]
            elif self.fault == "wrong" and self.frames:
                frame = bytearray(next(iter(self.frames.values())))
            buffer[: len(frame)] = frame
            sizes.append(len(frame))
        return sizes

    def put(self, key: bytes, frame: memoryview, saves_s: float) -> bool:
        self._fail()
        if self.fault == "full":
            raise OSError(28, "No space left on device")
        if len(self.frames) >= self.max_frames:
            return False
        self.frames[key] = bytes(frame)
        return True

    def drop(self, key: bytes) -> None:
        self._fail()
        self.frames.pop(key, None)

    def close(self) -> None:
        pass

    def _fail(self) -> None:
        if self.fault == "down":
            raise ConnectionError("gone")
        if self.fault == "slow" and self.clock is not None:
            self.clock.advance(7.0)


FAULTS = ["none", "none", "down", "corrupt", "short", "wrong", "lost", "full", "slow"]


class TieredWorld(World):
    """A world with host memory and two places, whose threads are played by `work`."""

    def __init__(
        self, num_slots: int, num_blocks: int, block_size: int, limits: SchedulerLimits, pipeline: Pipeline
    ) -> None:
        super().__init__(num_blocks, block_size, limits, pipeline)
        self.block_size = block_size
        self.host = HostPool(num_slots, block_size * TOKEN_BYTES)
        self.places = [Place(4), Place(99)]
        self.restart(num_blocks)

    def restart(self, num_blocks: int) -> None:
        """A new process: only the places remember."""
        for place in self.places:
            place.clock = self.clock
        codec = FrameCodec(SECRET, FORMAT, self.host.block_bytes)
        self.movers = [
            Mover(f"p{i}", place, codec, self.host, self.clock, latency_s=0.0) for i, place in enumerate(self.places)
        ]
        self.tiers = TierHierarchy(
            self.host.num_slots,
            self.host.block_bytes,
            KeyChain(SECRET, FORMAT),
            Places(self.movers),
            cost=FixedCost(0.1),
        )
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(self.pool, self.block_size, self.scheduler.limits, self.tiers)
        self.model = UniformModel(
            num_blocks=num_blocks,
            block_size=self.block_size,
            vocab_size=VOCAB,
            fail_row=lambda row: "NaN" if row.seq_id in self.failing else None,
            host=self.host,
        )

    def work(self, index: int) -> None:
        self.movers[index].work_off()

    def settle(self) -> None:
        """Run until nothing is left; clocks and I/O go on when there is nothing else to do."""
        for _ in range(6000):
            if not self.step():
                if not self.scheduler.has_work:
                    return
                assert self.scheduler.wait_s is not None, "live, no step, and nothing to wait for"
                self.clock.advance(self.scheduler.wait_s / 2 + 0.001)
                self.work(0)
                self.work(1)
        raise AssertionError("work is left after 6000 steps")


@st.composite
def stories(draw: st.DrawFn) -> tuple[TieredWorld, list[Shape], list[tuple[str, int]], int]:
    num_blocks, block_size = draw(st.integers(2, 10)), draw(st.integers(1, 4))
    limits = SchedulerLimits(
        max_num_seqs=draw(st.integers(1, 5)),
        max_step_tokens=draw(st.integers(1, 12)),
        max_context=draw(st.integers(2, 40)),
        max_waiting=64,
        prefix_policy=draw(st.sampled_from(["lru", "cost"])),
    )
    context = min(limits.max_context, num_blocks * block_size)
    world = TieredWorld(draw(st.integers(1, 16)), num_blocks, block_size, limits, draw(st.sampled_from(PIPELINES)))
    coming = draw(st.lists(shapes(context), min_size=1, max_size=8))
    kinds = ["arrive", "arrive", "step", "step", "step", "step", "io", "io", "fault", "abort", "fail", "late"]
    acts = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 15)), max_size=70))
    return world, coming, acts, context


@settings(max_examples=250, deadline=None)
@given(stories(), st.booleans(), st.sampled_from(FAULTS), st.sampled_from(FAULTS))
def test_whatever_places_do_each_sequence_has_the_answer_it_has_alone(
    story: tuple, restarts: bool, near: str, far: str
) -> None:
    world, coming, acts, context = story
    aborted: set[int] = set()
    for turn in range(2 if restarts else 1):
        arrived, first = 0, 10 * turn
        for act, number in acts:
            if act == "arrive" and arrived < len(coming):
                world.submit(coming[arrived].make(first + arrived, world.clock.now()))
                arrived += 1
            elif act == "abort":
                world.abort(first + number % 8)
                aborted.add(first + number % 8)
            elif act == "fail" and turn == 0:
                world.failing.add(number % 8)
            elif act == "step":
                world.step()
            elif act == "io":
                world.work(number % 2)
            elif act == "late":
                world.clock.advance(number / 4)
            elif act == "fault":
                world.places[number % 2].fault = FAULTS[number % len(FAULTS)]
        for number in range(arrived, len(coming)):
            world.submit(coming[number].make(first + number, world.clock.now()))
        world.settle()
        assert world.pool.num_free + world.scheduler.num_pinned_blocks == world.pool.num_blocks
        for number, shape in enumerate(coming):
            check_answer(world, shape, first + number, aborted, context)
        if restarts and turn == 0:
            step = world.scheduler.save_all(world.clock.now())
            if step is not None:
                world.model.launch(step).result()
            world.tiers.stop(world.clock, 1.0)
            world.restart(world.pool.num_blocks)
            world.places[0].fault, world.places[1].fault = near, far


def check_answer(world: World, shape: Shape, seq_id: int, aborted: set[int], context: int) -> None:
    events = world.events[seq_id]
    output = [event.sample.token_id for event in events if event.sample is not None]
    expected, finish = world.alone(seq_id, shape)
    assert [event.finish is not None for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1].finish
    if last is FinishReason.EXPIRED:
        assert shape.urgency.deadline_s is not None
        assert not output
    elif last is FinishReason.ABORT or last is FinishReason.ERROR:
        assert seq_id in (aborted if last is FinishReason.ABORT else world.failing)
        assert output == expected[: len(output)]
    else:
        assert (output, last) == (expected, finish)
