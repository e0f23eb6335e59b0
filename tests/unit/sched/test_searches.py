"""How searches end when nobody waits for them: all answers at once, whichever of them was given up."""

from __future__ import annotations

import pytest

from headrace.core.delta import FinishReason
from headrace.core.request import BeamParams, Request, RequestId, SamplingParams, SeqId, StopRules
from headrace.kv import BlockPool
from headrace.sched import Scheduler, SchedulerLimits, sequences_of
from headrace.testing import UniformModel

NUM_BLOCKS = 40


def searching(*, deadline_s: float | None = None, num_steps: int) -> Scheduler:
    """A search of three beams for two answers, sequences 0 to 2, after so many steps."""
    limits = SchedulerLimits(max_num_seqs=6, max_step_tokens=4, max_context=30, max_waiting=9)
    scheduler = Scheduler(BlockPool(NUM_BLOCKS), 2, limits)
    request = Request(
        request_id=RequestId("r"),
        model="m",
        prompt=tuple(range(9)),
        sampling=SamplingParams(temperature=0.0),
        stop=StopRules(max_tokens=8),
        n=2,
        beam=BeamParams(width=3),
        deadline_s=deadline_s,
    )
    for sequence in sequences_of(request, 0):
        scheduler.submit(sequence)
    model = UniformModel(num_blocks=NUM_BLOCKS, block_size=2, vocab_size=20)
    for _ in range(num_steps):
        step = scheduler.schedule(0.0)
        assert step is not None
        assert scheduler.commit(step, model.launch(step).result(), 0.0) == []
    return scheduler


@pytest.mark.parametrize("num_steps", [0, 1, 5])
@pytest.mark.parametrize("answer", [0, 1])
def test_giving_up_one_answer_ends_the_whole_search(answer: int, num_steps: int) -> None:
    scheduler = searching(num_steps=num_steps)
    assert scheduler.abort(SeqId(2)) == []  # it bears no answer
    events = scheduler.abort(SeqId(answer))
    assert [(event.seq_id, event.finish) for event in events] == [(0, FinishReason.ABORT), (1, FinishReason.ABORT)]
    assert scheduler.abort(SeqId(1 - answer)) == []
    scheduler.check()
    assert not scheduler.has_work
    assert scheduler.num_free_blocks == NUM_BLOCKS


def test_a_search_that_is_late_says_so_once_for_each_answer() -> None:
    scheduler = searching(deadline_s=1.0, num_steps=1)
    events = scheduler.expire(2.0)
    assert [(event.seq_id, event.finish) for event in events] == [(0, FinishReason.EXPIRED), (1, FinishReason.EXPIRED)]
    scheduler.check()
    assert not scheduler.has_work
