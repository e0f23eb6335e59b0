"""One configuration's figures without a server: prefill and decode speed of a batch, through the whole engine.

    prefill  batch x prompt tokens / seconds until every sequence has its first token (a run of one output token)
    decode   batch x (output - 1) tokens / (seconds of the whole run - seconds of the run of one token)
    step     decode seconds / (output - 1): one step of the whole batch

Random prompts, greedy, end tokens ignored. Medians over rounds after one that is not counted; spread is min … max.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

import msgspec

from headrace.bench.token_prompts import TokenPrompts
from headrace.core.errors import InvalidRequest


class Generator(Protocol):
    """Continues prompts of token ids greedily, all together, by exactly `output_tokens` tokens."""

    def generate_tokens(self, prompts: Sequence[Sequence[int]], output_tokens: int) -> None:
        """Return when all are done."""
        ...


class OfflineShape(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one run. `output_tokens` ≥ 2, or there is no decoding to time."""

    prompt_tokens: int = 512
    output_tokens: int = 64
    batch: int = 1


class Spread(msgspec.Struct, frozen=True):
    """Median and range over rounds."""

    median: float
    low: float
    high: float


class OfflineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Rates in tokens per second, step in milliseconds."""

    shape: OfflineShape
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    step_ms: Spread
    rounds: int


def run_offline(
    generator: Generator,
    shape: OfflineShape,
    prompts: TokenPrompts,
    *,
    rounds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> OfflineReport:
    """Measure `shape`; `progress` gets (rounds done, rounds). Raises InvalidRequest for shapes that time nothing."""
    if shape.output_tokens < 2 or min(shape.prompt_tokens, shape.batch, rounds) < 1:
        raise InvalidRequest(
            f"output length {shape.output_tokens}, prompt length {shape.prompt_tokens}, batch {shape.batch}, rounds "
            f"{rounds}: the output needs at least 2 tokens and the others at least 1",
            param="output_tokens",
        )
    prefill, decode, step = [], [], []
    for index in range(-1, rounds):
        first_s = _seconds(generator, prompts.batch(shape.batch, shape.prompt_tokens, 2 * index + 10), 1)
        batch = prompts.batch(shape.batch, shape.prompt_tokens, 2 * index + 11)
        whole_s = _seconds(generator, batch, shape.output_tokens)
        if index >= 0:
            decode_s = max(whole_s - first_s, 1e-9)
            prefill.append(shape.batch * shape.prompt_tokens / first_s)
            decode.append(shape.batch * (shape.output_tokens - 1) / decode_s)
            step.append(1e3 * decode_s / (shape.output_tokens - 1))
        if progress is not None:
            progress(index + 2, rounds + 1)
    return OfflineReport(
        shape=shape,
        prefill_tokens_per_s=_spread(prefill),
        decode_tokens_per_s=_spread(decode),
        step_ms=_spread(step),
        rounds=rounds,
    )


def _seconds(generator: Generator, prompts: list[list[int]], output_tokens: int) -> float:
    start = time.perf_counter()
    generator.generate_tokens(prompts, output_tokens)
    return time.perf_counter() - start


def _spread(values: list[float]) -> Spread:
    return Spread(median(values), min(values), max(values))
