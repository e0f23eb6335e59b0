"""The steps that a GPU goes through before the first request, so that nobody waits for what they compile and record.

Pure: makes rows. Called by `executor.cuda.executor`.
A kernel is compiled for each tile shape, never again for another count of rows, tokens or alternatives: the steps here
meet all shapes. Rows write to the block behind the pool, which nobody reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.core.request import Reach, SamplingParams, SeqId
from headrace.core.step import Row
from headrace.executor.cuda.buckets import Bucket, Buckets
from headrace.executor.cuda.device_batch import FEW_TOKENS

_GREEDY = SamplingParams(temperature=0.0)
_SAMPLED = SamplingParams(temperature=1.0, seed=1)
_RICH = SamplingParams(temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.1, logprobs=2, seed=1)
_LENGTHS = (1, 5, 9, 17, 33, 65, 129, 257)  # the least of each tile shape, and of what the library multiplies
_NARROW = Reach(window=1, num_sinks=1)
_NOBODY = -1  # no sequence of an engine has this id


def graph_rows(buckets: Buckets, padded_block: int) -> Iterator[tuple[tuple[Row, ...], Bucket | None]]:
    """Yield the rows of the steps that are recorded, and their buckets, the largest first: what they took is room for
    the others.

    padded_block  the block behind the pool
    """
    for bucket in sorted(buckets.mixed, key=lambda size: (size.tokens, size.rows), reverse=True):
        yield (), bucket
    for bucket in reversed(buckets.single):
        yield (), bucket  # greedy
        yield (Row(SeqId(_NOBODY), 0, (0,), (padded_block,), _SAMPLED),), bucket


def eager_rows(
    buckets: Buckets, max_tokens: int, padded_block: int, block_size: int
) -> Iterator[tuple[tuple[Row, ...], Bucket | None]]:
    """Yield the rows of steps that run op by op, or draw so, and their buckets, if any."""
    lengths = sorted({*(length for length in _LENGTHS if length < max_tokens), max_tokens}, reverse=True)
    for length in lengths:
        blocks = (padded_block,) * -(-length // block_size)
        yield (Row(SeqId(_NOBODY), 0, (0,) * length, blocks, _GREEDY),), None
        if length <= _LENGTHS[-1]:  # as many lines of logits
            score = tuple((i, 0) for i in range(length))
            yield (Row(SeqId(_NOBODY), 0, (0,) * length, blocks, None, score=score, num_score_top=1),), None
    few = min(buckets.most_rows, max_tokens // FEW_TOKENS)
    if few:  # the most tiles of one token
        blocks = (padded_block,) * -(-FEW_TOKENS // block_size)
        yield (Row(SeqId(_NOBODY), 0, (0,) * FEW_TOKENS, blocks, _GREEDY),) * few, None
    for count, length in ((1, 1), (1, min(8, max_tokens)), (min(buckets.most_rows, max_tokens), 1)):
        blocks = (padded_block,) * -(-length // block_size)
        row = Row(SeqId(_NOBODY), 0, (0,) * length, blocks, _GREEDY, reach=_NARROW)
        yield (row,) * count, None
    for params in (_GREEDY, _RICH):
        row = Row(SeqId(_NOBODY), 0, (0,), (padded_block,), params, history=(0,), prompt_len=1)
        yield (row,), buckets.single[0]
