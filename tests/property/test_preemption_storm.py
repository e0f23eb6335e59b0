"""A pool that is far too small for what has been let in: sequences take each other's blocks, and all come to an end."""

from __future__ import annotations

from collections import Counter, deque
from random import Random

import pytest

from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import SchedulingSettings
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing import UniformModel

NUM_BLOCKS, BLOCK, NUM_LONG, LENGTH = 40, 4, 60, 90


class Storm:
    """Serves what is submitted, as the engine does, and counts what came of it."""

    def __init__(self, *, plans_ahead: bool, prefix_cache: bool) -> None:
        limits = SchedulerLimits(
            max_num_seqs=32,
            max_step_tokens=64,
            max_context=NUM_BLOCKS * BLOCK,
            max_waiting=9999,
            prefix_cache=prefix_cache,
            policy=SchedulingSettings(max_wait_s=None, output_ratio=0.0),
            plans_ahead=plans_ahead,
        )
        self.pool = BlockPool(NUM_BLOCKS)
        self.scheduler = Scheduler(self.pool, BLOCK, limits)
        self.random = Random(5)
        self.outputs: Counter[int] = Counter()
        self.num_submitted = self.num_ended = self.num_steps = 0
        self._model = UniformModel(num_blocks=NUM_BLOCKS, block_size=BLOCK, vocab_size=2)

    def submit(self, stop_token_ids: frozenset[int] = frozenset()) -> None:
        prompt = [self.random.randrange(2) for _ in range(self.random.randrange(1, 6))]
        self.scheduler.submit(
            Sequence(
                SeqId(self.num_submitted),
                prompt,
                SamplingParams(temperature=0.0),
                max_tokens=LENGTH,
                stop_token_ids=stop_token_ids,
            )
        )
        self.num_submitted += 1

    def serve(self) -> None:
        pending = deque()
        while self.scheduler.has_work or pending:
            while not pending or self.scheduler.can_overlap:
                if (step := self.scheduler.schedule(self.num_steps * 1e-3)) is None:
                    break
                pending.append((step, self._model.launch(step)))
            step, result = pending.popleft()  # there is one: work without a step would be work that never ends
            self.num_steps += 1
            for event in self.scheduler.commit(step, result.result(), self.num_steps * 1e-3):
                self.outputs[event.seq_id] += event.sample is not None
                self.num_ended += event.finish is not None
            if self.num_steps % 50 == 0:
                self.scheduler.check()


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("plans_ahead", [False, True])
def test_a_storm_of_preemptions_gets_on_and_leaves_every_block_free(plans_ahead: bool, prefix_cache: bool) -> None:
    storm = Storm(plans_ahead=plans_ahead, prefix_cache=prefix_cache)
    # Answers of one token teach the scheduler to keep nothing free for those that follow, which want twenty blocks.
    for _ in range(100):
        storm.submit(frozenset({0, 1}))
    storm.serve()
    for _ in range(NUM_LONG):
        storm.submit()
    storm.serve()
    storm.scheduler.check()
    totals, pool = storm.scheduler.totals, storm.pool
    assert totals.num_preemptions > 5
    assert storm.num_ended == storm.num_submitted
    assert all(storm.outputs[seq_id] == LENGTH for seq_id in range(100, 100 + NUM_LONG))
    # Somebody gets on in every step, and the tax stays small because room is learned from what was taken.
    assert storm.num_steps <= totals.generated_tokens + totals.recomputed_tokens
    assert totals.recomputed_tokens < totals.generated_tokens / 4
    assert pool.num_free == NUM_BLOCKS  # cached ones included
    assert not any(map(pool.num_holders, range(NUM_BLOCKS)))
