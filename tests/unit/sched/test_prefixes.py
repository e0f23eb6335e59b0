"""The prefix cache seen through the scheduler, on a model that reads its answers back from the blocks it is given."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.core.delta import FinishReason
from headrace.core.errors import InvalidRequest
from headrace.core.request import Request, RequestId, SamplingParams, SeqId, StopRules
from headrace.core.settings import SchedulingSettings
from headrace.core.step import Row, Step
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence, sequences_of
from headrace.testing import UniformModel, next_token

BLOCK, VOCAB = 4, 50
SYSTEM = list(range(20))  # five full blocks


class World:
    """A scheduler with a cache, stepped by hand."""

    def __init__(self, num_blocks: int = 64, **changes: Any) -> None:
        limits = {"max_num_seqs": 16, "max_step_tokens": 64, "max_context": 200, "max_waiting": 99} | changes
        self.pool = BlockPool(num_blocks)
        # Answers are taken to be short, so that pools run dry and preemption has work to do.
        policy = SchedulingSettings(output_ratio=0.0)
        self.scheduler = Scheduler(self.pool, BLOCK, SchedulerLimits(policy=policy, **limits))
        self.failing: set[int] = set()
        self.model = UniformModel(
            num_blocks=num_blocks,
            block_size=BLOCK,
            vocab_size=VOCAB,
            fail_row=lambda row: "NaN" if row.seq_id in self.failing else None,
        )
        self.now = 0.0
        self.rows: list[Row] = []
        self.outputs: dict[int, list[int]] = {}
        self.ends: dict[int, FinishReason] = {}
        self.cached: dict[int, int] = {}

    def submit(self, seq_id: int, prompt: list[int], max_tokens: int = 3, **fields: Any) -> Sequence:
        sequence = Sequence(SeqId(seq_id), prompt, SamplingParams(), max_tokens=max_tokens, **fields)
        self.scheduler.submit(sequence, self.now)
        return sequence

    def launch(self) -> tuple[Step, Any]:
        step = self.scheduler.schedule(self.now)
        assert step is not None
        self.scheduler.check()
        self.rows += step.rows
        return step, self.model.launch(step)

    def commit(self, launched: tuple[Step, Any]) -> None:
        step, pending = launched
        for event in self.scheduler.commit(step, pending.result(), self.now):
            if event.sample is not None:
                self.outputs.setdefault(event.seq_id, []).append(event.sample.token_id)
            if event.finish is not None and event.timing is not None:
                self.ends[event.seq_id] = event.finish
                self.cached[event.seq_id] = event.timing.num_cached
        self.scheduler.check()

    def run(self) -> None:
        while self.scheduler.has_work:
            self.commit(self.launch())

    def num_computed(self, *seq_ids: int) -> int:
        return sum(len(row.tokens) for row in self.rows if row.seq_id in seq_ids)


def answer(prompt: list[int], max_tokens: int = 3) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens, SamplingParams(), VOCAB))
    return tokens[len(prompt) :]


def test_a_shared_prefix_is_computed_once() -> None:
    world = World()
    world.submit(0, [*SYSTEM, 30])
    world.run()
    world.submit(1, [*SYSTEM, 31, 32])
    world.run()
    assert world.cached == {0: 0, 1: 20}
    assert world.num_computed(1) == 2 + 2  # the question, and two of three answer tokens
    assert world.outputs[1] == answer([*SYSTEM, 31, 32])
    assert world.pool.num_free == 64


def test_the_last_token_is_computed_even_when_all_is_cached() -> None:
    world = World()
    for seq_id in range(2):
        world.submit(seq_id, SYSTEM)
        world.run()
    assert world.cached[1] == 16
    assert world.outputs[0] == world.outputs[1] == answer(SYSTEM)


def test_generated_tokens_are_found_by_the_next_turn() -> None:
    world = World()
    world.submit(0, SYSTEM, max_tokens=9)
    world.run()
    turn = [*SYSTEM, *world.outputs[0], 7, 7]
    world.submit(1, turn)
    world.run()
    assert world.cached[1] == 28  # 20 of the prompt, two full blocks of nine answer tokens
    assert world.outputs[1] == answer(turn)


def test_equal_prompts_that_come_together_wait_for_the_first() -> None:
    world = World(max_step_tokens=8)
    for seq_id in range(8):
        world.submit(seq_id, [*SYSTEM, 30])
    world.run()
    assert world.num_computed(0) == 21 + 2
    assert world.cached == dict.fromkeys(range(1, 8), 20) | {0: 0}
    assert all(output == answer([*SYSTEM, 30]) for output in world.outputs.values())


def test_what_waits_for_a_prefix_holds_up_nobody_else() -> None:
    world = World(max_step_tokens=24)
    world.submit(0, [*SYSTEM, 30])
    world.submit(1, [*SYSTEM, 31])
    world.submit(2, [40, 41])
    step, _ = world.launch()
    assert [row.seq_id for row in step.rows] == [0, 2]


def test_waiting_for_a_prefix_ends_with_the_one_that_fills_it() -> None:
    world = World(max_step_tokens=8)
    world.submit(0, [*SYSTEM, 30])
    world.submit(1, [*SYSTEM, 31])
    world.commit(world.launch())
    world.scheduler.abort(SeqId(0))
    world.run()
    assert world.cached[1] == 8  # what the first step had published
    assert world.outputs[1] == answer([*SYSTEM, 31])


def test_a_chunk_can_be_shared_before_its_prompt_is_done() -> None:
    world = World(max_step_tokens=9)
    world.submit(0, SYSTEM)
    world.submit(1, [*SYSTEM[:8], 44, 45])
    world.commit(world.launch())
    world.run()
    assert world.cached[1] == 8


def test_namespaces_do_not_meet() -> None:
    world = World()
    for seq_id, namespace in enumerate(["a", "b", "a"]):
        world.submit(seq_id, [*SYSTEM, 1], namespace=namespace)
        world.run()
    assert world.cached == {0: 0, 1: 0, 2: 20}


def test_without_a_cache_nothing_is_shared() -> None:
    world = World(prefix_cache=False)
    for seq_id in range(2):
        world.submit(seq_id, SYSTEM)
        world.run()
    assert world.cached == {0: 0, 1: 0}
    assert world.pool.num_cached == 0


def test_blocks_of_an_unfinished_step_are_not_published() -> None:
    world = World()
    world.submit(0, [*SYSTEM, 30])
    launched = world.launch()
    world.scheduler.abort(SeqId(0))
    world.scheduler.check()
    world.commit(launched)
    assert world.pool.num_cached == 0
    world.submit(1, [*SYSTEM, 30])
    world.run()
    assert world.cached[1] == 0


def test_a_failed_sequence_takes_back_what_it_published() -> None:
    world = World(max_step_tokens=8)
    world.submit(0, SYSTEM[:8])
    world.run()
    world.submit(1, [*SYSTEM, 30])
    world.commit(world.launch())  # positions 4 to 11: one good block, or so it seems
    world.failing.add(1)
    world.run()
    assert world.ends[1] is FinishReason.ERROR
    world.submit(2, [*SYSTEM, 30])
    world.run()
    assert world.cached[2] == 8  # what sequence 0 left, and nothing of sequence 1
    assert world.outputs[2] == answer([*SYSTEM, 30])


def test_a_duplicate_is_swapped_for_the_published_block_and_fenced() -> None:
    world = World(max_step_tokens=42)
    world.submit(0, [*SYSTEM, 30], max_tokens=9)
    world.submit(1, [*SYSTEM, 30], prompt_logprobs=0, max_tokens=9)  # scores its prompt, so it cannot share it
    first = world.launch()
    assert [len(row.tokens) for row in first[0].rows] == [21, 21]
    world.commit(first)
    world.run()
    assert world.num_computed(1) == 21 + 8
    assert world.outputs[0] == world.outputs[1] == answer([*SYSTEM, 30], 9)
    assert world.pool.num_free == 64


def test_a_swapped_block_stays_until_the_step_in_flight_has_ended() -> None:
    world = World(max_step_tokens=24)
    world.submit(0, [*SYSTEM, 30], max_tokens=1)
    slow = world.submit(1, [*SYSTEM, *range(30, 45)], prompt_logprobs=0, max_tokens=1)
    first, second = world.launch(), world.launch()
    assert slow.num_in_flight >= 1
    world.commit(first)
    third = world.launch() if world.scheduler.has_work and slow.num_computed < 35 else None
    world.commit(second)
    if third is not None:
        world.commit(third)
    world.run()
    assert world.outputs[1] == answer([*SYSTEM, *range(30, 45)], 1)
    assert world.pool.num_free == 64


def test_a_cached_prefix_goes_before_an_earlier_stranger_but_not_for_ever() -> None:
    world = World(max_num_seqs=1)
    world.submit(0, [*SYSTEM, 30])
    world.run()
    world.submit(1, list(range(25, 45)))
    world.now = 0.5
    world.submit(2, [*SYSTEM, 31])
    assert world.launch()[0].rows[0].seq_id == 2
    late = World(max_num_seqs=1)
    late.submit(0, [*SYSTEM, 30])
    late.run()
    late.submit(1, list(range(25, 45)))
    late.now = 1.5
    late.submit(2, [*SYSTEM, 31])
    assert late.launch()[0].rows[0].seq_id == 1


def test_the_least_recently_used_prefix_makes_room_tail_first() -> None:
    world = World(num_blocks=12)
    old, new = SYSTEM, [t + 25 for t in SYSTEM]
    for seq_id, prompt in enumerate([old, new]):
        world.submit(seq_id, prompt, max_tokens=1)
        world.run()
    assert world.pool.num_cached == 10
    world.submit(2, [3] * 15, max_tokens=1)  # four blocks: two free, two of the oldest tail
    world.run()
    for seq_id, prompt in ((3, [*old, 9]), (4, [*new, 9])):
        world.submit(seq_id, prompt, max_tokens=1)
    sequences = {s.seq_id: s for s in world.scheduler.live()}  # looked up before anything is evicted for them
    found = {seq_id: world.scheduler._memory.prefixes.find(sequence) for seq_id, sequence in sequences.items()}  # type: ignore[union-attr]
    assert found == {3: 3, 4: 5}


def test_a_preempted_sequence_finds_what_it_published() -> None:
    world = World(num_blocks=10, max_context=40)
    for seq_id in range(2):
        world.submit(seq_id, [seq_id + 10] * 11, max_tokens=20)
    world.run()
    assert world.scheduler.totals.num_preemptions > 0
    plain = World(num_blocks=10, max_context=40, prefix_cache=False)
    for seq_id in range(2):
        plain.submit(seq_id, [seq_id + 10] * 11, max_tokens=20)
    plain.run()
    assert world.scheduler.totals.recomputed_tokens < plain.scheduler.totals.recomputed_tokens
    for seq_id in range(2):
        assert world.outputs[seq_id] == answer([seq_id + 10] * 11, 20)


@pytest.mark.parametrize("num_choices", [8])
def test_choices_cost_about_one_prompt(num_choices: int) -> None:
    world = World(num_blocks=200, max_step_tokens=128)
    prompt = [(7 * i) % VOCAB for i in range(102)]
    for seq_id in range(num_choices):
        world.submit(seq_id, prompt, max_tokens=1)
    world.run()
    assert world.scheduler.totals.prompt_tokens == 102 + 7 * 2
    assert (world.scheduler.totals.prefix_queries, world.scheduler.totals.prefix_hits) == (8 * 102, 7 * 100)


def test_sequences_that_share_all_their_blocks_give_way_too() -> None:
    world = World(num_blocks=6, max_context=24, max_step_tokens=16)
    world.submit(0, [40] * 4, max_tokens=16)
    for seq_id in (1, 2, 3):
        world.submit(seq_id, [9] * 8, max_tokens=8)
    world.run()
    assert world.outputs[0] == answer([40] * 4, 16)
    assert all(world.outputs[seq_id] == answer([9] * 8, 8) for seq_id in (1, 2, 3))
    assert world.pool.num_free == 6


def test_a_pinned_prompt_outlives_a_full_pool_until_its_time_is_up() -> None:
    world = World(num_blocks=16)
    world.submit(0, SYSTEM, max_tokens=0, pin_s=10.0)
    world.run()
    assert world.scheduler.num_pinned_blocks == 5
    for seq_id in range(1, 6):
        world.submit(seq_id, [seq_id] * 30)
        world.run()
    world.submit(6, [*SYSTEM, 7])
    world.run()
    assert world.cached[6] == len(SYSTEM)
    world.now = 10.0
    world.submit(7, [7] * 40)
    world.run()
    assert world.scheduler.num_pinned_blocks == 0


def test_a_pin_gives_way_to_a_sequence_that_would_else_never_run() -> None:
    world = World(num_blocks=10)
    world.submit(0, SYSTEM, max_tokens=0, pin_s=1e9)
    world.run()
    assert world.scheduler.num_pinned_blocks == 5
    world.submit(1, [9] * 30, max_tokens=9)
    world.run()
    assert world.ends[1] is FinishReason.LENGTH
    assert world.scheduler.num_pinned_blocks == 0


def test_a_pin_of_an_answered_request_holds_its_prompt_only() -> None:
    world = World()
    world.submit(0, SYSTEM, max_tokens=9, pin_s=10.0)
    world.run()
    assert world.scheduler.num_pinned_blocks == 5


def test_too_long_a_prompt_is_refused_a_pin_before_it_is_computed() -> None:
    scheduler = World(num_blocks=10).scheduler
    scheduler.check_pin(5 * BLOCK)
    with pytest.raises(InvalidRequest, match="takes 6 blocks; at most 5 of this server's 10 may be pinned"):
        scheduler.check_pin(6 * BLOCK)
    with pytest.raises(InvalidRequest, match="prefix_cache is off"):
        World(prefix_cache=False).scheduler.check_pin(1)


def test_tenants_do_not_share_prefixes_unless_the_server_says_so() -> None:
    request = Request(
        request_id=RequestId("r"), model="m", prompt=(1,), sampling=SamplingParams(), stop=StopRules(max_tokens=1)
    )
    replace = msgspec.structs.replace
    (theirs,) = sequences_of(replace(request, tenant="acme"), 0)
    (common,) = sequences_of(replace(request, tenant="acme", namespace="public"), 0)
    (alone,) = sequences_of(request, 0)
    assert (theirs.namespace, common.namespace, alone.namespace) == ("acme", "public", "")
