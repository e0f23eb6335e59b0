"""A sequence's logits have the same bits alone or in company, whole or in chunks, wherever its blocks are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.request import SamplingParams, SeqId
from headrace.core.step import Row, Step
from headrace.executor import ReferenceExecutor
from headrace.testing.checkpoints import FAMILIES, Family, write_checkpoint
from tests.parity.drive import fill, whole_logits
from tests.parity.test_golden_logits import opened

BLOCK_SIZE = 4
LENGTHS = (33, 1, 18, 47, 16, 5)


def prompts(seed: int) -> list[list[int]]:
    random = np.random.RandomState(seed)
    return [random.randint(0, 256, length).tolist() for length in LENGTHS]


def dealt_blocks(executor: ReferenceExecutor, lengths: list[int], seed: int) -> list[tuple[int, ...]]:
    """Deal the pool's blocks to sequences in random order."""
    order = np.random.RandomState(seed).permutation(executor.num_blocks).tolist()
    blocks = []
    for length in lengths:
        count = -(-length // BLOCK_SIZE)
        blocks.append(tuple(order[:count]))
        order = order[count:]
    return blocks


def together(executor: ReferenceExecutor, seqs: list[list[int]], seed: int) -> list[NDArray[np.float32]]:
    """Compute all sequences in mixed steps: random members, random chunk sizes, random order of rows."""
    random = np.random.RandomState(seed)
    blocks = dealt_blocks(executor, [len(seq) for seq in seqs], seed)
    done = [0] * len(seqs)
    parts: list[list[NDArray[np.float32]]] = [[] for _ in seqs]
    while any(done[i] < len(seq) for i, seq in enumerate(seqs)):
        members = [i for i in random.permutation(len(seqs)).tolist() if done[i] < len(seqs[i]) and random.rand() < 0.7]
        if not members:
            continue
        stops = [min(done[i] + int(random.randint(1, 14)), len(seqs[i])) for i in members]
        rows = tuple(fill(i, seqs[i], done[i], stop, blocks[i]) for i, stop in zip(members, stops, strict=True))
        logits = executor.logits(Step(step_id=0, rows=rows))
        for i, stop in zip(members, stops, strict=True):
            parts[i].append(logits[: stop - done[i]])
            logits = logits[stop - done[i] :]
            done[i] = stop
    return [np.concatenate(part) for part in parts]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_logits_have_the_same_bits_in_any_batch_and_chunking(family: Family, seed: int, tmp_path: Path) -> None:
    executor = opened(write_checkpoint(tmp_path / family, family), num_blocks=40, block_size=BLOCK_SIZE)
    seqs = prompts(seed)
    alone = [whole_logits(executor, seq, seed=seed) for seq in seqs]
    for mine, shared in zip(alone, together(executor, seqs, seed), strict=True):
        np.testing.assert_array_equal(shared, mine)


def test_greedy_tokens_do_not_depend_on_company(tmp_path: Path) -> None:
    executor = opened(write_checkpoint(tmp_path / "m", "gemma3"), num_blocks=60, block_size=BLOCK_SIZE)
    seqs = prompts(9)
    alone = [generate(executor, [seq])[0] for seq in seqs]
    assert generate(executor, seqs) == alone
    assert len({token for tokens in alone for token in tokens}) > len(seqs)  # the model does say something


def generate(executor: ReferenceExecutor, seqs: list[list[int]], num_tokens: int = 12) -> list[list[int]]:
    """Prefill all prompts in one step, then decode greedily side by side."""
    blocks = dealt_blocks(executor, [len(seq) + num_tokens for seq in seqs], len(seqs))
    texts = [list(seq) for seq in seqs]
    starts = [0] * len(seqs)
    for i in range(num_tokens):
        rows = tuple(
            Row(
                seq_id=SeqId(seq),
                start=starts[seq],
                tokens=texts[seq][starts[seq] :],
                blocks=blocks[seq],
                sampling=SamplingParams(temperature=0.0),
                num_output=i,
            )
            for seq in range(len(seqs))
        )
        result = executor.launch(Step(step_id=i, rows=rows)).result()
        assert not result.failures
        for seq, sample in enumerate(result.samples):
            assert sample is not None
            starts[seq] = len(texts[seq])
            texts[seq].append(sample.token_id)
    return [text[len(seq) :] for text, seq in zip(texts, seqs, strict=True)]
