"""What the native parity tests share: instruction sets to force, sequences to generate, executors to compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from headrace.core.protocols import Executor
from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.step import Row, Sample, Step
from headrace.executor.native import problem

NATIVE_PROBLEM = problem()
needs_native = pytest.mark.skipif(NATIVE_PROBLEM is not None, reason=f"no native library: {NATIVE_PROBLEM}")

if NATIVE_PROBLEM is None:
    from headrace.ops.native.library import available_isas, set_isa

    ISAS = available_isas()
else:
    ISAS = ("generic",)


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Run a block on one instruction set."""
    set_isa(isa)
    try:
        yield
    finally:
        set_isa("auto")


GREEDY = SamplingParams(temperature=0.0, logprobs=5)


@dataclass
class Sequence_:
    """One sequence while it is generated."""

    seq_id: SeqId
    tokens: list[int]
    sampling: SamplingParams
    prompt_len: int
    blocks: list[int] = field(default_factory=list)
    done: int = 0
    num_evicted: int = 0
    samples: list[Sample] = field(default_factory=list)


def generate(
    executor: Executor,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    chunk: int = 1000,
    seed: int = 0,
    sampling: SamplingParams = GREEDY,
    reach: Reach | None = None,
    evicts: bool = False,
) -> list[list[Sample]]:
    """Generate `count` tokens for each prompt, all in one batch, prompts cut into chunks, blocks in random order.

    evicts  give blocks that nobody attends to any more to whoever needs one next
    """
    free = np.random.RandomState(seed).permutation(executor.num_blocks).tolist()
    seqs = [Sequence_(SeqId(1000 * seed + i), list(p), sampling, len(p)) for i, p in enumerate(prompts)]
    step_id = 0
    while running := [seq for seq in seqs if len(seq.samples) < count]:
        rows = []
        for seq in running:
            stop = min(seq.done + chunk, len(seq.tokens))
            if reach is not None and evicts:
                first = -(-reach.num_sinks // executor.block_size)
                gone = reach.num_evictable(seq.done, executor.block_size) - seq.num_evicted
                free += seq.blocks[first : first + gone]
                del seq.blocks[first : first + gone]
                seq.num_evicted += gone
            while (len(seq.blocks) + seq.num_evicted) * executor.block_size < stop:
                seq.blocks.append(free.pop())
            rows.append(
                Row(
                    seq_id=seq.seq_id,
                    start=seq.done,
                    tokens=tuple(seq.tokens[seq.done : stop]),
                    blocks=tuple(seq.blocks),
                    sampling=seq.sampling if stop == len(seq.tokens) else None,
                    num_output=len(seq.samples),
                    prompt_len=seq.prompt_len,
                    history=tuple(seq.tokens) if seq.sampling.needs_history else None,
                    reach=reach,
                    num_evicted=seq.num_evicted,
                )
            )
            seq.done = stop
        result = executor.launch(Step(step_id, tuple(rows))).result()
        assert result.failures == {}
        step_id += 1
        for seq, sample in zip(running, result.samples, strict=True):
            if sample is not None:
                seq.samples.append(sample)
                seq.tokens.append(sample.token_id)
    return [seq.samples for seq in seqs]


def tokens(samples: Sequence[Sample]) -> list[int]:
    """Return the token ids."""
    return [sample.token_id for sample in samples]
