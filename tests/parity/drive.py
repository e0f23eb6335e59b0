"""Drive an executor without an engine: steps written by hand, in any chunking, over blocks in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.core.request import SeqId
from headrace.core.step import Row, Step
from headrace.executor import ReferenceExecutor


def shuffled_blocks(executor: ReferenceExecutor, num_tokens: int, seed: int) -> tuple[int, ...]:
    """Return enough blocks of the pool for a sequence, in a random order."""
    order = np.random.RandomState(seed).permutation(executor.num_blocks)
    return tuple(order[: -(-num_tokens // executor.block_size)].tolist())


def fill(seq: int, tokens: Sequence[int], start: int, stop: int, blocks: tuple[int, ...]) -> Row:
    """Return the row that computes tokens start … stop-1 of a sequence."""
    return Row(seq_id=SeqId(seq), start=start, tokens=tuple(tokens[start:stop]), blocks=blocks, sampling=None)


def whole_logits(executor: ReferenceExecutor, tokens: Sequence[int], *, seed: int = 0) -> NDArray[np.float32]:
    """Return the logits [T, V] of a prompt computed in one step."""
    return chunked_logits(executor, tokens, [len(tokens)], seed=seed)


def chunked_logits(
    executor: ReferenceExecutor, tokens: Sequence[int], sizes: Sequence[int], *, seed: int = 0
) -> NDArray[np.float32]:
    """Return the logits [T, V] of a prompt computed in chunks of the given sizes, the last one repeated."""
    blocks = shuffled_blocks(executor, len(tokens), seed)
    parts = []
    start = 0
    for i in range(len(tokens)):
        size = sizes[min(i, len(sizes) - 1)]
        row = fill(0, tokens, start, min(start + size, len(tokens)), blocks)
        parts.append(executor.logits(Step(step_id=i, rows=(row,))))
        start += len(row.tokens)
        if start == len(tokens):
            break
    return np.concatenate(parts)


def scored_step(prompt: Sequence[int], num_top: int, block_size: int = 16) -> Step:
    """Return a step of one row that scores every token of a prompt but the first."""
    row = Row(
        seq_id=SeqId(1),
        start=0,
        tokens=tuple(prompt),
        blocks=tuple(range(-(-len(prompt) // block_size))),
        sampling=None,
        score=tuple((i, prompt[i + 1]) for i in range(len(prompt) - 1)),
        num_score_top=num_top,
    )
    return Step(0, (row,))
