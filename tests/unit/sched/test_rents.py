"""What cached blocks have been resting for is owed once, by those whose first step uses them."""

from __future__ import annotations

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing import UniformModel

BLOCK, S = 4, 10**9
SYSTEM = list(range(20))  # five full blocks


class World:
    """A scheduler with a cache, stepped by hand at the times that a test says."""

    def __init__(self, num_blocks: int = 64) -> None:
        limits = SchedulerLimits(
            max_num_seqs=16,
            max_step_tokens=64,
            max_context=200,
            max_waiting=99,
            policy=SchedulingSettings(output_ratio=0.0),
        )
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(self.pool, BLOCK, limits)
        self.model = UniformModel(num_blocks=num_blocks, block_size=BLOCK, vocab_size=50)

    def ask(self, now: float, *seq_ids: int, prompt: list[int] = SYSTEM, max_tokens: int = 1) -> None:
        for seq_id in seq_ids:
            sequence = Sequence(SeqId(seq_id), [*prompt, 40 + seq_id], SamplingParams(), max_tokens=max_tokens)
            self.scheduler.submit(sequence, now)

    def step(self, now: float) -> list[tuple[int, int, int]]:
        """Make a step of a second; return who owes what."""
        self.scheduler.note_time(now)
        step = self.scheduler.schedule(now)
        assert step is not None
        owed = [tuple(each) for each in self.scheduler.owed]
        self.scheduler.note_time(now + 1)
        self.scheduler.commit(step, self.model.launch(step).result(), now + 1)
        self.scheduler.check()
        return owed  # type: ignore[return-value]


def test_who_finds_a_prefix_owes_for_the_time_since_it_was_used_last() -> None:
    world = World()
    world.ask(0.0, 1)
    assert world.step(0.0) == []
    assert world.scheduler.num_cached_blocks == 5
    world.ask(7.0, 2)
    assert world.step(11.0) == [(2, 5 * 10 * S, 20)]
    world.ask(12.0, 3)
    assert world.step(14.0) == [(3, 5 * 2 * S, 20)]


def test_those_who_find_it_in_one_step_owe_equal_parts_and_the_next_only_what_is_left() -> None:
    world = World()
    world.ask(0.0, 1)
    world.step(0.0)
    world.ask(1.0, 2, 3, max_tokens=5)
    assert world.step(9.0) == [(2, 5 * 4 * S, 20), (3, 5 * 4 * S, 20)]
    world.ask(10.0, 4)
    assert world.step(10.0) == []  # 2 and 3 still hold it


def test_what_was_preempted_owes_nothing_for_coming_back() -> None:
    world = World(num_blocks=12)
    world.ask(0.0, 1, prompt=SYSTEM, max_tokens=20)
    world.ask(0.0, 2, prompt=[30, *SYSTEM], max_tokens=20)
    owed: list[tuple[int, int, int]] = []
    now = 0.0
    while world.scheduler.has_work:
        owed += world.step(now)
        now += 5
    assert world.scheduler.totals.num_preemptions > 0
    assert owed == []
