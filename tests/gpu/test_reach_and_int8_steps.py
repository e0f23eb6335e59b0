"""Windows, sinks and int8 KV in whole steps: planned by the scheduler, blocks that leave the tables and all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from headrace.core.protocols import Executor
from headrace.core.request import Reach, SamplingParams, SeqId, WantedReach
from headrace.core.settings import KvDtype
from headrace.core.step import Row, Step
from headrace.executor import ReferenceExecutor
from headrace.executor.cuda.block_tables import BlockTables
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.kv import BlockPool
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing.checkpoints import Family, write_checkpoint

BLOCKS, BLOCK_SIZE, STEP_TOKENS, OUTPUT = 24, 8, 24, 3
GREEDY = SamplingParams(temperature=0.0)
PROMPTS = [[(37 * i + 11) % 256 for i in range(81)], [5, 6, 7]]


class Case(NamedTuple):
    """What is served; `reach` is the server's, `wanted` that of the first request."""

    family: Family
    kv_dtype: KvDtype = "auto"
    reach: Reach | None = None
    wanted: WantedReach | None = None


def serve(executor: Executor, case: Case, widest_window: int | None) -> tuple[list[list[int]], int]:
    """Return the tokens of both requests, and the most blocks that had left the first one's table."""
    limits = SchedulerLimits(
        max_num_seqs=2, max_step_tokens=STEP_TOKENS, max_context=110, max_waiting=2, reach=case.reach,
        widest_window=widest_window, prefix_cache=False,  # nobody may come back for them: blocks leave at once
    )  # fmt: skip
    scheduler = Scheduler(BlockPool(BLOCKS), BLOCK_SIZE, limits)
    for i, prompt in enumerate(PROMPTS):
        wanted = case.wanted if i == 0 else None
        scheduler.submit(Sequence(SeqId(i), prompt, GREEDY, max_tokens=OUTPUT, reach=wanted))
    tokens: list[list[int]] = [[], []]
    most = 0
    while scheduler.has_work:
        step = scheduler.schedule(0.0)
        assert step is not None
        result = executor.launch(step).result()
        assert result.failures == {}
        most = max(most, *(row.num_evicted for row in step.rows))
        for event in scheduler.commit(step, result, 0.0):
            if event.sample is not None:
                tokens[event.seq_id].append(event.sample.token_id)
    executor.shutdown()
    return tokens, most


@pytest.mark.parametrize(
    "case",
    [
        Case("llama", reach=Reach(window=12, num_sinks=5)),
        Case("llama", "int8", wanted=WantedReach(window=12, num_sinks=9)),
        Case("mistral", "int8"),  # a window of its own: the scheduler gives back blocks that no layer reads
    ],
)
def test_tokens_are_those_of_the_reference(tmp_path: Path, device: str, case: Case) -> None:
    path = write_checkpoint(tmp_path / case.family, case.family, num_hidden_layers=1)
    with open_checkpoint(path) as checkpoint:
        program = build_program(checkpoint.config)
        options = DeviceOptions(
            device=device, dtype="float32", max_rows=2, max_step_tokens=STEP_TOKENS, kv_dtype=case.kv_dtype,
            has_reach=case.reach is not None,
        )  # fmt: skip
        cuda = CudaExecutor(program, checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE, options=options)
        reference = ReferenceExecutor(
            program, checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE, kv_dtype=case.kv_dtype
        )
    expected, most = serve(reference, case, program.widest_window())
    assert most > 0
    assert serve(cuda, case, program.widest_window()) == (expected, most)


@pytest.mark.parametrize("num_lines", [5, 3])
def test_a_line_says_where_every_block_is_that_may_be_read(num_lines: int) -> None:
    random = np.random.RandomState(0)
    tables = BlockTables(torch.device("cpu"), num_lines=num_lines, width=64, block_size=4)
    reach = Reach(window=13, num_sinks=6)  # two blocks of sinks stay in front
    held: list[list[int]] = [[] for _ in range(5)]
    evicted, length = [0] * 5, [0] * 5
    num_written = num_blocks = 0
    for step_id in range(150):
        rows = []
        for seq in random.choice(5, 2, replace=False).tolist():
            blocks = held[seq]
            if length[seq] > 200 or random.rand() < 0.02:  # preempted: it begins again in other blocks
                held[seq] = blocks = []
                evicted[seq] = length[seq] = 0
            start = length[seq]
            length[seq] = start + random.randint(1, 6)
            if (gone := reach.num_evictable(start, 4) - evicted[seq]) > 0:
                del blocks[2 : 2 + gone]
                evicted[seq] += gone
            while (len(blocks) + evicted[seq]) * 4 < length[seq]:
                blocks.append(random.randint(1, 1000))
                num_blocks += 1
            tokens = (0,) * (length[seq] - start)
            rows.append(Row(SeqId(seq), start, tokens, tuple(blocks), None, reach=reach, num_evicted=evicted[seq]))
        lines, changes = tables.update(Step(step_id, tuple(rows)))
        num_written += changes.shape[1]
        tables.apply(torch.from_numpy(changes))
        for row, line in zip(rows, lines.tolist(), strict=True):
            told = tables.device_table[line].tolist()
            places = [*range(min(2, len(row.blocks))), *range(2 + row.num_evicted, len(row.blocks) + row.num_evicted)]
            assert [told[place] for place in places] == list(row.blocks)
    # Each block is written once when it comes, not the whole line whenever one leaves; with too few lines, again.
    assert (num_written == num_blocks) == (num_lines == 5)
