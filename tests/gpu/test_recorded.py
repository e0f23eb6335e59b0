"""A recorded step answers from what lies on the device when it is replayed, padded or not, alone or in company."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from headrace.core.protocols import Executor
from headrace.core.request import SamplingParams, SeqId
from headrace.core.settings import KvDtype
from headrace.core.step import Step
from headrace.executor import ReferenceExecutor
from headrace.executor.cuda.executor import CudaExecutor, DeviceOptions
from headrace.executor.cuda.graphs import Kind, Outputs
from headrace.executor.cuda.warm_up import graph_rows
from headrace.kv import BlockPool
from headrace.model import open_checkpoint
from headrace.model.build import build_program
from headrace.ops.cuda import launching
from headrace.sched import Scheduler, SchedulerLimits, Sequence
from headrace.testing.checkpoints import Family, write_checkpoint
from tests.gpu.tape import Tapes

BLOCKS, BLOCK_SIZE, ROWS, STEP_TOKENS, CHUNK = 40, 8, 4, 30, 20
SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, top_p=0.95, seed=3),
    SamplingParams(temperature=0.8, seed=4, repetition_penalty=1.3),  # drawn once more, beside the graph
    SamplingParams(temperature=0.7, seed=5, logprobs=1),
    SamplingParams(temperature=0.7, seed=6, typical_p=0.8),  # by numpy
)

SLOW = ("linear_dense", "rms_norm", "rows_dense", "step inputs", "qk_write")  # in the interpreter


class Case(NamedTuple):
    """What is served, and by which kernels."""

    family: Family
    kv_dtype: KvDtype = "auto"
    is_invariant: bool = False
    samplings: tuple[SamplingParams, ...] = SAMPLINGS[:1]
    num_requests: int = 5
    chunk_tokens: int = CHUNK  # that graphs are recorded for


def opened(path: Path, device: str, case: Case) -> CudaExecutor:
    with open_checkpoint(path) as checkpoint:
        return CudaExecutor(
            build_program(checkpoint.config), checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE,
            options=DeviceOptions(
                device=device, dtype="float32", max_rows=ROWS, max_step_tokens=STEP_TOKENS,
                chunk_tokens=case.chunk_tokens, kv_dtype=case.kv_dtype, is_invariant=case.is_invariant,
            ),
        )  # fmt: skip


def reference(path: Path, kv_dtype: KvDtype) -> ReferenceExecutor:
    with open_checkpoint(path) as checkpoint:
        return ReferenceExecutor(
            build_program(checkpoint.config), checkpoint, num_blocks=BLOCKS, block_size=BLOCK_SIZE, kv_dtype=kv_dtype
        )


def serve(executor: Executor, case: Case, seed: int) -> tuple[list[list[int]], list[Step]]:
    """Serve requests that come at random; return the tokens of each, and the steps."""
    limits = SchedulerLimits(
        max_num_seqs=ROWS, max_step_tokens=STEP_TOKENS, chunk_tokens=CHUNK, chunk_grows=False, max_context=100,
        max_waiting=99,
    )  # fmt: skip
    scheduler = Scheduler(BlockPool(BLOCKS), BLOCK_SIZE, limits)
    random = np.random.RandomState(seed)
    texts = [random.randint(0, 256, length).tolist() for length in (3, 12, 26, 9, 2)[: case.num_requests]]
    tokens: list[list[int]] = [[] for _ in texts]
    steps: list[Step] = []
    waiting = list(enumerate(texts))
    while waiting or scheduler.has_work:
        for _ in range(1 + int(random.randint(3))):
            if waiting and len(steps) % 2 == 0:
                number, text = waiting.pop(0)
                scheduler.submit(
                    Sequence(
                        SeqId(number), text, case.samplings[number % len(case.samplings)], max_tokens=2 + number % 3
                    )
                )
        step = scheduler.schedule(0.0)
        assert step is not None
        steps.append(step)
        result = executor.launch(step).result()
        assert result.failures == {}
        for event in scheduler.commit(step, result, 0.0):
            if event.sample is not None:
                tokens[event.seq_id].append(event.sample.token_id)
    return tokens, steps


@torch.inference_mode()
def watch(executor: CudaExecutor, device: str, monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Return a list that kinds of steps come to when they are run; where no graphs are, buckets are taped before as
    warming up records them: from steps of padding, or of one row."""
    if device == "cpu":
        Tapes(executor, monkeypatch)
        for rows, bucket in graph_rows(executor._buckets, BLOCKS):
            assert bucket is not None
            if bucket.tokens or bucket.rows == ROWS:  # others are taped where they are first met
                executor._launch(executor._alive(), Step(0, rows, is_dry_run=True), bucket, is_chosen=True).result()
    kinds: list[Kind] = []
    run = executor._graphs.run

    def watched(kind: Kind, *args: object, **options: object) -> Outputs:
        kinds.append(kind)
        return run(kind, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(executor._graphs, "run", watched)
    return kinds


@pytest.mark.parametrize(
    "case",
    [
        Case("llama", samplings=SAMPLINGS),
        Case("mistral", "int8", is_invariant=True, num_requests=3),
        Case("llama", num_requests=3, chunk_tokens=0),
    ],
)
def test_steps_replayed_from_one_recording_give_the_tokens_of_the_reference(
    tmp_path: Path, device: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cpu":  # attention and drawing are left, whose work depends on what a step holds
        monkeypatch.setattr(launching, "_failed", dict.fromkeys(SLOW, "slow"))
    path = write_checkpoint(tmp_path / case.family, case.family, num_hidden_layers=1)
    expected, _ = serve(reference(path, case.kv_dtype), case, 1)
    executor = opened(path, device, case)
    kinds = watch(executor, device, monkeypatch)
    found, steps = serve(executor, case, 1)
    executor.shutdown()
    assert found == expected
    mixed = [step for step in steps if step.num_tokens > len(step.rows)]
    parts = [sum(len(row.tokens) > 1 for row in step.rows) for step in mixed]
    assert max(parts) > 1  # the end of one prompt and the start of the next
    sampled = [step for step in mixed if [row for row in step.rows if row.sampling is not None]]
    replayed = [bucket for bucket, _ in kinds if bucket.tokens]
    assert len(sampled) > 2
    assert len(replayed) == (len(sampled) if case.chunk_tokens else 0)
