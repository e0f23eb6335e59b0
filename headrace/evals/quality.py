"""Scores one text under two models, chunk by chunk, and compares them.

Owns nothing. Each chunk is an independent context, so both models see the same tokens and memory stays bounded by one
chunk's logits (512 tokens of a 49k vocabulary: 100 MB in float32). Every position but a chunk's first is scored.
Called by `headrace eval` and by the quality column of `headrace bench peers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.core.errors import InvalidRequest
from headrace.evals.compare import ChunkScores, Comparison, score_chunk, summarize

CHUNK_TOKENS = 512


class Scorer(Protocol):
    """A model that tells its logits."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return next-token logits [T, V] of one fresh context of T tokens."""
        ...


def default_text() -> str:
    """Return the public-domain English text that ships with the package (about 12,000 tokens)."""
    return resources.files("headrace.evals").joinpath("data/public_domain.txt").read_text(encoding="utf-8")


def compare_scorers(
    base: Scorer,
    test: Scorer,
    tokens: Sequence[int],
    *,
    bos_id: int | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare `test` with `base` on `tokens`, in contexts of `chunk_tokens`, each opened by BOS if the model has one.

    progress: called with (chunks done, chunks in all). Raises InvalidRequest when there are fewer than two tokens.
    """
    chunks = split_contexts(tokens, bos_id, chunk_tokens)
    if not chunks:
        raise InvalidRequest(
            f"the text has {len(tokens)} tokens; at least 2 are needed to score it; pass a longer text"
        )
    scores: list[ChunkScores] = []
    for done, chunk in enumerate(chunks, start=1):
        targets = np.asarray(chunk[1:], dtype=np.int64)
        scores.append(score_chunk(base.logits(chunk)[:-1], test.logits(chunk)[:-1], targets))
        if progress is not None:
            progress(done, len(chunks))
    return summarize(scores)


def split_contexts(tokens: Sequence[int], bos_id: int | None, chunk_tokens: int = CHUNK_TOKENS) -> list[list[int]]:
    """Cut tokens into contexts of at most `chunk_tokens`, each opened by BOS if there is one."""
    head = [] if bos_id is None else [bos_id]
    body = chunk_tokens - len(head)
    pieces = (list(tokens[i : i + body]) for i in range(0, len(tokens), body))
    return [head + piece for piece in pieces if len(piece) >= 2]
