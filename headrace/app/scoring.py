"""Logits of whole texts from any backend: what evals and comparisons read.

Owns an executor with a pool for one context, and no engine: one thread calls, one step at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.app import backends
from headrace.app.hardware import detect
from headrace.app.loading import open_model
from headrace.app.pulling import ensure_pulled
from headrace.core.errors import PromptTooLong
from headrace.core.protocols import Executor
from headrace.core.request import SeqId
from headrace.core.settings import Settings
from headrace.core.step import Row, Step
from headrace.text import Tokenizer, load_tokenizer

_MAX_CONTEXT = 2048  # tokens of one scored text; its logits are 4·T·V bytes


class _LogitsExecutor(Executor, Protocol):
    def logits(self, step: Step) -> NDArray[np.float32]: ...


class TextScorer:
    """Scores fresh contexts one after the other. `close` frees the model."""

    def __init__(self, executor: _LogitsExecutor, tokenizer: Tokenizer, backend: str) -> None:
        self.tokenizer = tokenizer
        self.backend = backend
        self._executor = executor
        self._num_scored = 0

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return next-token logits [T, V] of one fresh context. Raises PromptTooLong past the pool."""
        size = self._executor.block_size
        if len(tokens) > size * self._executor.num_blocks:
            raise PromptTooLong(
                f"{len(tokens):,} tokens to score in one context; at most {size * self._executor.num_blocks:,} fit; "
                "score shorter pieces"
            )
        blocks = tuple(range(-(-len(tokens) // size)))
        row = Row(seq_id=SeqId(self._num_scored), start=0, tokens=tuple(tokens), blocks=blocks, sampling=None)
        self._num_scored += 1
        return self._executor.logits(Step(step_id=self._num_scored, rows=(row,)))

    def close(self) -> None:
        """Free weights and pool. Idempotent."""
        self._executor.shutdown()


@contextmanager
def open_scorer(settings: Settings) -> Iterator[TextScorer]:
    """Load the first model of `settings` on its backend, to score contexts of up to 2,048 tokens."""
    sized = msgspec.structs.replace(
        settings.engine, max_num_seqs=1, max_step_tokens=_MAX_CONTEXT, max_context=None, kv_memory_mib=None
    )
    opened = open_model(
        ensure_pulled(settings, settings.first_model), msgspec.structs.replace(settings, engine=sized), detect()
    )
    try:
        tokenizer = load_tokenizer(opened.checkpoint.text_files)
        executor = cast(
            _LogitsExecutor,
            backends.open_executor(opened.plan, opened.program, opened.checkpoint, cache_directory=opened.cache),
        )
    finally:
        opened.close()
    scorer = TextScorer(executor, tokenizer, opened.plan.backend.value)
    try:
        yield scorer
    finally:
        scorer.close()
