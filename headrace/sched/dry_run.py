"""Steps for warming up: they take the path of real steps, and their results are thrown away.

They write to blocks of a pool that is still empty; every slot is written again before a real row reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.sched.scheduler import Scheduler

_NUM_PROMPT_TOKENS = 32
_NUM_DECODE_ROWS = 8


def dry_steps(scheduler: Scheduler) -> Iterator[Step]:
    """Yield a prompt chunk, a small batch of single tokens and one single token, each a step of its own."""
    size = scheduler.block_size
    greedy = SamplingParams(temperature=0.0)
    length = min(_NUM_PROMPT_TOKENS, scheduler.max_context, scheduler.limits.max_step_tokens)
    yield _dry(scheduler, [Row(SeqId(0), 0, [0] * length, tuple(range(-(-length // size))), greedy)])
    batch = min(_NUM_DECODE_ROWS, scheduler.num_blocks, scheduler.limits.max_num_seqs, scheduler.limits.max_step_tokens)
    for num_rows in sorted({batch, 1}, reverse=True):
        yield _dry(scheduler, [Row(SeqId(i), 0, [0], (i,), greedy) for i in range(num_rows)])


def _dry(scheduler: Scheduler, rows: list[Row]) -> Step:
    return Step(scheduler.take_step_id(), tuple(rows), is_dry_run=True)
