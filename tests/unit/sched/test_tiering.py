"""What the scheduler gives to the places below the pool and gets back, on a model that reads what was copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.core.step import CopyKind, Step
from headrace.kv import BlockPool
from headrace.kv.tiers import KeyChain, Places, TierHierarchy
from headrace.kv.transfer import DiskTransport, FrameCodec, HostPool, Mover
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing import FixedCost, UniformModel, VirtualClock, next_token
from headrace.testing.uniform_model import TOKEN_BYTES

BLOCK, VOCAB = 4, 50
SYSTEM = list(range(20))  # five full blocks
SECRET, FORMAT = b"s" * 32, b"f" * 16


class World:
    """A scheduler above host memory and a directory; the disk's thread is played by `work`."""

    def __init__(self, path: Path, *, num_blocks: int = 64, num_slots: int = 32, token_s: float = 1.0) -> None:
        self.clock = VirtualClock()
        host = HostPool(num_slots, BLOCK * TOKEN_BYTES)
        codec = FrameCodec(SECRET, FORMAT, host.block_bytes)
        self.disk = Mover("disk", DiskTransport(path / "kv", 1 << 20, self.clock), codec, host, self.clock)
        self.tiers = TierHierarchy(
            num_slots,
            host.block_bytes,
            KeyChain(SECRET, FORMAT),
            Places([self.disk]),
            copy_s=0.1,
            wait_s=60.0,
            cost=FixedCost(token_s),
        )
        limits = SchedulerLimits(
            max_num_seqs=8, max_step_tokens=64, max_context=99, max_waiting=9, policy=SchedulingSettings(output_ratio=0)
        )
        self.scheduler = Scheduler(BlockPool(num_blocks), BLOCK, limits, self.tiers)
        self.model = UniformModel(num_blocks=num_blocks, block_size=BLOCK, vocab_size=VOCAB, host=host)
        self.outputs: dict[int, list[int]] = {}
        self.cached: dict[int, int] = {}
        self.steps: list[Step] = []

    def submit(self, seq_id: int, prompt: list[int], max_tokens: int = 2, **fields: Any) -> None:
        sequence = Sequence(SeqId(seq_id), prompt, SamplingParams(), max_tokens=max_tokens, **fields)
        self.scheduler.submit(sequence, self.clock.now())

    def step(self) -> bool:
        step = self.scheduler.schedule(self.clock.now())
        if step is None:
            return False
        self.steps.append(step)
        for event in self.scheduler.commit(step, self.model.launch(step).result(), self.clock.now()):
            if event.sample is not None:
                self.outputs.setdefault(event.seq_id, []).append(event.sample.token_id)
            if event.timing is not None:
                self.cached[event.seq_id] = event.timing.num_cached
        self.scheduler.check()
        return True

    def run(self, seq_id: int, prompt: list[int], max_tokens: int = 2, **fields: Any) -> int:
        """Serve one request; return how much of its prompt was not computed. Its answer must be right."""
        self.submit(seq_id, prompt, max_tokens, **fields)
        while self.scheduler.has_work:
            if not self.step():
                self.disk.work_off()
        tokens = list(prompt)
        for token in self.outputs.get(seq_id, []):
            assert token == next_token(tokens, SamplingParams(), VOCAB)
            tokens.append(token)
        return self.cached.get(seq_id, 0)

    def end(self) -> None:
        """The process ends in good order."""
        step = self.scheduler.save_all(self.clock.now())
        if step is not None:
            self.model.launch(step).result()
        self.tiers.stop(self.clock, 1.0)

    @property
    def num_on_disk(self) -> int:
        self.disk.work_off()
        return self.disk.stats().num_stored


def test_a_prompt_goes_to_disk_when_it_is_used_a_second_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(0, [*SYSTEM, 30])
    assert world.num_on_disk == 0
    world.run(1, [*SYSTEM, 31])
    assert world.num_on_disk == 5
    world.run(2, [*SYSTEM, 32])
    assert world.num_on_disk == 5


def test_a_new_process_waits_for_the_disk_and_computes_only_the_rest(tmp_path: Path) -> None:
    first = World(tmp_path)
    first.run(0, [*SYSTEM, 30])
    first.end()
    second = World(tmp_path)
    second.submit(0, [*SYSTEM, 31])
    assert not second.step(), "the disk is asked first"
    assert second.scheduler.wait_s == 20.0, "as long as computing would take"
    assert second.run(1, [*SYSTEM, 32]) == len(SYSTEM)
    assert second.cached[0] == len(SYSTEM)
    loads = [copy for copy in second.steps[0].copies if copy.kind is CopyKind.LOAD]
    assert len(loads) == 5


def test_a_disk_that_does_not_answer_is_waited_for_no_longer_than_computing_takes(tmp_path: Path) -> None:
    world = World(tmp_path, token_s=0.01)
    world.submit(0, [*SYSTEM, 30])
    assert not world.step()
    world.clock.advance(0.19)
    assert not world.step()
    world.clock.advance(0.02)
    assert world.step()
    assert world.steps[0].num_tokens == len(SYSTEM) + 1


def test_what_memory_cannot_hold_at_the_end_is_left_out_from_the_tail(tmp_path: Path) -> None:
    first = World(tmp_path, num_slots=8)
    first.run(0, [i % VOCAB for i in range(60)], max_tokens=1)
    first.end()
    second = World(tmp_path)
    assert second.run(0, [i % VOCAB for i in range(60)]) == 8 * BLOCK


def test_a_preempted_sequence_is_swapped_if_that_is_cheaper_and_else_recomputed(tmp_path: Path) -> None:
    for token_s, num_swaps in ((1.0, 1), (0.01, 0)):
        world = World(tmp_path / str(token_s), num_blocks=12, token_s=token_s)
        world.submit(0, list(range(20)), max_tokens=28)
        world.submit(1, list(range(25, 45)), max_tokens=9)
        while world.scheduler.has_work:
            if not world.step():
                world.clock.advance(1.0)
        totals = world.scheduler.totals
        assert totals.num_preemptions >= 1
        assert (totals.num_swaps > 0) == (num_swaps > 0)
        if num_swaps:
            assert totals.recomputed_tokens < BLOCK * totals.num_preemptions + 1, "only the last partial block"
        for seq_id, prompt in ((0, list(range(20))), (1, list(range(25, 45)))):
            tokens = list(prompt)
            for token in world.outputs[seq_id]:
                assert token == next_token(tokens, SamplingParams(), VOCAB)
                tokens.append(token)
        assert world.tiers.host.num_held == 0


def test_a_pinned_prompt_is_on_disk_after_the_next_step(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.run(0, SYSTEM, max_tokens=0, pin_s=60.0)
    world.run(1, [7, 8, 9])
    assert world.num_on_disk == 5


def test_tenants_find_nothing_of_each_other_on_disk(tmp_path: Path) -> None:
    first = World(tmp_path)
    first.run(0, [*SYSTEM, 30], namespace="acme")
    first.end()
    second = World(tmp_path)
    assert second.run(0, [*SYSTEM, 30], namespace="other") == 0
    assert second.run(1, [*SYSTEM, 30], namespace="acme") == len(SYSTEM)
