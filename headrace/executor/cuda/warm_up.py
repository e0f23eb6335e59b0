"""The steps that a GPU goes through before the first request, so that nobody waits for what they compile and record.

Pure: makes rows. Called by `executor.cuda.executor`.
A kernel is compiled for each tile shape, never again for another count of rows, tokens or alternatives: the steps here
meet all shapes. Rows write to the block behind the pool, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.step import Row
from headrace.executor.cuda.device_batch import FEW_TOKENS

_GREEDY = SamplingParams(temperature=0.0)
_SAMPLED = SamplingParams(temperature=1.0, seed=1)
_RICH = SamplingParams(temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.1, logprobs=2, seed=1)
_LENGTHS = (1, 5, 9, 17, 33, 65)  # the least of each tile shape
_NARROW = Reach(window=1, num_sinks=1)
_NOBODY = -1  # no sequence of an engine has this id


def warm_rows(
    buckets: Sequence[int], *, max_tokens: int, padded_block: int, block_size: int
) -> Iterator[tuple[tuple[Row, ...], int | None]]:
    """Yield the rows of each step, and its bucket; None: it runs op by op.

    padded_block  the block behind the pool
    """
    lengths = sorted({*(length for length in _LENGTHS if length < max_tokens), max_tokens}, reverse=True)
    for length in lengths:
        blocks = (padded_block,) * -(-length // block_size)
        yield (Row(SeqId(_NOBODY), 0, (0,) * length, blocks, _GREEDY),), None
        if length <= _LENGTHS[-1]:  # as many lines of logits
            score = tuple((i, 0) for i in range(length))
            yield (Row(SeqId(_NOBODY), 0, (0,) * length, blocks, None, score=score, num_score_top=1),), None
    few = min(max(buckets), max_tokens // FEW_TOKENS)
    if few:
        blocks = (padded_block,) * -(-FEW_TOKENS // block_size)
        yield (Row(SeqId(_NOBODY), 0, (0,) * FEW_TOKENS, blocks, _GREEDY),) * few, None
    for count, length in ((1, 1), (1, min(8, max_tokens)), (min(max(buckets), max_tokens), 1)):
        blocks = (padded_block,) * -(-length // block_size)
        row = Row(SeqId(_NOBODY), 0, (0,) * length, blocks, _GREEDY, reach=_NARROW)
        yield (row,) * count, None
    for bucket in sorted(buckets, reverse=True):
        yield (), bucket  # greedy
        yield (Row(SeqId(_NOBODY), 0, (0,), (padded_block,), _SAMPLED),), bucket
    for params in (_GREEDY, _RICH):
        row = Row(SeqId(_NOBODY), 0, (0,), (padded_block,), params, history=(0,), prompt_len=1)
        yield (row,), min(buckets)
